"""The driver's side of a run's record: opening it or going on with one, every change, the heartbeat, the
summary.
"""

import threading
import time
from collections.abc import Mapping
from typing import Any

from cluster import record
from cluster.artifacts import Artifact
from cluster.dag import new_run_id
from cluster.folder import Folder
from cluster.lease import Lease, this_process
from cluster.record import UNFINISHED, RunRecord, StageRecord

_SUMMARY_FIELDS = ("status", "why", "seconds", "fingerprint", "artifact", "rows", "mlflow_run_id", "error")


class Journal:
    """Keeps `run.json` true while the driver lives. `resumed`: an earlier driver of this run had died."""

    def __init__(self, root: Folder, run: RunRecord, lease: Lease, resumed: bool):
        self.root = root
        self.run = run
        self.resumed = resumed
        self._lease = lease
        self._lock = threading.Lock()

    @classmethod
    def open(cls, root: Folder, profile: str, request: Mapping[str, Any], lease_seconds: float) -> "Journal":
        """Goes on with the last run if its driver died and the same is asked for; else begins a new one."""
        now, request = time.time(), dict(request)
        ids = record.run_ids(root)
        last = record.read_run(root, ids[-1]) if ids else None
        if last is not None and last.is_abandoned():
            lease = Lease.take(record.run_folder(root, last.run_id), last.run_id, lease_seconds)
            if lease is not None and (last.profile, last.request) == (profile, request):
                last.driver, last.updated = this_process(), now
                text = "The driver died; another one went on with the run."
                record.write_incident(root, last.run_id, "driver", text)
                return cls(root, last, lease, True)
            if lease is not None:
                last.status = "killed"
                record.write_run(root, last)
                lease.release()
        run = RunRecord(
            run_id=new_run_id(),
            profile=profile,
            started=now,
            updated=now,
            driver=this_process(),
            request=request,
        )
        lease = Lease.take(record.run_folder(root, run.run_id), run.run_id, lease_seconds)
        if lease is None:
            raise RuntimeError(f"The folder of the new run {run.run_id} is held by another.")
        record.write_run(root, run)
        return cls(root, run, lease, False)

    def status(self, name: str) -> str:
        return self.run.stages[name].status

    def unfinished(self) -> list[str]:
        return [name for name, stage in self.run.stages.items() if stage.status in UNFINISHED]

    def stage(self, name: str) -> StageRecord:
        return self.run.stages[name]

    def set(self, name: str, artifact: Artifact | None = None, **changes: Any) -> None:
        """Changes a stage's record and writes it; with an artifact also its rows and its MLflow run."""
        stage = self.run.stages[name]
        if artifact is not None:
            changes |= {"rows": artifact.manifest.rows, "mlflow_run_id": artifact.manifest.mlflow_run_id}
        if any(getattr(stage, key) != value for key, value in changes.items()):
            for key, value in changes.items():
                setattr(stage, key, value)
            self.write()

    def incident(self, name: str, text: str) -> None:
        record.write_incident(self.root, self.run.run_id, name, text)

    def write(self) -> None:
        with self._lock:
            self.run.updated = time.time()
            self.run.seconds = self.run.updated - self.run.started
            record.write_run(self.root, self.run)

    def beat(self) -> None:
        """Says that the driver lives."""
        self._lease.beat()
        self.write()

    def close(self, status: str, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
        """Writes the end of the run, its summary and the copy of it at `runs/latest.json`; returns the
        summary.
        """
        self.run.status = status
        self.write()
        summary = self.summary(artifacts)
        record.run_folder(self.root, self.run.run_id).write_json("summary.json", summary, sort_keys=False)
        self.root.sub("runs").write_json("latest.json", summary, sort_keys=False)
        self._lease.release()
        return summary

    def summary(self, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
        """The run's stages, and the results of those whose figures have any, joined by method."""
        results: dict[str, dict[str, Any]] = {}
        for name in self.run.stages:
            figures = artifacts[name].manifest.figures if name in artifacts else {}
            for method, metrics in figures.get("results", {}).items():
                results.setdefault(method, {}).update(metrics)
        stages = {
            name: {key: getattr(stage, key) for key in _SUMMARY_FIELDS} for name, stage in self.run.stages.items()
        }
        return {
            "run_id": self.run.run_id,
            "profile": self.run.profile,
            "status": "ok" if self.run.status == "ok" else "failed",
            "seconds": self.run.seconds,
            "stages": stages,
            "results": results,
        }
