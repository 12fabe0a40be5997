"""What the report shows, read from the artifacts that it got and from the record of the run. Missing parts
stay empty.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster import record
from cluster.artifacts import Artifact, read_artifact
from cluster.folder import Folder

ALL, MACRO = "all", "macro"
MAX_REASONS = 12
REPLIES = "judge_replies.parquet"
MAX_REASON_LENGTH = 120


@dataclasses.dataclass(frozen=True)
class StageNode:
    """A stage as the graph shows it; `seconds` is what its artifact took to make, also if it was kept, and `ended`
    when that was, in seconds since 1970.
    """

    name: str
    status: str
    seconds: float | None
    rows: int | None
    needs: tuple[str, ...]
    ended: float | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """One logged quantity of a training: values over steps."""

    name: str
    steps: list[float]
    values: list[float]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What didn't work: how many rows of a stage's table ended with a reason, or one incident (count None)."""

    stage: str
    outcome: str
    text: str
    count: int | None


@dataclasses.dataclass(frozen=True)
class GalleryItem:
    """One benchmark item with every method's edit: `edits[method]` is (image or None, its row of the
    scores).
    """

    item_id: str
    edit_type: str
    instruction: str
    source: bytes
    edits: dict[str, tuple[bytes | None, dict[str, Any]]]


OTHERS = {"evaluate_video": "clips", "evaluate_customization": "settings"}
"""What evaluates other things than edits of pictures, and what these are called."""


@dataclasses.dataclass(frozen=True)
class ReportData:
    run_id: str
    profile: str
    nodes: list[StageNode]
    methods: list[str]
    edit_types: list[str]
    summary: dict[tuple[str, str, str], dict[str, Any]]  # (method, edit type, metric) -> mean, low, high, num_items
    comparisons: list[dict[str, Any]]
    agreement: list[dict[str, Any]]
    discrimination: list[dict[str, Any]]
    num_expected: int
    confidence: float
    gallery: list[GalleryItem]
    curves: dict[str, list[Curve]]  # by training stage
    starts: dict[str, str]  # by training stage: the adapter that it began with, where it had one
    problems: list[Problem]
    num_rows: dict[str, int]  # rows by stage
    tables: dict[str, pa.Table]  # what is written as CSV
    items: str = "edits"  # what the figures are about
    benchmark: str = ""  # the title of a benchmark on disk, which says if they are of a trial subset
    ingest: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # how that benchmark was read; of worlds: empty
    others: tuple[ReportData, ...] = ()  # the same about clips, and about objects in other settings

    def anchor(self, section: str) -> str:
        """The id of a section: a page may have it for edits of pictures and for others."""
        return section if self.items == "edits" else f"{section}-{self.items}"


def gather(inputs: Mapping[str, Artifact], root: str, run_id: str, num_gallery: int) -> ReportData:
    """Reads everything; of the images only those of the gallery."""
    run = record.read_run(Folder(root), run_id)
    figures, scores = _figures(inputs, "evaluate", num_gallery)
    others = {stage: _figures(inputs, stage, num_gallery) for stage in OTHERS}
    data = ReportData(
        run_id=run_id,
        profile=run.profile if run else "",
        nodes=_nodes(inputs, run, root),
        curves={name: curves for name, artifact in inputs.items() if (curves := _curves(artifact.folder))},
        starts={name: start for name, a in inputs.items() if (start := a.manifest.config.get("init_adapter"))},
        problems=_problems(inputs, {"evaluate": scores} | {name: s for name, (_, s) in others.items()}, root, run_id),
        num_rows={name: a.manifest.rows for name, a in inputs.items() if a.manifest.rows is not None},
        **figures,
    )
    found = {
        stage: dataclasses.replace(data, items=OTHERS[stage], **fields)
        for stage, (fields, scores) in others.items()
        if scores
    }
    tables = dict(data.tables)
    for other in found.values():
        tables |= {f"{other.items}_{name}": table for name, table in other.tables.items()}
    return dataclasses.replace(data, tables=tables, others=tuple(found.values()))


def _figures(
    inputs: Mapping[str, Artifact], stage: str, num_gallery: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The fields of ReportData that one evaluation fills, and its scores."""
    tables = _read_figures(inputs.get(stage))
    scores = tables["scores"].to_pylist() if "scores" in tables else []
    summary = tables["summary"].to_pylist() if "summary" in tables else []
    config = inputs[stage].manifest.config if stage in inputs else {}
    kind = stage.removeprefix("evaluate").removeprefix("_")
    benchmark = inputs.get(f"ingest_{kind}_benchmark" if kind else "ingest_benchmark")
    return {
        "methods": list(dict.fromkeys(row["method"] for row in scores)),
        "edit_types": sorted({row["edit_type"] for row in scores}),
        "summary": {(row["method"], row["edit_type"], row["metric"]): row for row in summary},
        "comparisons": tables["comparisons"].to_pylist() if "comparisons" in tables else [],
        "agreement": tables["agreement"].to_pylist() if "agreement" in tables else [],
        "discrimination": tables["discrimination"].to_pylist() if "discrimination" in tables else [],
        "num_expected": len({row["item_id"] for row in scores}),
        "confidence": config.get("confidence", 0.95),
        "gallery": _gallery(inputs, inputs.get(stage), scores, num_gallery),
        "tables": tables,
        "benchmark": benchmark.folder.read_json("benchmark.json")["title"] if benchmark else "",
        "ingest": benchmark.manifest.config if benchmark else {},
    }, scores


def _read_figures(artifact: Artifact | None) -> dict[str, pa.Table]:
    if artifact is None:
        return {}
    names = {
        "scores": "scores.parquet",
        "summary": "figures/summary.parquet",
        "comparisons": "figures/comparisons.parquet",
        "agreement": "figures/agreement.parquet",
        "discrimination": "figures/discrimination.parquet",
    }
    return {key: artifact.folder.read_table(name) for key, name in names.items() if artifact.folder.exists(name)}


def _nodes(inputs: Mapping[str, Artifact], run: record.RunRecord | None, root: str) -> list[StageNode]:
    """The run's stages in its order, or without a record the stages of the inputs; the needs as the
    manifests say.
    """
    stages = run.stages if run else {name: record.StageRecord(status="ran") for name in inputs}
    nodes = []
    for name, stage in stages.items():
        artifact = inputs.get(name)
        if artifact is None and stage.fingerprint and stage.status in ("ran", "cached"):
            artifact = read_artifact(Folder(root), name, stage.fingerprint)
        if artifact is not None:
            manifest = artifact.manifest
            needs = tuple(parent for parent in manifest.parents if parent in stages)
            seconds = manifest.seconds or stage.seconds
            nodes.append(StageNode(name, stage.status, seconds, manifest.rows, needs, manifest.created))
        else:  # not finished: this report itself is still running
            needs = tuple(inputs) if name == "report" else ()
            nodes.append(StageNode(name, stage.status, stage.seconds or None, stage.rows, needs))
    return nodes


def choose_items(scores: Sequence[Mapping[str, Any]], num_items: int) -> list[str]:
    """Items for the gallery: as many of each edit type, in the order of their ids, whatever their scores."""
    by_type: dict[str, list[str]] = {}
    for item_id, edit_type in sorted({(row["item_id"], row["edit_type"]) for row in scores}):
        by_type.setdefault(edit_type, []).append(item_id)
    chosen: list[str] = []
    while len(chosen) < num_items and any(by_type.values()):
        for edit_type in sorted(by_type):
            if by_type[edit_type] and len(chosen) < num_items:
                chosen.append(by_type[edit_type].pop(0))
    return chosen


def _gallery(
    inputs: Mapping[str, Artifact], evaluated: Artifact | None, scores: Sequence[Mapping[str, Any]], num_gallery: int
) -> list[GalleryItem]:
    chosen = choose_items(scores, num_gallery)
    items: dict[str, dict[str, Any]] = {}
    images: dict[tuple[str, str], bytes] = {}
    for artifact in inputs.values():
        for name in artifact.folder.tables_with(("item_id", "image")):
            columns = artifact.folder.read_table(name, ["item_id"])["item_id"].to_pylist()
            if not set(columns) & set(chosen):
                continue
            table = artifact.folder.read_table(name)
            rows = table.filter(pa.array([item_id in chosen for item_id in columns])).to_pylist()
            for row in rows:
                if "method" in row:
                    images[row["item_id"], row["method"]] = row.get("clip") or row["image"]
                elif "instruction" in row:
                    items[row["item_id"]] = row
    by_item: dict[str, dict[str, dict[str, Any]]] = collections.defaultdict(dict)
    for row in scores:
        by_item[row["item_id"]][row["method"]] = dict(row)
    for row in _replies(evaluated, chosen):
        replies = by_item[row["item_id"]].get(row["method"], {}).setdefault("replies", [])
        replies.append((f"{row['call']}, pass {row['pass']}, attempt {row['attempt']}", row["text"] or row["error"]))
    return [
        GalleryItem(
            item_id,
            items[item_id]["edit_type"],
            items[item_id]["instruction"],
            items[item_id].get("clip") or items[item_id]["image"],
            {method: (images.get((item_id, method)), row) for method, row in by_item[item_id].items()},
        )
        for item_id in chosen
        if item_id in items
    ]


def _replies(evaluated: Artifact | None, item_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Every call's raw reply about these items, where a judge left a table of them."""
    if evaluated is None or not evaluated.folder.exists(REPLIES):
        return []
    columns = ["item_id", "method", "call", "pass", "attempt", "text", "error"]
    table = evaluated.folder.read_table(REPLIES, columns)
    return table.filter(pc.is_in(table["item_id"], pa.array(item_ids, pa.string()))).to_pylist()


def _curves(folder: Folder) -> list[Curve]:
    """The curves of `history.parquet` or `history.jsonl` (columns step, name, value); empty where there is
    neither.
    """
    if folder.exists("history.parquet"):
        rows = folder.read_table("history.parquet", ["step", "name", "value"]).to_pylist()
    elif folder.exists("history.jsonl"):
        rows = [json.loads(line) for line in folder.read_text("history.jsonl").splitlines() if line.strip()]
    else:
        return []
    curves: dict[str, Curve] = {}
    for row in sorted(rows, key=lambda r: r["step"]):
        if row["value"] is not None:
            curve = curves.setdefault(row["name"], Curve(row["name"], [], []))
            curve.steps.append(float(row["step"]))
            curve.values.append(float(row["value"]))
    return list(curves.values())


def _problems(
    inputs: Mapping[str, Artifact], scores: Mapping[str, Sequence[Mapping[str, Any]]], root: str, run_id: str
) -> list[Problem]:
    problems = []
    for stage, artifact in inputs.items():
        counts: collections.Counter[tuple[str, str]] = collections.Counter()
        for name in artifact.folder.tables_with(("outcome", "reason")):
            for row in artifact.folder.read_table(name, ["outcome", "reason"]).to_pylist():
                if row["outcome"] != "ok":
                    counts[row["outcome"], (row["reason"] or "no reason given").split(":")[0]] += 1
        problems += [
            Problem(stage, outcome, reason, count) for (outcome, reason), count in counts.most_common(MAX_REASONS)
        ]
    for stage, rows in scores.items():
        unscored = collections.Counter(
            (row["method"], row["unscored"][:MAX_REASON_LENGTH]) for row in rows if row["unscored"]
        )
        problems += [
            Problem(stage, "unscored", f"{method}: {reason}", count)
            for (method, reason), count in unscored.most_common(MAX_REASONS)
        ]
    problems += [
        Problem(incident["stage"], "incident", incident["text"], None)
        for incident in record.read_incidents(Folder(root), run_id)
    ]
    return problems
