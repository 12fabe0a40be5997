"""The edit stage: every method over every item of a benchmark, as one table of pictures."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
from PIL import Image
from pydantic import Field, field_validator

from cluster.artifacts import Artifact
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.shards import name_shards, run_shards
from stages.edit.benchmark import batches, item_ids_of
from stages.edit.editors import (
    ADAPTER_STAGES,
    Copy,
    Editor,
    InstructionEditor,
    Method,
    Regenerate,
    SDEdit,
)
from stages.edit.strength import SCORES_SCHEMA, chosen_strength, compare_strengths, score_edit
from stages.train.backbones.models import Device, Dtype, model_sources, resolved_device, resolved_model

if TYPE_CHECKING:
    from stages.edit.sampler import Sampler

EDITS_SCHEMA = pa.schema(
    [("item_id", pa.string()), ("method", pa.string()), ("image", pa.binary()), ("seconds", pa.float64())]
)


class EditConfig(StageConfig):
    """Which methods edit, and how they sample."""

    methods: tuple[Method, ...] = ("byg", "untrained", "copy", "regenerate", "sdedit", "sft")
    model: str = Field("stages/starter/models/flux", description="A diffusers pipeline's folder, or a hub id.")
    num_inference_steps: int = Field(10, ge=1)
    guidance_scale: float = Field(
        3.5, ge=0, description="FLUX.1-dev's distilled guidance; of others classifier-free, off at 1 and below."
    )
    shift: float | None = Field(
        None, gt=0, description="Of the sampling times towards noise; none: as the model's scheduler has it."
    )
    reference_positions: Literal["kontext", "shared"] = Field("kontext", description="As in training.")
    sdedit_strengths: tuple[float, ...] = Field(
        (0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        min_length=1,
        description="Times in (0, 1] to which SDEdit noises the source. Of several the best on the "
        "validation split is taken, by the oracle's share of whole scenes right.",
    )
    seed: int = Field(0, ge=0)
    dtype: Dtype = "float32"
    max_text_tokens: int = Field(512, ge=1, description="T5 tokens of a text, at most the model's own limit.")
    shard_size: int = Field(32, ge=1, description="Items in one shard.")
    batch_size: int = runtime(32, ge=1)
    num_workers: int = runtime(1, ge=1)
    num_cpus: float = runtime(1, ge=0, description="Of each worker.")
    num_gpus: float = runtime(0, ge=0, description="Of each worker.")
    device: Device = runtime("auto")

    @field_validator("methods")
    @classmethod
    def _methods_differ(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if not methods or len(set(methods)) < len(methods):
            raise ValueError("name at least one method, and each once")
        return methods

    @field_validator("sdedit_strengths")
    @classmethod
    def _strengths_are_times(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < strength <= 1 for strength in strengths):
            raise ValueError("a strength lies above 0 and is at most 1")
        return strengths


def edit_sources(config: EditConfig) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    return model_sources(config.model)


def edit_images(inputs: Mapping[str, Artifact], config: EditConfig, context: Context) -> None:
    """Writes `edits/<method>/*.parquet`, a row for each item and method.

    Needs the artifact `benchmark`; `train_byg` and `train_sft` for the methods byg and sft; `validation` if a
    strength of SDEdit is to be chosen: the comparison is left in `strengths.parquet`.

    Raises:
        UserError: an artifact that a method needs is missing or of another model; an item is doubled,
            unreadable or of a size that the model can't work on; the model or an adapter can't be loaded.
    """
    benchmark = inputs["benchmark"].folder
    adapters = _adapters(inputs, config)
    item_ids = item_ids_of(benchmark)
    context.log_input("benchmark", inputs["benchmark"].fingerprint, len(item_ids))
    strength = config.sdedit_strengths[0]

    def tasks(methods: Sequence[Method]) -> dict[str, Task]:
        return {
            name: Task(benchmark, tuple(ids), method, strength)
            for method in methods
            for name, ids in name_shards(item_ids, config.shard_size, prefix=f"edits/{method}/").items()
        }

    tuning = _tuning_tasks(inputs, config)
    if tuning:
        others = [method for method in config.methods if method != "sdedit"]
        _run(tasks(others) | tuning, adapters, config, context)
        table = compare_strengths(context.out, {name: task.strength for name, task in tuning.items()})
        context.out.write_table("strengths.parquet", table)
        strength = chosen_strength(table.to_pylist())
    _run(tasks(config.methods), adapters, config, context)
    if "sdedit" in config.methods:
        context.set_figures({"sdedit_strength": strength})
    context.set_rows(len(item_ids) * len(config.methods))


@dataclasses.dataclass(frozen=True)
class Task:
    """What one shard holds: these items of a benchmark, edited by a method. `tuning`: scored, not kept."""

    benchmark: Folder
    item_ids: tuple[str, ...]
    method: Method
    strength: float = 1.0
    tuning: bool = False


def _tuning_tasks(inputs: Mapping[str, Artifact], config: EditConfig) -> dict[str, Task]:
    """SDEdit at every strength over the validation split, where there is more than one strength."""
    if "sdedit" not in config.methods or len(config.sdedit_strengths) == 1:
        return {}
    if "validation" not in inputs:
        raise UserError(
            "edit: several sdedit_strengths are given, and no validation split to choose one by. Give one, "
            "for example --set 'edit.sdedit_strengths=[0.7]'."
        )
    validation = inputs["validation"].folder
    item_ids = item_ids_of(validation)
    return {
        name: Task(validation, tuple(ids), "sdedit", strength, tuning=True)
        for strength in config.sdedit_strengths
        for name, ids in name_shards(item_ids, config.shard_size, prefix=f"strengths/{strength:g}/").items()
    }


def _run(
    shards: Mapping[str, Task], adapters: Mapping[str, Folder], config: EditConfig, context: Context
) -> None:
    run_shards(
        list(shards),
        EditShard(shards, adapters, config, context.out),
        context=context,
        num_workers=config.num_workers,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        total=sum(len(task.item_ids) for task in shards.values()),
        unit="edits",
    )


def _adapters(inputs: Mapping[str, Artifact], config: EditConfig) -> dict[str, Folder]:
    """The folder of each trained method's adapter."""
    adapters = {}
    for method, stage in ADAPTER_STAGES.items():
        if method in config.methods:
            if stage not in inputs:
                raise UserError(f"edit: method {method} needs stage {stage}; add it or drop the method.")
            trained = inputs[stage].manifest.config
            for field in ("model", "reference_positions"):
                if field in trained and trained[field] != getattr(config, field):
                    raise UserError(
                        f"edit: {stage} was trained with {field}={trained[field]}, edit has "
                        f"{getattr(config, field)}. Set --set edit.{field}={trained[field]}."
                    )
            adapters[method] = inputs[stage].folder.sub("adapter")
    return adapters


@dataclasses.dataclass
class EditShard:
    """Edits the items of one shard; model and adapters are loaded at the first that needs them, and kept."""

    shards: Mapping[str, Task]
    adapters: Mapping[str, Folder]
    config: EditConfig
    out: Folder
    sampler: Sampler | None = None

    def __call__(self, shard: str) -> None:
        task = self.shards[shard]
        editor = self._editor(task)
        rows = []
        for items, metadata in batches(task.benchmark, task.item_ids, self.config.batch_size):
            started = time.monotonic()
            images = editor.edit(items)
            seconds = (time.monotonic() - started) / len(items)
            for item, image, item_metadata in zip(items, images, metadata, strict=True):
                if task.tuning:
                    rows.append(score_edit(item.item_id, task.strength, image, item_metadata))
                else:
                    row = {"item_id": item.item_id, "method": task.method, "seconds": seconds}
                    rows.append(row | {"image": _png(image)})
        order = {item_id: place for place, item_id in enumerate(task.item_ids)}
        rows.sort(key=lambda row: order[row["item_id"]])
        schema = SCORES_SCHEMA if task.tuning else EDITS_SCHEMA
        self.out.write_table(shard, pa.Table.from_pylist(rows, schema))

    def _editor(self, task: Task) -> Editor:
        if task.method == "copy":
            return Copy()
        if self.sampler is None:
            self.sampler = load_sampler(self.config, self.adapters)
        if task.method == "sdedit":
            return SDEdit(self.sampler, self.config.seed, task.strength)
        if task.method == "regenerate":
            return Regenerate(self.sampler, self.config.seed)
        adapter = task.method if task.method in ADAPTER_STAGES else None
        return InstructionEditor(self.sampler, self.config.seed, adapter)


def load_sampler(config: EditConfig, adapters: Mapping[str, Folder]) -> Sampler:
    """The configured model with its adapters. Raises UserError if one of them can't be loaded."""
    import torch

    from stages.edit.sampler import Sampler

    return Sampler(
        resolved_model(config.model),
        {name: folder.local() for name, folder in adapters.items()},
        device=resolved_device(config.device),
        dtype=getattr(torch, config.dtype),
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        shift=config.shift,
        reference_positions=config.reference_positions,
        max_text_tokens=config.max_text_tokens,
    )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
