"""The tables that evaluation reads: a benchmark's items and the edits of them, one Parquet file at a time."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cluster.artifacts import Artifact
from cluster.errors import UserError
from cluster.folder import Folder
from stages.evaluate.metrics import num_clip_frames
from stages.train.backbones.clip_files import read_clip

BENCHMARK = "benchmark"
MISSING_COLUMNS = ("item_id", "source_id", "edit_type", "reason")  # of items that a copy of the benchmark lacks
BENCHMARK_COLUMNS = ("item_id", "source_id", "image", "edit_type", "instruction", "metadata")
EDITS_COLUMNS = ("item_id", "method", "image", "seconds")
OPTIONAL_COLUMNS = ("clip", "reason", "src_caption", "tgt_caption", "object")  # of either table
MAX_PIXELS = 50_000_000


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The tables of a benchmark, in one artifact."""

    folder: Folder
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class EditsFile:
    """One Parquet file of edits: the unit of work and of resuming."""

    folder: Folder
    name: str


def find_benchmark(inputs: Mapping[str, Artifact]) -> tuple[str, Benchmark]:
    for stage in sorted(inputs, key=lambda name: (name != BENCHMARK, name)):
        folder = inputs[stage].folder
        names = tuple(
            name
            for name in folder.list(".parquet", recursive=True)
            if (stage == BENCHMARK or name.startswith(BENCHMARK))
            and set(BENCHMARK_COLUMNS) <= set(_columns(folder, name))
        )
        if names:
            return stage, Benchmark(folder, names)
    raise UserError(
        f"evaluate: there is no benchmark in what it got ({', '.join(sorted(inputs))}): a stage `benchmark`, "
        f"or tables whose names begin so, with the columns {', '.join(BENCHMARK_COLUMNS)}."
    )


def read_items(benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """What the scores say about every item; of those that should be there and aren't, too: `unscored` says why."""
    items: dict[str, dict[str, Any]] = {}
    for name in benchmark.names:
        for row in benchmark.folder.read_table(name, ["item_id", "source_id", "edit_type"]).to_pylist():
            if row["item_id"] in items:
                raise UserError(f"evaluate: {benchmark.folder.path(name)} has item {row['item_id']!r} twice.")
            items[row["item_id"]] = row
    for name in benchmark.folder.list(".parquet", recursive=True):
        if name.startswith("missing/"):
            for row in benchmark.folder.read_table(name, list(MISSING_COLUMNS)).to_pylist():
                row["unscored"] = f"benchmark: {row.pop('reason')}"
                items[row["item_id"]] = row
    return items


def _columns(folder: Folder, name: str) -> list[str]:
    with folder.open(name) as stream:
        return pq.ParquetFile(stream).schema_arrow.names


def find_edits(inputs: Mapping[str, Artifact]) -> dict[str, EditsFile]:
    files = {
        f"{stage}/{name}": EditsFile(artifact.folder, name)
        for stage, artifact in sorted(inputs.items())
        for name in artifact.folder.list(".parquet", recursive=True)
        if set(EDITS_COLUMNS) <= set(_columns(artifact.folder, name))
    }
    if not files:
        raise UserError(f"evaluate: there are no edits to score in what it got: {', '.join(sorted(inputs))}.")
    return files


def check_edits(files: Mapping[str, EditsFile], items: Mapping[str, Any]) -> list[str]:
    """The methods, in the order of the files; every (item, method) must be known and stand there once."""
    seen: dict[tuple[str, str], str] = {}
    for name, file in files.items():
        table = file.folder.read_table(file.name, ["item_id", "method"])
        for item_id, method in zip(table["item_id"].to_pylist(), table["method"].to_pylist(), strict=True):
            if item_id not in items:
                raise UserError(f"evaluate: {name} has an edit of {item_id!r}, which the benchmark doesn't have.")
            if other := seen.get((item_id, method)):
                raise UserError(f"evaluate: item {item_id!r} has two edits by {method!r}, in {other} and {name}.")
            seen[item_id, method] = name
    return list(dict.fromkeys(method for _, method in seen))


def pairs(benchmark: Benchmark, file: EditsFile) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each edit of a file with its item; both have of OPTIONAL_COLUMNS those that their tables have."""
    edits = file.folder.read_table(file.name, _present(file.folder, file.name, EDITS_COLUMNS)).to_pylist()
    wanted = {edit["item_id"] for edit in edits}
    items = {}
    for name in benchmark.names:
        ids = benchmark.folder.read_table(name, ["item_id"])["item_id"].to_pylist()
        if wanted.isdisjoint(ids):
            continue
        table = benchmark.folder.read_table(name, _present(benchmark.folder, name, BENCHMARK_COLUMNS))
        chosen = pa.array([item_id in wanted for item_id in ids])
        items |= {row["item_id"]: row for row in table.filter(chosen).to_pylist()}
    for edit in edits:
        yield items[edit["item_id"]], edit


def _present(folder: Folder, name: str, columns: tuple[str, ...]) -> list[str]:
    there = _columns(folder, name)
    return [*columns, *(column for column in OPTIONAL_COLUMNS if column in there)]


def read_image(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels are over {MAX_PIXELS}")
        return image.convert("RGB")


def read_clips(
    item: Mapping[str, Any], edit: Mapping[str, Any], num_frames: int | None
) -> tuple[list[Image.Image], list[Image.Image]]:
    """The frames of an item's clip and of its edit, as many: what the scene world says of the item, else the
    benchmark's `num_frames`, else what the longer file has, in which neighbours that are alike are one.

    Raises as `read_clip` does.
    """
    given = (item["clip"], edit.get("clip"))
    num_frames = num_clip_frames(item["metadata"]) or num_frames or max(len(read_clip(data)) for data in given)
    source, edited = (read_clip(data, num_frames) for data in given)
    return source, edited
