"""The edit stage: every method over every item of a benchmark, as one table of pictures."""

from __future__ import annotations

import dataclasses
import gc
import io
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import pyarrow as pa
from PIL import Image
from pydantic import Field, StringConstraints, field_validator, model_validator

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
    FewStepEditor,
    FlowEdit,
    InstructionEditor,
    Method,
    Regenerate,
    SDEdit,
)
from stages.edit.pipelines import PipelineEditor, PipelineSettings, load_pipeline, pipeline_class
from stages.edit.strength import SCORES_SCHEMA, TUNED, chosen_strengths, compare_strengths, score_edit
from stages.train.backbones.models import Device, Dtype, model_sources, resolved_device, resolved_model
from stages.train.methods.settings import SETTINGS

if TYPE_CHECKING:
    from stages.edit.sampler import Sampler

EDITS_SCHEMA = pa.schema(
    [("item_id", pa.string()), ("method", pa.string()), ("image", pa.binary()), ("seconds", pa.float64())]
)


PipelineName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]  # names a folder, too


class EditConfig(StageConfig):
    """Which methods edit, and how they sample."""

    methods: tuple[Method, ...] = ("byg", "untrained", "copy", "regenerate", "sdedit", "flowedit", "sft")
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
    flowedit_starts: tuple[float, ...] = Field(
        (0.7, 0.85, 1.0),
        min_length=1,
        description="FlowEdit's n_max / n, the share of the steps that it takes, in (0, 1]; chosen as SDEdit's "
        "strength is. The paper has 24 / 28 for FLUX.1-dev.",
    )
    flowedit_end: float = Field(
        0, ge=0, description="FlowEdit's n_min / n, the share of the steps that are ordinary sampling at the end."
    )
    flowedit_num_averages: int = Field(1, ge=1, description="Draws of noise that a step of FlowEdit averages over.")
    flowedit_guidance_scales: tuple[float, float] = Field(
        (1.5, 5.5), description="FlowEdit's, under the source's caption and the target's; as for FLUX.1-dev."
    )
    pipelines: dict[PipelineName, PipelineSettings] = Field(
        {}, description="Other people's editors, by the names that they get beside the methods; see docs/baselines.md."
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

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods, and after them the pipelines by their names."""
        return (*self.methods, *self.pipelines)

    @model_validator(mode="after")
    def _methods_differ(self) -> EditConfig:
        if not self.all_methods or len(set(self.methods)) < len(self.methods):
            raise ValueError("name at least one method, and each once")
        return self

    @field_validator("pipelines")
    @classmethod
    def _pipelines_have_names_of_their_own(cls, pipelines: dict[str, PipelineSettings]) -> dict[str, PipelineSettings]:
        if taken := sorted(set(pipelines) & set(get_args(Method))):
            raise ValueError(f"{taken[0]} is a method that is here already; give the pipeline another name")
        return pipelines

    @field_validator(*TUNED.values())
    @classmethod
    def _strengths_are_shares(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < strength <= 1 for strength in strengths):
            raise ValueError("each lies above 0 and is at most 1")
        return strengths

    @model_validator(mode="after")
    def _flowedit_ends_after_its_start(self) -> EditConfig:
        if self.flowedit_end > min(self.flowedit_starts):
            raise ValueError("flowedit_end is at most the lowest of flowedit_starts")
        return self


def trained_stages(config: EditConfig) -> set[str]:
    """The stages that train the configured methods."""
    return {stage for method, stage in ADAPTER_STAGES.items() if method in config.methods}


def edit_sources(config: EditConfig) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    models = [config.model, *(settings.model for settings in config.pipelines.values())]
    return [source for model in models for source in model_sources(model)]


def edit_images(inputs: Mapping[str, Artifact], config: EditConfig, context: Context) -> None:
    """Writes `edits/<method>/*.parquet`, a row for each item and method.

    Needs the artifact `benchmark`; for each trained method the stage that ADAPTER_STAGES names; `validation` if a
    strength of SDEdit or a start of FlowEdit is to be chosen: the comparison is left in `strengths.parquet`.

    Raises:
        UserError: an artifact that a method needs is missing or of another model; an item is doubled,
            unreadable or of a size that the model can't work on; a model or an adapter can't be loaded.
    """
    benchmark = inputs["benchmark"].folder
    adapters = _adapters(inputs, config)
    times = _few_step_times(inputs, config)
    for name, settings in config.pipelines.items():
        pipeline_class(name, settings)  # a wrong one shows now, not when its turn comes
    item_ids = item_ids_of(benchmark)
    context.log_input("benchmark", inputs["benchmark"].fingerprint, len(item_ids))
    strengths = {method: getattr(config, TUNED[method])[0] for method in TUNED if method in config.methods}

    def tasks(methods: Sequence[str]) -> dict[str, Task]:
        return {
            name: Task(benchmark, tuple(ids), method, strengths.get(method, 1.0), times=times.get(method))
            for method in methods
            for name, ids in name_shards(item_ids, config.shard_size, prefix=f"edits/{method}/").items()
        }

    tuning = _tuning_tasks(inputs, config)
    if tuning:
        waiting = {task.method for task in tuning.values()}
        others = [method for method in config.all_methods if method not in waiting]
        _run(tasks(others) | tuning, adapters, config, context)
        compared = {name: (task.method, task.strength) for name, task in tuning.items()}
        table = compare_strengths(context.out, compared)
        context.out.write_table("strengths.parquet", table)
        strengths |= chosen_strengths(table.to_pylist())
    _run(tasks(config.all_methods), adapters, config, context)
    context.set_figures({TUNED[method].removesuffix("s"): strength for method, strength in strengths.items()})
    context.set_rows(len(item_ids) * len(config.all_methods))


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


def _tuning_tasks(inputs: Mapping[str, Artifact], config: EditConfig) -> dict[str, Task]:
    """Every method with more than one strength, at each of them over the validation split."""
    tasks = {}
    for method, field in TUNED.items():
        if method not in config.methods or len(getattr(config, field)) == 1:
            continue
        if "validation" not in inputs:
            raise UserError(
                f"edit: several {field} are given, and no validation split to choose one by. Give one, "
                f"for example --set 'edit.{field}=[0.7]'."
            )
        validation = inputs["validation"].folder
        item_ids = item_ids_of(validation)
        for strength in getattr(config, field):
            prefix = f"strengths/{method}/{strength:g}/"
            for name, ids in name_shards(item_ids, config.shard_size, prefix=prefix).items():
                tasks[name] = Task(validation, tuple(ids), method, strength, tuning=True)
    return tasks


def _run(shards: Mapping[str, Task], adapters: Mapping[str, Folder], config: EditConfig, context: Context) -> None:
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


def _few_step_times(inputs: Mapping[str, Artifact], config: EditConfig) -> dict[str, tuple[float, ...]]:
    """The times of every trained method that samples at a few alone, as its training has them."""
    times = {}
    for method, stage in ADAPTER_STAGES.items():
        if method in config.methods:
            settings = SETTINGS[method].model_validate(inputs[stage].manifest.config.get(method, {}))
            if settings.few_step_times:
                times[method] = settings.few_step_times
    return times


@dataclasses.dataclass
class EditShard:
    """Edits the items of one shard; a model is loaded at the first that needs it, and kept until another is needed:
    a device may have room for one alone.
    """

    shards: Mapping[str, Task]
    adapters: Mapping[str, Folder]
    config: EditConfig
    out: Folder
    sampler: Sampler | None = None
    pipeline: PipelineEditor | None = None

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
                    rows.append(score_edit(item.item_id, task.method, task.strength, image, item_metadata))
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
        if task.method in self.config.pipelines:
            return self._pipeline(task.method)
        if self.sampler is None:
            self._let_go()
            self.sampler = load_sampler(self.config, self.adapters)
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
            return FewStepEditor(self.sampler, self.config.seed, task.method, task.times)
        adapter = task.method if task.method in ADAPTER_STAGES else None
        return InstructionEditor(self.sampler, self.config.seed, adapter)

    def _pipeline(self, name: str) -> PipelineEditor:
        import torch

        if self.pipeline is None or self.pipeline.name != name:
            self._let_go()
            self.pipeline = load_pipeline(
                name,
                self.config.pipelines[name],
                seed=self.config.seed,
                device=resolved_device(self.config.device),
                dtype=getattr(torch, self.config.dtype),
            )
        return self.pipeline

    def _let_go(self) -> None:
        self.sampler = self.pipeline = None
        gc.collect()  # a pipeline's parts refer to each other: only this frees the device for the next model


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
