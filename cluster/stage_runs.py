"""The stages' MLflow runs as the driver keeps them: begun, gone on with after a crash, ended."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from cluster.artifacts import Artifact
from cluster.folder import Folder
from cluster.journal import Journal
from cluster.plan import Planned

_FILE = ".mlflow_run_id"


class StageRuns:
    """`start` is `cluster.tracking.start_run`, or None to go without MLflow.

    A stage's run id lies in its working folder for as long as the stage isn't done, so that a driver that
    comes after a crash goes on in the same run.
    """

    def __init__(self, start: Callable[..., Any] | None, journal: Journal):
        self._start = start
        self._journal = journal
        self._tracking: Any = None

    def open(self, plan: Mapping[str, Planned]) -> None:
        """Starts MLflow; it takes seconds, so a run with nothing to do never gets here."""
        if self._start is None or self._tracking is not None:
            return
        run = self._journal.run
        configs = {name: planned.config.model_dump(mode="json") for name, planned in plan.items()}
        self._tracking = self._start(self._journal.root, run.run_id, run.profile, list(plan), configs)
        run.tracking_uri, run.mlflow_run_id = self._tracking.tracking_uri, self._tracking.parent_run_id
        self._journal.write()

    def begin(self, planned: Planned, folder: Folder, inputs: Mapping[str, Artifact]) -> str | None:
        """The id of the stage's run: the one that an attempt cut short has left in the folder, else a new
        one.
        """
        if self._tracking is None:
            return None
        name = planned.stage.name
        left = folder.read_text(_FILE).strip() if folder.exists(_FILE) else None
        config = planned.config.model_dump(mode="json")
        mlflow_run_id = self._tracking.stage_run(name, planned.fingerprint, config, inputs, resume_run_id=left)
        folder.write_text(_FILE, mlflow_run_id)
        self._journal.stage(name).mlflow_run_id = mlflow_run_id
        return mlflow_run_id

    def end(self, name: str, folder: Folder, status: str, artifact: Artifact | None = None) -> None:
        """Ends the stage's run: FINISHED, FAILED, or KILLED, which leaves the id for the next attempt to go
        on with.
        """
        mlflow_run_id = self._journal.stage(name).mlflow_run_id
        try:
            if self._tracking and mlflow_run_id:
                self._tracking.end_stage(mlflow_run_id, status, artifact)
            if status != "KILLED":
                folder.remove(_FILE)
        except Exception as error:  # book-keeping: the artifact is there all the same
            with contextlib.suppress(OSError):  # a full disk takes neither
                self._journal.incident(name, f"MLflow didn't take the stage's end: {type(error).__name__}: {error}")

    def left_behind(self, folder: Folder) -> bool:
        """Whether a driver died between a stage's commit and the end of its MLflow run."""
        return self._start is not None and folder.exists(_FILE)

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        """Ends the parent run. status: that of the run's record."""
        if self._tracking:
            self._tracking.end({"ok": "FINISHED", "cancelled": "KILLED"}.get(status, "FAILED"), summary)
