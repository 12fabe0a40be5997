"""The metrics by models for the edits of one file, on a Ray worker that keeps its models."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster.folder import Folder
from stages.evaluate.perception.measures import EditToSee, Perception
from stages.evaluate.perception.settings import PerceptionSettings
from stages.evaluate.tables import Benchmark, EditsFile, pairs, read_clips, read_image

NAMES = ("item_id", "method", "unscored")


@dataclasses.dataclass(frozen=True)
class PerceiveShard:
    """Writes a row for every edit of a file: `schema` has NAMES and the metrics."""

    benchmark: Benchmark
    files: Mapping[str, EditsFile]
    settings: PerceptionSettings
    schema: pa.Schema
    out: Folder
    num_frames: int | None = None
    """Of the benchmark's clips: their files have alike neighbours as one."""

    def __call__(self, shard: str) -> None:
        rows: list[dict[str, Any]] = []
        waiting: list[tuple[dict[str, Any], EditToSee]] = []
        for item, edit in pairs(self.benchmark, self.files[shard]):
            names = {"item_id": item["item_id"], "method": edit["method"]}
            try:
                to_see = self._decode(item, edit)
            except (OSError, ValueError, SyntaxError):  # its measures say why it is unscored
                rows.append(names)
                continue
            waiting.append((names, to_see))
            if sum(len(seen.source) for _, seen in waiting) >= self.settings.batch_size:
                rows += self._measured(waiting)
                waiting = []
        rows += self._measured(waiting)
        self.out.write_table(shard, pa.Table.from_pylist(rows, self.schema))

    @functools.cached_property
    def _perception(self) -> Perception:
        return Perception(self.settings)

    def _decode(self, item: Mapping[str, Any], edit: Mapping[str, Any]) -> EditToSee:
        """Raises ValueError or OSError where one of the pictures can't be read."""
        if edit.get("reason"):
            raise ValueError(edit["reason"])
        texts = {name: item.get(name) or "" for name in ("src_caption", "tgt_caption")}
        texts["noun"] = noun_of(item, self.settings.segmenter.noun_keys) if self.settings.segmenter else ""
        if item.get("clip"):
            return EditToSee(*read_clips(item, edit, self.num_frames), **texts)
        return EditToSee([read_image(item["image"])], [read_image(edit["image"] or b"")], **texts)

    def _measured(self, edits: Sequence[tuple[dict[str, Any], EditToSee]]) -> Iterator[dict[str, Any]]:
        for (names, _), scores in zip(edits, self._perception.measure([seen for _, seen in edits]), strict=True):
            reasons = [f"{name}: {score}" for name, score in scores.items() if isinstance(score, str)]
            values = {name: score for name, score in scores.items() if not isinstance(score, str)}
            yield names | values | {"unscored": "; ".join(reasons) or None}


def noun_of(item: Mapping[str, Any], keys: Sequence[str]) -> str:
    """What an item calls its object: its column `object`, or the first of `keys` in its metadata; else nothing."""
    if item.get("object"):
        return str(item["object"])
    try:
        metadata = json.loads(item["metadata"] or "{}")
    except (TypeError, json.JSONDecodeError):
        return ""
    if not isinstance(metadata, dict):
        return ""
    return next((metadata[key] for key in keys if isinstance(metadata.get(key), str) and metadata[key]), "")
