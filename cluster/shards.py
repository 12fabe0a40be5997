"""Logical shards of a table: fixed before any work, named by their content, each done once and committed by
itself.
"""

import collections
import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.dag import Context
from cluster.errors import UserError, one_line

_MAX_DEATHS = 3


def name_shards(keys: Sequence[str], shard_size: int, prefix: str = "") -> dict[str, Sequence[str]]:
    """Cuts `keys` (ids of rows) into runs of `shard_size`: {file name: its keys}, in order.

    A name states the shard's place and the hash of its keys, so neither workers nor retries change it.
    """
    shards = {}
    for index, start in enumerate(range(0, len(keys), shard_size)):
        part = keys[start : start + shard_size]
        digest = hashlib.sha256("\0".join(part).encode()).hexdigest()[:8]
        shards[f"{prefix}{index:05d}-{digest}.parquet"] = part
    return shards


def run_shards(
    shards: Sequence[str], work: Callable[[str], None], *, context: Context, num_workers: int = 1,
    num_cpus: float = 1.0, num_gpus: float = 0.0, resources: Mapping[str, float] | None = None,
    total: int | None = None, unit: str = "shards",
) -> None:  # fmt: skip
    """Calls `work(shard)` for every shard whose file isn't in `context.out` yet, on a pool of Ray actors.

    `work` is sent to each actor once, so what it loads and keeps on itself serves all of the actor's shards;
    it must write the file `shard` with `context.out.write_table`. A worker that dies is replaced and its
    shard done again.

    Args:
        shards: names of the files to make.
        num_workers: actors at most; each takes `num_cpus`, `num_gpus` and `resources` of the cluster.
        total, unit: what progress shows if a shard is not the best measure of it: `total` units in all.

    Raises:
        UserError: workers died three times at one shard.
        Any exception of `work`, unchanged.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    pending = collections.deque(shard for shard in shards if not context.out.exists(shard))
    num_pending, num_done = len(pending), len(shards) - len(pending)
    scale = (total / len(shards)) if total and shards else 1
    show = _Progress(context, len(shards), scale, unit)
    show(num_done)
    if not pending:
        return
    worker_class = ray.remote(_Worker).options(num_cpus=num_cpus, num_gpus=num_gpus, resources=dict(resources or {}))
    sent = ray.put(work)
    deaths: collections.Counter[str] = collections.Counter()
    idle = [worker_class.remote(sent) for _ in range(min(num_workers, num_pending))]
    busy: dict[Any, tuple[Any, str]] = {}
    try:
        while pending or busy:
            while pending and idle:
                worker, shard = idle.pop(), pending.popleft()
                busy[worker.do.remote(shard)] = (worker, shard)
            done, _ = ray.wait(list(busy), num_returns=1, timeout=1.0)
            context.check()
            for ref in done:
                worker, shard = busy.pop(ref)
                try:
                    ray.get(ref)
                except RayTaskError as error:
                    raise error.cause from error
                except RayActorError as error:
                    deaths[shard] += 1
                    context.incident(f"A worker died at {shard}; another does it again. {one_line(error)}")
                    if deaths[shard] >= _MAX_DEATHS:
                        raise UserError(
                            f"Stage {context.stage}: workers died {_MAX_DEATHS} times at shard {shard}. "
                            f"Often memory ran out: try fewer workers. The last death: {one_line(error)}"
                        ) from None
                    if not context.out.exists(shard):
                        pending.appendleft(shard)
                        idle.append(worker_class.remote(sent))
                        continue
                    worker = worker_class.remote(sent)
                idle.append(worker)
                num_done += 1
                show(num_done)
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            with contextlib.suppress(Exception):  # Ray itself may be what failed
                ray.kill(worker)


class _Worker:
    def __init__(self, work: Callable[[str], None]):
        self._work = work

    def do(self, shard: str) -> None:
        self._work(shard)


class _Progress:
    def __init__(self, context: Context, num_shards: int, scale: float, unit: str):
        self._context, self._num_shards, self._scale, self._unit = context, num_shards, scale, unit

    def __call__(self, num_done: int) -> None:
        done, total = round(num_done * self._scale), round(self._num_shards * self._scale)
        self._context.progress(done, total, self._unit)
