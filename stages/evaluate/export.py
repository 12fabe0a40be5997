"""A finished run's edits in the folders and names that a benchmark's official scripts read.

    python -m stages.evaluate.export --run runs/runs/latest.json --layout gedit --out results

gedit    METHOD/fullset/TASK/LANGUAGE/KEY.png, and the source beside it as KEY_SRCIMG.png
imgedit  METHOD/KEY.png; where its judge was asked, its result.json, average_score.json and typescore.json, too
items    METHOD/ITEM_ID.png, for every other benchmark, and for edit.folders of another run; of clips (--stage
         edit_video) METHOD/ITEM_ID.mp4, without loss

Exit code 1 if an item has no edit: the official scripts would wait for it or leave it out.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts import MANIFEST, damage, read_artifact
from cluster.errors import FAILED, OK, RequestError, UserError, exit_code
from cluster.folder import Folder
from stages.evaluate.imgedit_scores import write_scores
from stages.evaluate.tables import BENCHMARK_COLUMNS, EDITS_COLUMNS, MISSING_COLUMNS, read_image
from stages.train.backbones.clip_files import FRAME_MILLISECONDS, clip_seconds, read_clip
from stages.train.backbones.video_files import write_video

CLIPS = "edit_video"
LAYOUTS = ("gedit", "imgedit", "items")
EDIT_STAGES = ("edit", "edit_customization", CLIPS)
REPLY_COLUMNS = ("item_id", "method", "call", "text")  # of a table of the judge's raw replies
NUMBERED = ("pass", "attempt")  # the reply that counts is the first pass's last attempt
IMGEDIT_CALL = "imgedit"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 where pictures are missing, 2 for a run that can't be exported so."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, metavar="SUMMARY", help="a finished run's summary.json or latest.json")
    parser.add_argument("--layout", required=True, choices=LAYOUTS)
    parser.add_argument("--out", required=True, metavar="DIR", help="a path or an fsspec URL")
    parser.add_argument("--stage", default="edit", choices=EDIT_STAGES, help="whose edits (%(default)s)")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="all, if none is named")
    return exit_code(lambda: _export(parser.parse_args(argv)))


def _export(arguments: argparse.Namespace) -> int:
    summary = _read_summary(arguments.run)
    edits = _artifact(summary, arguments.run, arguments.stage)
    benchmark = _benchmark(summary, arguments.run, arguments.stage)
    items = _items(benchmark, arguments.layout)
    methods = list(dict.fromkeys(row["method"] for row in _rows(edits, EDITS_COLUMNS, only=("method",))))
    for method in arguments.methods or methods[:1] or ["any method"]:
        if method not in methods:
            known = ", ".join(methods) or "none"
            raise RequestError(f"{arguments.run}: {arguments.stage} has no edits by {method}; it has some by {known}.")
    out, counts = Folder(arguments.out), collections.Counter()
    lacking: dict[str, str] = {}
    noun, suffix = ("clip", "mp4") if arguments.stage == CLIPS else ("picture", "png")
    lengths = _clip_lengths(edits, benchmark) if noun == "clip" else {}
    for row in _rows(edits, EDITS_COLUMNS, ("reason", "clip")):
        method = row["method"]
        if arguments.methods and method not in arguments.methods:
            continue
        try:
            data = _as_video(row["clip"], lengths[method]) if noun == "clip" else _as_png(row["image"] or b"")
        except (OSError, ValueError, SyntaxError):
            lacking.setdefault(method, f"{row['item_id']} ({row.get('reason') or f'it has no {noun}'})")
            counts[method] += 0
            continue
        name = _name(arguments.layout, method, row["item_id"])
        _write(out, f"{name}.{suffix}", data)
        counts[method] += 1
    if arguments.layout == "gedit":
        _write_sources(out, benchmark, list(counts))
    if arguments.layout == "imgedit":
        _write_judged(out, summary, arguments.run, {item_id: row["edit_type"] for item_id, row in items.items()})
    num_expected = _num_expected(benchmark, len(items))
    absent = next((f"{row['item_id']} ({row['reason']})" for row in _rows(benchmark, MISSING_COLUMNS)), None)
    for method, count in counts.items():
        example = lacking.get(method) or (absent if count < num_expected else None)
        told = f"; without a {noun} is {example}" if example else ""
        print(f"{out.path(method)}: {count} of {num_expected} {noun}s{told}")
    return OK if all(count == num_expected for count in counts.values()) else FAILED


def _read_summary(path: str) -> Mapping[str, Any]:
    parent, name = posixpath.split(path)
    try:
        summary = Folder(parent or ".").read_json(name)
        return {stage: dict(record) for stage, record in summary["stages"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RequestError(f"{path} is no summary.json of a run. It stands in ROOT/runs/RUN_ID/.") from None


def _artifact(stages: Mapping[str, Any], summary: str, name: str) -> Folder:
    """The stage's artifact: under the summary's own root, which may have moved, else where the run left it."""
    stage = stages.get(name)
    if name not in _finished(stages):
        raise RequestError(f"{summary}: the run has no finished stage {name}; it has {', '.join(_finished(stages))}.")
    url = Folder(summary).url
    # ROOT/runs/RUN_ID/summary.json, ROOT/runs/latest.json, the root that the run had
    for root in (url.rsplit("/", 3)[0], url.rsplit("/", 2)[0], stage["artifact"].rsplit("/", 2)[0]):
        artifact = read_artifact(Folder(root), name, stage["fingerprint"]) if root else None
        if artifact is None:
            continue
        if wrong := damage(artifact):
            raise UserError(
                f"{artifact.folder.url}: {wrong}. Copy it anew, or run the pipeline again: it makes it anew."
            )
        return artifact.folder
    raise RequestError(f"{summary}: the artifact of {name} isn't at {stage['artifact']} any more.")


def _finished(stages: Mapping[str, Any]) -> list[str]:
    return [name for name, stage in stages.items() if stage.get("status") in ("ran", "cached")]


def _benchmark(stages: Mapping[str, Any], summary: str, edit: str) -> Folder:
    name = f"{edit.removeprefix('edit').removeprefix('_')}_benchmark".removeprefix("_")
    on_disk = f"ingest_{name}"
    return _artifact(stages, summary, on_disk if on_disk in _finished(stages) else name)


def _items(benchmark: Folder, layout: str) -> dict[str, dict[str, Any]]:
    """What the layout needs of every item. Raises RequestError if the items aren't of the layout's benchmark."""
    items = {}
    for row in _rows(benchmark, BENCHMARK_COLUMNS, only=("item_id", "edit_type", "metadata")):
        items[row["item_id"]] = row
        try:
            kind = json.loads(row["metadata"]).get("benchmark")
        except (TypeError, ValueError, AttributeError):
            kind = None
        if layout not in ("items", kind):
            raise RequestError(
                f"Item {row['item_id']!r} of {benchmark.url} isn't one of the benchmark of --layout {layout}; "
                f"--layout {kind if kind in LAYOUTS else 'items'} is for it."
            )
    return items


def _rows(
    folder: Folder, columns: Sequence[str], optional: Sequence[str] = (), only: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The rows of all tables of the folder with these columns, one table after the other."""
    for name in folder.list(".parquet", recursive=True):
        try:
            with folder.open(name) as stream:
                there = pq.ParquetFile(stream).schema_arrow.names
            if not set(columns) <= set(there):
                continue
            wanted = only or [*columns, *(column for column in optional if column in there)]
            rows = folder.read_table(name, list(wanted)).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{folder.path(name)} can't be read ({error}). Copy the artifact anew.") from None
        yield from rows


def _write(out: Folder, name: str, data: bytes) -> None:
    try:
        out.write_bytes(name, data, durable=False)
    except OSError as error:
        raise RequestError(f"--out {out.url}: {name} can't be written ({error.strerror or error}).") from None


def _name(layout: str, method: str, item_id: str) -> str:
    return f"{method}/fullset/{item_id}" if layout == "gedit" else f"{method}/{item_id}"


def _as_png(data: bytes) -> bytes:
    """The picture as PNG. Raises as `read_image` does."""
    image = read_image(data)
    if data.startswith(b"\x89PNG"):
        return data
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _as_video(data: bytes | None, num_frames: int | None) -> bytes:
    """The clip as an MP4 file without loss. Raises as `read_clip` does."""
    seconds = clip_seconds(data or b"")
    return write_video(read_clip(data, num_frames), seconds or FRAME_MILLISECONDS / 1000)


def _clip_lengths(edits: Folder, benchmark: Folder) -> dict[str, int | None]:
    """The frames of each method's clips: as many as it was to make; of what others made, as many as sources have."""
    made, given = (folder.read_json(MANIFEST)["config"] for folder in (edits, benchmark))
    lengths = dict.fromkeys(made.get("folders", {}), given.get("num_frames"))
    return collections.defaultdict(lambda: made.get("num_frames"), lengths)


def _write_sources(out: Folder, benchmark: Folder, methods: Sequence[str]) -> None:
    for row in _rows(benchmark, BENCHMARK_COLUMNS, only=("item_id", "image")):
        data = _as_png(row["image"])
        for method in methods:
            _write(out, f"{_name('gedit', method, row['item_id'])}_SRCIMG.png", data)


def _write_judged(out: Folder, stages: Mapping[str, Any], summary: str, edit_types: Mapping[str, str]) -> None:
    """The score files of every method that ImgEdit's judge was asked about."""
    if "evaluate" not in _finished(stages):
        return
    replies: dict[str, dict[str, str]] = collections.defaultdict(dict)
    rows = _rows(_artifact(stages, summary, "evaluate"), REPLY_COLUMNS, NUMBERED)
    for row in sorted(rows, key=lambda row: row.get("attempt", 0)):
        if row["call"] == IMGEDIT_CALL and not row.get("pass") and row["item_id"] in edit_types:
            replies[row["method"]][row["item_id"]] = row["text"]
    for method, texts in replies.items():
        write_scores(out.sub(method), texts, edit_types)


def _num_expected(benchmark: Folder, num_items: int) -> int:
    if benchmark.exists("benchmark.json"):
        return benchmark.read_json("benchmark.json")["num_expected"]
    return num_items


if __name__ == "__main__":
    raise SystemExit(main())
