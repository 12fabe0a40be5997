"""What a pipeline is made of: stages, the resources that they need, and the context that a stage works in."""

import collections
import dataclasses
import os
import pathlib
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster import record
from cluster.artifacts import Artifact
from cluster.config import StageConfig, nearest
from cluster.errors import Cancelled, RequestError
from cluster.folder import Folder
from cluster.lease import holder

LABELS = ("vllm", "train")
_RESERVED = {"runs", "mlflow"}
_CHECK_SECONDS = 2.0
_RATE_WINDOW_SECONDS = 60.0


@dataclass(frozen=True)
class Resources:
    """What a stage takes from the cluster.

    With a `label` ("vllm" or "train": a custom resource of Ray) the stage's own task only coordinates and
    takes `cpus`; the actors that it starts ask for the label and the GPUs. Without a label the task itself
    takes `gpus`.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    label: str | None = None

    def __post_init__(self) -> None:
        if self.label not in (None, *LABELS):
            raise ValueError(f"There is no group of machines for the label {self.label!r}; there is {LABELS}.")


@dataclass(frozen=True)
class Stage:
    """A node of the graph: a function that fills a folder from the artifacts of the stages that it needs.

    Change `version` when the function's results change. `sources` names outside files or folders (paths or
    URLs) whose content belongs to the fingerprint. `uses` tells from all stages' configurations whether a
    need is one; where it isn't, the needed stage isn't made for this one.
    """

    name: str
    version: str
    run: Callable[[Mapping[str, Artifact], Any, "Context"], None]
    config: type[StageConfig]
    needs: tuple[str, ...] = ()
    resources: Resources = Resources()
    sources: Callable[[Any], Sequence[str]] | None = None
    uses: Callable[[Mapping[str, Any], str], bool] | None = None


def narrowed(stages: Sequence[Stage], configs: Mapping[str, StageConfig]) -> list[Stage]:
    """The stages with only those needs that they use under these configurations."""
    return [
        dataclasses.replace(stage, needs=tuple(need for need in stage.needs if stage.uses(configs, need)))
        if stage.uses
        else stage
        for stage in stages
    ]


def ordered(stages: Sequence[Stage]) -> list[Stage]:
    """The stages with every one after those it needs, otherwise in the order given.

    Raises RequestError for a name that is double, reserved or malformed, an unknown need, or a circle.
    """
    by_name: dict[str, Stage] = {}
    for stage in stages:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", stage.name) or stage.name in _RESERVED:
            raise RequestError(f"{stage.name!r} can't be the name of a stage.")
        if stage.name in by_name:
            raise RequestError(f"Two stages are named {stage.name!r}.")
        by_name[stage.name] = stage
    result: dict[str, Stage] = {}
    visiting: list[str] = []

    def visit(name: str, wanted_by: str) -> None:
        if name in result:
            return
        if name not in by_name:
            raise RequestError(f"Stage {wanted_by!r} needs {name!r}, which isn't in the pipeline.")
        if name in visiting:
            raise RequestError(f"Stages need each other in a circle: {' -> '.join([*visiting, name])}.")
        visiting.append(name)
        for need in by_name[name].needs:
            visit(need, name)
        visiting.pop()
        result[name] = by_name[name]

    for stage in stages:
        visit(stage.name, stage.name)
    return list(result.values())


def leading_to(stages: Sequence[Stage], targets: Sequence[str]) -> list[Stage]:
    """The targets and all that they need, in the order given. Raises RequestError for an unknown one."""
    by_name = {stage.name: stage for stage in stages}
    wanted: set[str] = set()
    pending = list(targets)
    while pending:
        name = pending.pop()
        if name not in by_name:
            raise RequestError(f"There is no stage {name!r}; {nearest(name, by_name)}")
        if name not in wanted:
            wanted.add(name)
            pending += by_name[name].needs
    return [stage for stage in stages if stage.name in wanted]


@dataclass
class Context:
    """What a stage's function gets besides its inputs and configuration.

    `earlier`: the artifact of one of the configurations that the stage's own may start from
    (`StageConfig.earlier`), if there is one. It can be sent to actors. `set_rows` and `set_figures` count only in the
    process that the stage's function runs in; everything else works anywhere.
    """

    stage: str
    fingerprint: str
    run_id: str
    root: str
    out: Folder
    scratch: pathlib.Path
    lease_owner: str
    tracking_uri: str | None = None
    mlflow_run_id: str | None = None
    earlier: Artifact | None = None
    rows: int | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._checked = 0.0
        self._tracker: Any = None
        self._history: collections.deque[tuple[float, int]] = collections.deque()
        self._progress_written = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def namespace(self) -> str:
        """The Ray namespace of this run; the driver ends every named actor in it when the run ends."""
        return record.namespace(self.run_id)

    def progress(self, done: int, total: int, unit: str = "rows", **figures: float) -> None:
        """Says how far the stage is; cheap enough for every step (written at most once a second).

        The rate and the time left come from the last minute. `figures` (a loss, tokens per second) are shown
        with it.
        """
        now = time.time()
        if not self._history or done < self._history[-1][1]:
            self._history.clear()
        self._history.append((now, done))
        if now - self._progress_written < 1.0 and done < total:
            if len(self._history) > 1:
                self._history.pop()
            return
        # the last point before the window stays: where points are rare, the rate spans the time between them
        while len(self._history) > 2 and now - self._history[1][0] > _RATE_WINDOW_SECONDS:
            self._history.popleft()
        self._progress_written = now
        start, first = self._history[0]
        rate = (done - first) / (now - start) if now > start else 0.0
        record.write_progress(
            Folder(self.root),
            self.run_id,
            record.Progress(
                stage=self.stage,
                done=done,
                total=total,
                unit=unit,
                rate=rate,
                updated=now,
                figures={name: float(value) for name, value in figures.items()},
            ),
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of the stage's MLflow run; does nothing in a run without tracking."""
        if tracker := self._get_tracker():
            tracker.log_metrics(dict(metrics), step)

    def log_artifact(self, local_path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Copies a small local file (a report, a plot, samples) to the stage's MLflow run."""
        if tracker := self._get_tracker():
            tracker.log_artifact(os.fspath(local_path), artifact_path)

    def log_input(self, name: str, digest: str, rows: int | None = None) -> None:
        """Records a data set that the stage reads, with the digest of its content."""
        if tracker := self._get_tracker():
            tracker.log_input(name, digest, rows)

    def register_adapter(self, local_folder: str | os.PathLike[str], params: Mapping[str, Any]) -> None:
        """Keeps a trained adapter's files as a new version of the registered model that has the stage's name."""
        if tracker := self._get_tracker():
            tracker.register_adapter(local_folder, self.stage, params)

    def _get_tracker(self) -> Any:
        if self._tracker is None and self.mlflow_run_id and self.tracking_uri:
            from cluster.tracking import StageTracker

            self._tracker = StageTracker(self.tracking_uri, self.mlflow_run_id)
        return self._tracker

    def set_rows(self, num_rows: int) -> None:
        """The number of rows that the manifest states; by default that of the Parquet files at the top."""
        self.rows = int(num_rows)

    def set_figures(self, figures: Mapping[str, Any]) -> None:
        """JSON values for the manifest; those under `results` ({method: {metric: number}}) go to the run's
        summary.
        """
        self.figures.update(figures)

    def incident(self, text: str) -> None:
        """Puts something that went wrong and was got over (a retry, a lost worker) into the run's record."""
        record.write_incident(Folder(self.root), self.run_id, self.stage, text)

    def check(self) -> None:
        """Raises Cancelled if the lease was lost or the run is ending. Call it between shards and steps: it
        is cheap.
        """
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        try:
            current = holder(self.out)
        except OSError:  # a store that doesn't answer for a moment; the driver's heartbeat decides
            return
        if current is None or current.owner != self.lease_owner:
            raise Cancelled(f"Stage {self.stage} no longer has its lease on {self.out.url}.")


def new_run_id() -> str:
    """Sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
