"""A run's files under `<root>/runs/<run id>/`: what the driver and the stages write and every watcher reads.

run.json            the state of the run and of its stages, renewed by the driver every few seconds
progress/STAGE.json how far a stage is, written by the stage
incidents/*.json    what went wrong and was got over
logs/STAGE.log      what a stage printed, and the traceback if it failed
summary.json        the result, written at the end
"""

import time
import uuid
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.folder import Folder
from cluster.lease import LEASE_SECONDS, Process

RUN_FILE = "run.json"
UNFINISHED = ("pending", "wait", "running")


class StageRecord(BaseModel):
    """status: pending, wait (another run makes it), running, ran, cached, failed or skipped."""

    status: str = "pending"
    why: str = ""
    started: float | None = None
    seconds: float = 0.0
    fingerprint: str = ""
    artifact: str = ""
    rows: int | None = None
    mlflow_run_id: str | None = None
    error: str | None = None


class RunRecord(BaseModel):
    """status: running, ok, failed, cancelled, or killed (the driver died and nobody went on with the run)."""

    run_id: str
    profile: str
    status: str = "running"
    started: float
    updated: float
    seconds: float = 0.0
    driver: Process
    request: dict[str, Any] = {}
    stages: dict[str, StageRecord] = {}
    dashboard: str | None = None
    tracking_uri: str | None = None
    mlflow_run_id: str | None = None

    def is_abandoned(self) -> bool:
        """Whether the run says that it goes on, but its driver is gone."""
        silent = time.time() - self.updated > 2 * LEASE_SECONDS
        return self.status == "running" and (silent or self.driver.is_dead_here())


class Progress(BaseModel):
    """`rate` in units per second over the last minute; times in seconds since the epoch."""

    stage: str
    done: int
    total: int
    unit: str
    rate: float
    updated: float
    figures: dict[str, float] = {}

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate > 0 else None


def namespace(run_id: str) -> str:
    return f"pairless-{run_id}"


def run_folder(root: Folder, run_id: str) -> Folder:
    return root.sub(f"runs/{run_id}")


def run_ids(root: Folder) -> list[str]:
    """The ids of all runs under the root, oldest first."""
    return root.sub("runs").subfolders()


def read_run(root: Folder, run_id: str) -> RunRecord | None:
    try:
        return RunRecord.model_validate(run_folder(root, run_id).read_json(RUN_FILE))
    except (FileNotFoundError, ValidationError, ValueError):
        return None


def write_run(root: Folder, run: RunRecord) -> None:
    content = run.model_dump(mode="json")
    run_folder(root, run.run_id).write_json(RUN_FILE, content, durable=False, sort_keys=False)


def write_progress(root: Folder, run_id: str, progress: Progress) -> None:
    try:
        name = f"progress/{progress.stage}.json"
        run_folder(root, run_id).write_json(name, progress.model_dump(mode="json"), durable=False)
    except OSError:  # a figure for the eye; never a reason to stop the work
        pass


def read_progress(root: Folder, run_id: str, stages: list[str]) -> dict[str, Progress]:
    """The progress of those of the stages that have written any."""
    folder = run_folder(root, run_id).sub("progress")
    result = {}
    for stage in stages:
        try:
            result[stage] = Progress.model_validate(folder.read_json(f"{stage}.json"))
        except (OSError, ValidationError, ValueError):
            continue
    return result


def write_incident(root: Folder, run_id: str, stage: str, text: str) -> None:
    name = f"incidents/{time.strftime('%Y%m%d-%H%M%S')}-{stage}-{uuid.uuid4().hex[:6]}.json"
    run_folder(root, run_id).write_json(name, {"stage": stage, "text": text, "time": time.time()})


def read_incidents(root: Folder, run_id: str) -> list[dict[str, Any]]:
    """The run's incidents, oldest first: {stage, text, time}."""
    folder = run_folder(root, run_id).sub("incidents")
    return sorted((folder.read_json(name) for name in folder.list(".json")), key=lambda item: item["time"])
