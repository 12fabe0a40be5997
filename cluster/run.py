"""The driver: runs a plan on Ray, stage by stage as their inputs come."""

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster import lease as leases
from cluster.artifacts import MANIFEST, Artifact, artifact_folder, damage, read_artifact, scratch_path
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.journal import Journal
from cluster.lease import Lease
from cluster.plan import Planned
from cluster.record import RunRecord, StageRecord
from cluster.session import Session, open_session
from cluster.stage_runs import StageRuns
from cluster.stop import StopSignals
from cluster.tasks import Task, stop_all, wait_for_any

_POLL_SECONDS = 0.2
_CHECK_SECONDS = 5.0
_ATTEMPT = ".attempt.json"


@dataclass(frozen=True)
class RunSettings:
    """How a driver behaves.

    `lease_seconds`: after so long without a heartbeat another driver may take over; `grace_seconds`: what a
    cancelled stage is given to stop by itself; `system_retries`: how often a stage is tried again after a
    lost process.
    """

    lease_seconds: float = leases.LEASE_SECONDS
    grace_seconds: float = 10.0
    system_retries: int = 1


class Run:
    """One call of a pipeline. `execute()` gives the summary; stages that fail don't raise.

    `tracking` starts MLflow (`cluster.tracking.start_run`), None leaves it out. `watch` is called with the
    record about once a second. A run whose driver died goes on under its id if the same is asked for again.
    """

    def __init__(
        self,
        plan: Sequence[Planned],
        root: Folder,
        *,
        profile: str,
        request: Mapping[str, Any] | None = None,
        settings: RunSettings = RunSettings(),
        tracking: Callable[..., Any] | None = None,
        watch: Callable[[RunRecord], None] | None = None,
    ):
        self.plan = {planned.stage.name: planned for planned in plan}
        self.root = root
        self.settings = settings
        self.artifacts: dict[str, Artifact] = {}
        self.journal = Journal.open(root, profile, request or {}, settings.lease_seconds)
        self._watch = watch
        self._stage_runs = StageRuns(tracking, self.journal)
        self._stop = StopSignals()
        self._session: Session | None = None
        self._tasks: dict[str, Task] = {}
        self._looked: dict[str, float] = {}
        self._checked = time.monotonic()
        self._ended = threading.Event()
        for name, planned in self.plan.items():
            skipped = planned.state == "skipped"
            stage = StageRecord(status="skipped" if skipped else "pending", why=planned.why)
            stage.fingerprint = planned.fingerprint
            if not skipped or planned.artifact:
                stage.artifact = self._folder(name).url
            if skipped and planned.artifact:
                self.artifacts[name] = planned.artifact
            self.journal.run.stages[name] = stage
        self.journal.write()

    def execute(self) -> dict[str, Any]:
        """Runs until all stages are done, failed or skipped, or a signal comes. Gives the summary."""
        beats = threading.Thread(target=self._heartbeats, daemon=True)
        beats.start()
        shown = 0.0
        fault: BaseException | None = None
        with self._stop:
            try:
                while self._stop.by is None and self.journal.unfinished():
                    self._start_ready()
                    self._collect()
                    if self._watch and time.monotonic() - shown > 1.0:
                        shown = time.monotonic()
                        self._watch(self.journal.run)
            except SystemExit:  # Ray's own handler of SIGTERM, in force for as long as Ray starts
                self._stop.by = signal.SIGTERM
            except BaseException as error:
                fault = error
                raise
            finally:
                try:
                    summary = self._close(fault)
                finally:
                    self._ended.set()
                    beats.join(timeout=10)
                    if self._session:
                        self._session.close()
        return summary

    def _folder(self, name: str) -> Folder:
        return artifact_folder(self.root, name, self.plan[name].fingerprint)

    # Starting

    def _start_ready(self) -> None:
        for name in self.journal.unfinished():
            if name in self._tasks or self._stop.by is not None:
                continue
            needs = self.plan[name].stage.needs
            absent = [need for need in needs if need not in self.artifacts]
            broken = [need for need in absent if self.journal.status(need) in ("failed", "skipped")]
            if broken:
                failed = any(self.journal.status(need) == "failed" for need in broken)
                why = f"needs {', '.join(broken)}, which {'failed' if failed else 'was skipped'}"
                self.journal.set(name, status="skipped", why=why)
            elif not absent and time.monotonic() - self._looked.get(name, -10.0) > 1.0:
                self._looked[name] = time.monotonic()
                self._start(name)

    def _start(self, name: str) -> None:
        if self._use_existing(name):
            return
        self._open()
        folder = self._folder(name)
        lease = Lease.take(folder, self.journal.run.run_id, self.settings.lease_seconds)
        if lease is None:
            why = f"{leases.holder(folder) or 'another run'} is making it now"
            self.journal.set(name, status="wait", why=why)
            return
        inputs = {need: self.artifacts[need] for need in self.plan[name].stage.needs}
        self._tasks[name] = task = Task(lease, inputs, time.monotonic())
        if self._use_existing(name):  # committed between the look and the lease
            self._drop(name)
            return
        try:
            self._prepare(name)
            self.journal.set(name, status="running", started=time.time(), why=self.plan[name].why)
            self._launch(name, task)
        except UserError as error:
            self._fail(name, str(error))
        except Exception as error:  # the code of this one stage: it can't be sent, its folder can't be written
            self._fail(name, f"It couldn't be started: {type(error).__name__}: {error}")

    def _use_existing(self, name: str) -> bool:
        """Takes a finished artifact as it is, unless it was asked for anew and this run hasn't made it."""
        planned = self.plan[name]
        artifact = read_artifact(self.root, name, planned.fingerprint)
        if artifact is None or damage(artifact):
            return False
        mine = artifact.manifest.run_id == self.journal.run.run_id
        if planned.forced and not mine:
            return False
        if mine:
            why = "made by this run before its driver died"
            self._finish_left_behind(name, artifact)
        elif planned.state == "cached":
            why = planned.why
        else:
            why = f"made meanwhile by run {artifact.manifest.run_id}"
        self.artifacts[name] = artifact
        self.journal.set(name, artifact, status="cached", why=why)
        return True

    def _finish_left_behind(self, name: str, artifact: Artifact) -> None:
        """Does what a driver that died just after the commit had left to do."""
        folder = self._folder(name)
        if self._stage_runs.left_behind(folder):
            self._open()
            self.journal.stage(name).mlflow_run_id = artifact.manifest.mlflow_run_id
            self._stage_runs.end(name, folder, "FINISHED", artifact)
        folder.remove(_ATTEMPT)

    def _prepare(self, name: str) -> None:
        """Empties the folder of what isn't to be gone on with: a finished artifact, what a forced one would
        replace.
        """
        folder, attempt = self._folder(name), {"forced": self.plan[name].forced}
        try:
            before = folder.read_json(_ATTEMPT)
        except (FileNotFoundError, ValueError):
            before = None
        if folder.exists(MANIFEST) or (attempt["forced"] and before != attempt):
            folder.remove(MANIFEST)  # first: from here on it isn't an artifact
            folder.clear()
            shutil.rmtree(scratch_path(self.root, name, self.plan[name].fingerprint), ignore_errors=True)
        folder.write_json(_ATTEMPT, attempt)

    def _launch(self, name: str, task: Task) -> None:
        planned, run = self.plan[name], self.journal.run
        self._folder(name).remove_temporary()
        mlflow_run_id = self._stage_runs.begin(planned, self._folder(name), task.inputs)
        context = Context(
            stage=name,
            fingerprint=planned.fingerprint,
            run_id=run.run_id,
            root=self.root.url,
            out=self._folder(name),
            scratch=scratch_path(self.root, name, self.plan[name].fingerprint),
            lease_owner=task.lease.owner,
            tracking_uri=run.tracking_uri,
            mlflow_run_id=mlflow_run_id,
            earlier=planned.earlier,
        )
        task.launch(planned, context, owned=bool(self._session and self._session.owned))

    def _open(self) -> None:
        """Starts Ray and MLflow, for the first stage that runs: a run with nothing to do needs neither."""
        run = self.journal.run
        if self._session is None:
            self._session = open_session(run.run_id)
            self._stop.install()  # Ray has put its own handlers in place
            run.dashboard = self._session.dashboard and f"http://{self._session.dashboard}"
        self._stage_runs.open(self.plan)

    # Collecting

    def _collect(self) -> None:
        """Takes in what has ended; waits a moment if nothing has."""
        for name, task in self._tasks.items():
            if task.lost and task.cancel_by is None:
                self.journal.incident(name, "The lease was lost; the work was cancelled.")
                task.cancel(self.settings.grace_seconds)
            elif task.cancel_by is not None and time.monotonic() > task.cancel_by:
                task.cancel(self.settings.grace_seconds)
        if self._session and time.monotonic() - self._checked > _CHECK_SECONDS:
            self._session.check()
            self._checked = time.monotonic()
        if self._tasks:
            for name in wait_for_any(self._tasks, _POLL_SECONDS):
                self._end(name)
        elif any(self.journal.status(name) == "wait" for name in self.journal.unfinished()):
            time.sleep(_POLL_SECONDS)

    def _end(self, name: str) -> None:
        task, stage = self._tasks[name], self.journal.stage(name)
        outcome = task.outcome()
        stage.seconds = time.time() - (stage.started or time.time())
        if task.cancelled:
            self._drop(name)
            self.journal.set(name, status="wait", why="its lease was lost: another run makes it")
            return
        if outcome.kind == "system" and task.tries <= self.settings.system_retries:
            self.journal.incident(name, f"Tried again after: {outcome.error}")
            self._launch(name, task)
            return
        artifact = None
        if outcome.kind == "ok":
            artifact = read_artifact(self.root, name, self.plan[name].fingerprint)
        if artifact is None:
            cancelled = "It was cancelled from outside." if outcome.kind == "cancelled" else None
            self._fail(name, outcome.error or cancelled or "It ended without an artifact.")
            return
        self.artifacts[name] = artifact
        self._stage_runs.end(name, self._folder(name), "FINISHED", artifact)
        self._folder(name).remove(_ATTEMPT)
        self._drop(name)
        self.journal.set(name, artifact, status="ran")

    def _fail(self, name: str, error: str) -> None:
        """The next attempt gets an MLflow run of its own; the shards that are done stay for it."""
        self._stage_runs.end(name, self._folder(name), "FAILED")
        self._drop(name)
        self.journal.set(name, status="failed", error=error)

    def _drop(self, name: str) -> None:
        with contextlib.suppress(OSError):  # else it runs out by itself
            self._tasks.pop(name).lease.release()

    def _heartbeats(self) -> None:
        while not self._ended.wait(self.settings.lease_seconds / 6):
            for task in list(self._tasks.values()):
                task.renew(self.settings.lease_seconds)
            with contextlib.suppress(OSError):
                self.journal.beat()

    # Ending

    def _close(self, fault: BaseException | None) -> dict[str, Any]:
        """Cancels what still runs, gives up leases, ends MLflow's runs and writes the summary."""
        hurried = isinstance(fault, KeyboardInterrupt)
        if self._tasks:
            stop_all(self._tasks, 0.1 if hurried else self.settings.grace_seconds)
        for name in list(self._tasks):
            self._stage_runs.end(name, self._folder(name), "KILLED")
            self._drop(name)
        reason = "the run was stopped" if self._stop.by is not None else f"the driver failed: {fault}"
        for name in self.journal.unfinished():
            self.journal.set(name, status="skipped", why=reason)
        failed = fault is not None or any(s.status == "failed" for s in self.journal.run.stages.values())
        status = "cancelled" if self._stop.by is not None else "failed" if failed else "ok"
        summary = self.journal.close(status, self.artifacts)
        self._stage_runs.close(status, summary)
        return summary
