"""Getting at Ray in the three ways that a pipeline is run: alone, as a job on a cluster, inside a session."""

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UserError
from cluster.record import namespace

_TRIES = 3
# What a machine by itself offers of the resources that the groups of `ray_cluster.yaml` carry.
LOCAL_LABELS = {"vllm": 1, "train": 2}


@dataclass(frozen=True)
class Session:
    """`owned`: Ray was started here, on this machine alone, and ends with the run."""

    owned: bool
    dashboard: str | None
    namespace: str

    def check(self) -> None:
        """Raises UserError if the raylet of this process died: what runs may never notice, nothing new can start."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        if any(found["NodeID"] == node and not found["Alive"] for found in ray.nodes()):
            raise raylet_died()

    def close(self) -> None:
        """Ends the named actors of the run (engines outlive the stage that started them), and Ray if it was
        started here.
        """
        import ray

        if not ray.is_initialized():
            return
        with contextlib.suppress(Exception):  # Ray itself may be what failed
            for actor in ray.util.list_named_actors(all_namespaces=True):
                if actor["namespace"] == self.namespace:
                    with contextlib.suppress(ValueError):
                        ray.kill(ray.get_actor(actor["name"], namespace=self.namespace))
        if self.owned:
            ray.shutdown()


def raylet_died() -> UserError:
    return UserError(
        f"Ray's raylet on {socket.gethostname()} died, and with it whatever Ray ran there: it was killed, or memory "
        "ran out (`dmesg` tells which). Call the same command again (on a cluster that isn't this run's own, start Ray "
        "there first); it goes on from what is finished."
    )


def open_session(run_id: str) -> Session:
    """Connects to Ray: the session that is there; else the cluster of RAY_ADDRESS (set inside a job); else
    one on this machine.

    The local one declares at least 4 logical CPUs, since stages mostly wait for actors, and the labels of the
    cluster's groups; its dashboard listens on loopback only. Raises UserError if Ray can't be reached or
    started.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return Session(False, None, namespace(run_id))
    common = {"namespace": namespace(run_id), "log_to_driver": False, "logging_level": "warning"}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            info = ray.init(address="auto", **common)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(f"RAY_ADDRESS is {address!r}, but no Ray cluster answers there: {error}") from None
        return Session(False, info.dashboard_url, namespace(run_id))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers import the project from where the driver did, whether it is installed or not.
    project = str(Path(__file__).resolve().parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if project not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([project, *filter(None, paths)])
    for attempt in range(_TRIES):
        try:
            info = ray.init(
                address="local",
                num_cpus=max(4, os.cpu_count() or 1),
                resources=dict(LOCAL_LABELS),
                include_dashboard=attempt < _TRIES - 1,  # a machine too busy for it can do without
                dashboard_host="127.0.0.1",
                **common,
            )
            return Session(True, info.dashboard_url or None, namespace(run_id))
        except Exception as error:  # a loaded machine can miss the 30 s that the raylet is given
            ray.shutdown()
            if attempt == _TRIES - 1:
                raise UserError(f"Ray couldn't be started on this machine: {error}") from error
    raise AssertionError("unreachable")
