"""Ranks as Ray actors: started together, joined by torch.distributed, started anew together if one dies."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.dag import Context
from cluster.errors import UserError, one_line

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
_MAX_DEATHS = 3
_LOOPBACK = "127.0.0.1"


class _Rank:
    """The process of one rank."""

    def __init__(self, rank: int, world_size: int, num_threads: int, device: str) -> None:
        self.rank, self.world_size, self.num_threads, self.device = rank, world_size, num_threads, device
        self.listener: socket.socket | None = None

    def node(self) -> str:
        import ray

        return ray.util.get_node_ip_address()

    def listen(self, host: str) -> int:
        """Opens the port at which the ranks meet; returns its number."""
        self.listener = socket.create_server((host, 0))
        return self.listener.getsockname()[1]

    def work(self, host: str, port: int, work: Callable[[torch.device], Result]) -> Result | None:
        """Joins the other ranks and does the work; returns its result on rank 0."""
        if host == _LOOPBACK:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        import torch
        import torch.distributed as dist

        torch.set_num_threads(self.num_threads)
        listening = {"master_listen_fd": self.listener.detach()} if self.listener else {}
        store = dist.TCPStore(host, port, self.world_size, self.rank == 0, **listening)
        backend = "nccl" if self.device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size)
        result = work(torch.device(self.device))
        dist.barrier()
        dist.destroy_process_group()
        return result if self.rank == 0 else None


def run_ranks(
    work: Callable[[torch.device], Result],
    *,
    num_workers: int,
    num_threads: int,
    device: str,
    context: Context,
) -> Result:
    """Does `work(device)` on `num_workers` ranks; returns what it returns on rank 0.

    Each rank takes one of the cluster's "train" resource, and a GPU if `device` is cuda (auto: if the cluster
    has any). When a rank dies all are started anew, so the work must go on from what it has saved.

    Raises:
        UserError: ranks died three times.
        Any exception of `work`, unchanged.
    """
    import ray

    if device == "auto":
        device = "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
    for attempt in range(1, _MAX_DEATHS + 1):
        try:
            return _attempt(work, num_workers, num_threads, device, context)
        except ray.exceptions.RayActorError as error:
            text = one_line(error)
            if attempt == _MAX_DEATHS:
                raise UserError(
                    f"Stage {context.stage}: training processes died {_MAX_DEATHS} times. Often memory ran "
                    f"out: try fewer workers, a smaller batch or gradient_checkpointing. The last: {text}"
                ) from None
            context.incident(f"A training process died; all go on from the last checkpoint. {text}")
    raise AssertionError


def _attempt(
    work: Callable[[torch.device], Result],
    num_workers: int,
    num_threads: int,
    device: str,
    context: Context,
) -> Result:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundle = {"train": _share(num_workers)} | ({"GPU": 1.0} if device == "cuda" else {})
    group = placement_group([bundle] * num_workers, strategy="PACK")
    ranks: list[Any] = []
    try:
        while not group.wait(1):
            context.check()
        for rank in range(num_workers):
            variables = {
                "OMP_NUM_THREADS": str(num_threads),
                "RANK": str(rank),
                "WORLD_SIZE": str(num_workers),
                "LOCAL_RANK": "0",
            }
            if device == "cpu":
                variables["DS_ACCELERATOR"] = "cpu"
            actor = ray.remote(_Rank).options(
                num_cpus=0,
                num_gpus=bundle.get("GPU", 0),
                resources={"train": bundle["train"]},
                runtime_env={"env_vars": variables},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            )
            ranks.append(actor.remote(rank, num_workers, num_threads, device))
        nodes = ray.get([rank.node.remote() for rank in ranks])
        host = _LOOPBACK if len(set(nodes)) == 1 else nodes[0]
        port = ray.get(ranks[0].listen.remote(host))
        sent = ray.put(work)
        return _first_result([rank.work.remote(host, port, sent) for rank in ranks], context)
    finally:
        for rank in ranks:
            with contextlib.suppress(Exception):  # Ray itself may be what failed
                ray.kill(rank)
        with contextlib.suppress(Exception):
            remove_placement_group(group)


def _first_result(refs: list[Any], context: Context) -> Any:
    """Waits for all ranks. If one died that is what is raised: the others only lost their connection."""
    import ray

    pending = list(refs)
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=1.0)
        context.check()
        for ref in done:
            try:
                ray.get(ref)
            except ray.exceptions.RayActorError:
                raise
            except ray.exceptions.RayTaskError as error:
                time.sleep(2)
                for other in ray.wait(pending, num_returns=len(pending), timeout=3)[0] if pending else ():
                    with contextlib.suppress(ray.exceptions.RayTaskError):
                        ray.get(other)
                raise error.cause from error
    return ray.get(refs[0])


def _share(num_workers: int) -> float:
    """How much of the "train" resource a rank takes: one, or less where there are fewer than ranks."""
    import ray

    total = ray.cluster_resources().get("train", 0)
    return min(1.0, total / num_workers) if total else 1.0
