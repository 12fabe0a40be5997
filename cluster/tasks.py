"""The stages that run now: their Ray tasks, and the leases that the driver keeps for them."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.artifacts import Artifact, code_version, parent_fingerprints
from cluster.config import identity
from cluster.dag import Context
from cluster.errors import UserError
from cluster.lease import Lease
from cluster.plan import Planned
from cluster.session import raylet_died
from cluster.worker import Outcome, execute, is_system_fault


@dataclass
class Task:
    """A stage under way. `lost`: its lease is another's now; `cancel_by`: when patience with a cancelled task
    ends.
    """

    lease: Lease
    inputs: dict[str, Artifact]
    beat: float
    ref: Any = None
    tries: int = 0
    lost: bool = False
    cancel_by: float | None = None

    @property
    def cancelled(self) -> bool:
        return self.lost or self.cancel_by is not None

    def launch(self, planned: Planned, context: Context, owned: bool) -> None:
        """Starts the stage in a process of its own.

        Raises UserError if Ray runs on this machine alone (`owned`) and it hasn't the GPUs that the stage
        takes.
        """
        import ray

        resources = planned.stage.resources
        num_gpus = 0.0 if resources.label else resources.gpus
        there = ray.cluster_resources().get("GPU", 0.0) if owned and num_gpus else num_gpus
        if num_gpus > there:
            raise UserError(f"Stage {planned.stage.name} needs {num_gpus:g} GPUs; this machine has {there:g}.")
        manifest = {
            "stage": planned.stage.name,
            "version": planned.stage.version,
            "fingerprint": planned.fingerprint,
            "config": planned.config.model_dump(mode="json"),
            "identity": identity(planned.config),
            "sources": planned.sources,
            "parents": parent_fingerprints(self.inputs),
            "run_id": context.run_id,
            "code_version": code_version(),
        }
        # max_calls: the process ends with the stage, and with it whatever memory its libraries hold.
        remote = ray.remote(max_calls=1)(execute).options(
            name=f"stage:{planned.stage.name}", num_cpus=resources.cpus, num_gpus=num_gpus, max_retries=0
        )
        self.tries += 1
        self.ref = remote.remote(planned.stage.run, planned.config, self.inputs, context, manifest)

    def outcome(self) -> Outcome:
        """How the task ended, once it has."""
        import ray

        try:
            return ray.get(self.ref)
        except ray.exceptions.TaskCancelledError:
            return Outcome("cancelled")
        except ray.exceptions.LocalRayletDiedError:  # that of this process: nothing can be started any more
            return Outcome("user", str(raylet_died()))
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:600]
            return Outcome("system" if is_system_fault(error) else "fault", text)

    def cancel(self, grace_seconds: float) -> None:
        """Interrupts the task; call it again when `cancel_by` is over, to kill it."""
        import ray

        force = self.cancel_by is not None
        self.cancel_by = time.monotonic() + (1e9 if force else grace_seconds)
        with contextlib.suppress(Exception):  # it may have ended this moment
            ray.cancel(self.ref, force=force, recursive=True)

    def renew(self, lease_seconds: float) -> None:
        """Renews the lease, and finds out whether it was lost."""
        try:
            self.lost = self.lost or not self.lease.beat()
            self.beat = time.monotonic()
        except OSError:  # the store doesn't answer: while the lease runs nobody else can have taken it
            self.lost = time.monotonic() - self.beat > lease_seconds


def wait_for_any(tasks: Mapping[str, Task], timeout: float) -> list[str]:
    """Names of tasks that have ended, at most one at a time; empty after `timeout` seconds."""
    import ray

    refs = {task.ref: name for name, task in tasks.items() if task.ref is not None}
    ended, _ = ray.wait(list(refs), num_returns=1, timeout=timeout)
    return [refs[ref] for ref in ended]


def stop_all(tasks: Mapping[str, Task], grace_seconds: float) -> None:
    """Interrupts all tasks, and kills those that still run after `grace_seconds`."""
    import ray

    running = [task for task in tasks.values() if task.ref is not None]
    for task in running:
        task.cancel(grace_seconds)
    with contextlib.suppress(Exception):  # Ray itself may be what is gone
        refs = [task.ref for task in running]
        _, alive = ray.wait(refs, num_returns=len(refs), timeout=grace_seconds)
        for task in running:
            if task.ref in alive:
                task.cancel(grace_seconds)
        if alive:
            ray.wait(alive, num_returns=len(alive), timeout=grace_seconds)
