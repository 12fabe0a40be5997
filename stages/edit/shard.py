"""One shard of edits: some items of a benchmark, edited by one method, on one worker."""

from __future__ import annotations

import dataclasses
import gc
import io
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from cluster.folder import Folder
from stages.edit.benchmark import batches
from stages.edit.clip_folders import read_clip_edit
from stages.edit.editors import (
    VIDEO_METHODS,
    ClipEditor,
    Copy,
    Editor,
    FewStepEditor,
    FlowEdit,
    InstructionEditor,
    Item,
    Regenerate,
    SDEdit,
)
from stages.edit.folders import Found, Unusable, read_picture
from stages.edit.pipelines import PipelineEditor, load_pipeline
from stages.edit.settings import EditSettings
from stages.edit.strength import SCORES_SCHEMA, score_edit
from stages.train.backbones.clip_files import write_clip
from stages.train.backbones.models import resolved_device, resolved_model

if TYPE_CHECKING:
    from stages.edit.sampler import Sampler
    from stages.train.backbones.pictures import Picture

EDITS_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("method", pa.string()),
        ("image", pa.binary()),
        ("seconds", pa.float64()),
        ("clip", pa.binary()),
        ("reason", pa.string()),  # why there is no picture
    ]
)


@dataclasses.dataclass(frozen=True)
class Task:
    """What one shard holds: these items of a benchmark, edited by a method.

    `tuning`: scored, not kept. `times`: of a method that was trained for just these.
    """

    benchmark: Folder
    item_ids: tuple[str, ...]
    method: str
    strength: float = 1.0
    tuning: bool = False
    times: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training has left: a LoRA, or a whole transformer."""

    folder: Folder
    is_whole: bool


@dataclasses.dataclass
class EditShard:
    """Edits the items of one shard; a model is loaded at the first that needs it, and kept until another is needed:
    a device may have room for one alone.
    """

    shards: Mapping[str, Task]
    trained: Mapping[str, Trained]
    config: EditSettings
    out: Folder
    stage: str = "edit"
    found: Mapping[str, Found] = dataclasses.field(default_factory=dict)
    """What there is in `config.folders`."""
    sampler: Sampler | None = None
    sampler_of: tuple[bool, str | None] | None = None
    pipeline: PipelineEditor | None = None

    def __call__(self, shard: str) -> None:
        task = self.shards[shard]
        rows = self._given(task) if task.method in self.found else self._edited(task)
        order = {item_id: place for place, item_id in enumerate(task.item_ids)}
        rows.sort(key=lambda row: order[row["item_id"]])
        schema = SCORES_SCHEMA if task.tuning else EDITS_SCHEMA
        self.out.write_table(shard, pa.Table.from_pylist(rows, schema))

    def _given(self, task: Task) -> list[dict[str, Any]]:
        """What somebody else's editor made of the items; there are no seconds."""
        found, settings = self.found[task.method], self.config.folders[task.method]
        rows = []
        for items, _ in batches(task.benchmark, task.item_ids, self.config.batch_size):
            for item in items:
                row: dict[str, Any] = {"item_id": item.item_id, "method": task.method}
                try:
                    if found.num_frames == 1:
                        row["image"] = read_picture(found, settings, item.item_id, item.image.size)
                    else:
                        frames, seconds = read_clip_edit(found, settings, item.item_id, item.image.size)
                        row |= {"image": _png(frames[-1]), "clip": write_clip(frames, seconds)}
                except Unusable as error:
                    row["reason"] = str(error)
                rows.append(row)
        return rows

    def _edited(self, task: Task) -> list[dict[str, Any]]:
        editor = self._editor(task)
        rows = []
        length, size = self.config.clip_length, self.config.batch_size
        num_pixels = None if task.method == "copy" or task.tuning else self.config.pixels
        for items, metadata in batches(task.benchmark, task.item_ids, size, length, num_pixels):
            started = time.monotonic()
            edits = editor.edit(items)
            seconds = (time.monotonic() - started) / len(items)
            for item, edit, item_metadata in zip(items, edits, metadata, strict=True):
                if task.tuning:
                    rows.append(score_edit(item.item_id, task.method, task.strength, edit, item_metadata, self.stage))
                else:
                    row = {"item_id": item.item_id, "method": task.method, "seconds": seconds}
                    rows.append(row | self._stored(item, edit))
        return rows

    def _stored(self, item: Item, edit: Picture) -> dict[str, bytes | None]:
        """The edit's picture, of a clip its last frame; and the clip where items are clips or it is wanted."""
        if isinstance(edit, Image.Image):
            return {"image": _png(edit), "clip": None}
        is_kept = item.frames or self.config.video.keep_clips
        return {"image": _png(edit[-1]), "clip": write_clip(edit) if is_kept else None}

    def _editor(self, task: Task) -> Editor:
        if task.method == "copy":
            return Copy()
        if task.method in self.config.other_pipelines:
            return self._pipeline(task.method)
        is_whole = task.method in self.trained and self.trained[task.method].is_whole
        adapter = task.method if task.method in self.trained and not is_whole else None
        needed = (task.method in VIDEO_METHODS, task.method if is_whole else None)
        if self.sampler is None or self.sampler_of != needed:
            self._let_go()
            self.sampler, self.sampler_of = load_sampler(self.config, self.trained, task.method, self.stage), needed
        if task.method in VIDEO_METHODS:
            return ClipEditor(self.sampler, self.config.seed, adapter)
        if task.method == "sdedit":
            return SDEdit(self.sampler, self.config.seed, task.strength)
        if task.method == "flowedit":
            return FlowEdit(
                self.sampler,
                self.config.seed,
                task.strength,
                self.config.flowedit_end,
                self.config.flowedit_num_averages,
                self.config.flowedit_guidance_scales,
            )
        if task.method == "regenerate":
            return Regenerate(self.sampler, self.config.seed)
        if task.times:
            return FewStepEditor(self.sampler, self.config.seed, adapter, task.times)
        return InstructionEditor(self.sampler, self.config.seed, adapter)

    def _pipeline(self, name: str) -> PipelineEditor:
        import torch

        if self.pipeline is None or self.pipeline.name != name:
            self._let_go()
            self.pipeline = load_pipeline(
                name,
                self.config.other_pipelines[name],
                seed=self.config.seed,
                device=resolved_device(self.config.device),
                dtype=getattr(torch, self.config.dtype),
            )
        return self.pipeline

    def _let_go(self) -> None:
        self.sampler = self.pipeline = None
        gc.collect()  # a pipeline's parts refer to each other: only this frees the device for the next model


def load_sampler(config: EditSettings, trained: Mapping[str, Trained], method: str, stage: str) -> Sampler:
    """The model that a method samples from, with the adapters of all that share it, or its own whole transformer.

    Raises UserError if a part of it can't be loaded.
    """
    import torch

    from stages.edit.sampler import Sampler

    is_video, whole = method in VIDEO_METHODS, method in trained and trained[method].is_whole
    shared = {name: one for name, one in trained.items() if not one.is_whole and (name in VIDEO_METHODS) == is_video}
    source = config.video if is_video else config
    if is_video:
        kind = {"num_frames": config.video.num_frames, "setting": f"{stage}.video.model"}
    else:
        texts = {"max_text_tokens": config.max_text_tokens, "reference_positions": config.reference_positions}
        kind = texts | {"num_frames": config.clip_length, "setting": f"{stage}.model"}
    return Sampler(
        resolved_model(source.model),
        {} if whole else {name: one.folder.local() for name, one in shared.items()},
        transformer=trained[method].folder.local() if whole else None,
        device=resolved_device(config.device),
        dtype=getattr(torch, config.dtype),
        num_inference_steps=source.num_inference_steps,
        guidance_scale=source.guidance_scale,
        shift=config.shift,
        **kind,
    )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
