"""What is measured of an edit without a model that looks at it: pixels, the oracle, and a clip's motion."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.folder import Folder
from stages.evaluate.metrics import (
    clip_metrics,
    clip_oracle,
    is_scene_edit,
    num_clip_frames,
    pixel_metrics,
    scene_oracle,
)
from stages.evaluate.motion.frame_scores import temporal_flickering
from stages.evaluate.motion.measure import ClipPair, MotionMeasure
from stages.evaluate.summary import VIDEO_METRICS, part_schema
from stages.evaluate.tables import Benchmark, EditsFile, pairs, read_clips, read_image
from stages.train.backbones.clip_files import clip_seconds


@dataclasses.dataclass(frozen=True)
class MeasureShard:
    """Pixel metrics and oracle for the edits of one file."""

    benchmark: Benchmark
    files: Mapping[str, EditsFile]
    metrics: Sequence[str]
    out: Folder
    motion: MotionMeasure | None = None
    num_frames: int | None = None
    """Of the benchmark's clips: their files have alike neighbours as one."""

    def __call__(self, shard: str) -> None:
        rows = []
        for item, edit in pairs(self.benchmark, self.files[shard]):
            rows.append({"item_id": item["item_id"], "method": edit["method"]} | self._measure(item, edit))
        self.out.write_table(shard, pa.Table.from_pylist(rows, part_schema(MEASURED_COLUMNS)))

    def _measure(self, item: Mapping[str, Any], edit: Mapping[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "seconds": edit["seconds"],
            "source_sha256": hashlib.sha256(item["image"]).hexdigest(),
            "image_sha256": hashlib.sha256(edit["image"] or b"").hexdigest(),
        }
        if edit.get("reason"):
            return row | {"unscored": f"image: {edit['reason']}"}
        try:
            source = read_image(item["image"])
            image = read_image(edit["image"] or b"")
            if item.get("clip"):
                return row | {"width": image.width, "height": image.height} | self._measure_clip(item, edit)
        except (OSError, ValueError, SyntaxError) as error:
            return row | {"unscored": f"image: {' '.join(str(error).split())[:200]}"}
        row |= {"width": image.width, "height": image.height}
        # as GEdit-Bench does, the edit is brought to its source's size before it is compared
        edited = np.asarray(image if image.size == source.size else image.resize(source.size, Image.Resampling.BICUBIC))
        original = np.asarray(source)
        if "pixels" in self.metrics:
            row |= pixel_metrics(edited, original)
        if "scene_oracle" in self.metrics and is_scene_edit(item["metadata"]):
            row |= scene_oracle(edited, original, item["metadata"])
        return row

    def _measure_clip(self, item: Mapping[str, Any], edit: Mapping[str, Any]) -> dict[str, Any]:
        """Of an edited clip. Raises as `read_clip` does, and ValueError where the edit has another size."""
        clips = read_clips(item, edit, self.num_frames)
        source, edited = ([np.asarray(frame) for frame in frames] for frames in clips)
        row: dict[str, Any] = {}
        if "pixels" in self.metrics:
            row |= clip_metrics(edited, source)
        if "scene_oracle" in self.metrics and num_clip_frames(item["metadata"]):
            row |= clip_oracle(edited, item["metadata"])
        row["temporal_flickering"] = temporal_flickering(edited)
        row["temporal_flickering_source"] = temporal_flickering(source)
        reasons = ["temporal_flickering: the clip has a single frame"] if len(source) == 1 else []
        if self.motion is not None:
            pair = ClipPair(item["item_id"], edit["method"], source, edited, clip_seconds(edit["clip"]))
            scores, undefined = self.motion(pair)
            row, reasons = row | scores, reasons + undefined
        return row | {"unscored": "; ".join(reasons) or None}


MEASURED_COLUMNS = (
    "item_id", "method", "edit_success", "preservation", "whole_scene_right", "psnr_unedited", "l1", "psnr",
    "ssim", "frames_right", "flicker_added", *VIDEO_METRICS, "seconds", "source_sha256", "image_sha256", "width",
    "height", "unscored",
)  # fmt: skip
