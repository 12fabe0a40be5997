"""Plans, runs and progress as text, for the terminal of the run and for every other that watches it."""

import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from cluster import record
from cluster.folder import Folder
from cluster.plan import Planned
from cluster.record import Progress, RunRecord, StageRecord

_LINES_EVERY_SECONDS = 8.0
_BAR = 20


def duration(seconds: float) -> str:
    """`4.2 s`, `3:05`, `2:03:05`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned to the left, the first row being the heads."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def plan_table(plan: Sequence[Planned]) -> str:
    rows = [(planned.stage.name, planned.state, planned.fingerprint, planned.why) for planned in plan]
    return table([("stage", "state", "fingerprint", "why"), *rows])


def progress_text(progress: Progress) -> str:
    """Bar, count, rate, time left and the stage's own figures on one line."""
    share = min(1.0, progress.done / progress.total) if progress.total else 0.0
    bar = "#" * round(share * _BAR)
    parts = [f"[{bar:.<{_BAR}}] {progress.done}/{progress.total} {progress.unit}"]
    if progress.rate > 0:
        parts.append(f"{progress.rate:.3g} {progress.unit}/s")
    if progress.seconds_left is not None and progress.done < progress.total:
        parts.append(f"{duration(progress.seconds_left)} left")
    parts += [f"{name} {value:.4g}" for name, value in progress.figures.items()]
    return ", ".join(parts)


def _stage_line(name: str, stage: StageRecord, progress: Progress | None, width: int) -> str:
    text = f"{name:<{width}}  {stage.status:<8}"
    if stage.status == "running":
        text += f"  {duration(time.time() - (stage.started or time.time())):>8}"
        return f"{text}  {progress_text(progress)}" if progress else text
    if stage.status in ("ran", "failed"):
        text += f"  {duration(stage.seconds):>8}"
    if stage.status in ("failed", "skipped", "wait"):
        text += f"  {(stage.error or stage.why).splitlines()[0]}"
    return text.rstrip()


def run_block(run: RunRecord, progress: Mapping[str, Progress]) -> list[str]:
    """The whole state of a run: a head line, and a line for each stage."""
    width = max(len(name) for name in run.stages)
    status = "killed" if run.is_abandoned() else run.status
    seconds = time.time() - run.started if status == "running" else run.seconds
    lines = [f"run {run.run_id}  profile {run.profile}  {status}  {duration(seconds)}"]
    if status == "running" and run.dashboard:
        lines[0] += f"  dashboard {run.dashboard}"
    return lines + [_stage_line(name, stage, progress.get(name), width) for name, stage in run.stages.items()]


def running_progress(root: Folder, run: RunRecord) -> dict[str, Progress]:
    """The progress of the stages that run now, leaving out what an earlier attempt has left."""
    names = [name for name, stage in run.stages.items() if stage.status == "running"]
    found = record.read_progress(root, run.run_id, names)
    return {name: item for name, item in found.items() if item.updated >= (run.stages[name].started or 0.0)}


class Block:
    """Lines that are drawn over their last state on a terminal."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._height = 0

    def draw(self, lines: Sequence[str]) -> None:
        columns = shutil.get_terminal_size().columns
        up = f"\x1b[{self._height}F" if self._height else ""
        text = "".join(f"\x1b[2K{line[: columns - 1]}\n" for line in lines)
        self._stream.write(f"{up}{text}\x1b[J")
        self._stream.flush()
        self._height = len(lines)


class Live:
    """Shows a run as it goes: a block that refreshes on a terminal, else a line for each change and now and
    then.
    """

    def __init__(self, root: Folder, stream: TextIO):
        self._root = root
        self._stream = stream
        self._block = Block(stream) if stream.isatty() else None
        self._shown: dict[str, str] = {}  # the stages' states, and the dashboard's address
        self._lined = 0.0

    def __call__(self, run: RunRecord) -> None:
        if self._block:
            self._block.draw(run_block(run, running_progress(self._root, run)))
            return
        if run.dashboard and "dashboard" not in self._shown:
            self._shown["dashboard"] = run.dashboard
            print(f"Ray's dashboard, while the run goes on: {run.dashboard}", file=self._stream, flush=True)
        due = time.monotonic() - self._lined > _LINES_EVERY_SECONDS
        progress = running_progress(self._root, run) if due else {}
        width = max(len(name) for name in run.stages)
        for name, stage in run.stages.items():
            changed = self._shown.get(name, "pending") != stage.status
            if changed or name in progress:
                self._shown[name] = stage.status
                print(_stage_line(name, stage, progress.get(name), width), file=self._stream, flush=True)
        if due:
            self._lined = time.monotonic()


def final_table(summary: Mapping[str, Any]) -> str:
    """What is done, failed and skipped, with times, rows and reasons."""
    rows = [("stage", "status", "time", "rows", "why")]
    for name, stage in summary["stages"].items():
        time_taken = duration(stage["seconds"]) if stage["status"] in ("ran", "failed") else ""
        count = "" if stage["rows"] is None else str(stage["rows"])
        rows.append((name, stage["status"], time_taken, count, " ".join((stage["error"] or stage["why"]).split())))
    return table(rows)


def results_table(results: Mapping[str, Mapping[str, Any]], width: int) -> str:
    """Methods by the metrics that any of them has, as many as `width` has room for; those whose names share what
    stands before a slash in a table of their own.
    """
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for method, values in results.items():
        groups.setdefault(method.rpartition("/")[0], {})[method] = values
    return "\n\n".join(_group_table(group, width) for group in groups.values())


def _group_table(results: Mapping[str, Mapping[str, Any]], width: int) -> str:
    found = (metric for values in results.values() for metric, value in values.items() if value is not None)
    metrics = list(dict.fromkeys(found))
    columns = [("method", *results)]
    columns += [(metric, *(_number(values.get(metric)) for values in results.values())) for metric in metrics]
    ends = itertools.accumulate(max(map(len, column)) + 2 for column in columns)  # two spaces between
    num_shown = max(2, sum(end - 2 <= width for end in ends))
    text = table(list(zip(*columns[:num_shown], strict=True)))
    num_left = len(columns) - num_shown
    return f"{text}\nand {num_left} more: {', '.join(metrics[num_shown - 1 :])}" if num_left > 0 else text


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
