"""What the edit stage can be told. Light to import: planning reads it without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from cluster.config import StageConfig, runtime
from stages.edit.editors import ADAPTER_STAGES, VIDEO_METHODS, ClipMethod, CustomizationMethod, Method
from stages.edit.folders import FolderSettings
from stages.edit.pipelines import PipelineSettings
from stages.edit.strength import TUNED
from stages.train.backbones.models import Device, Dtype, model_sources, resolved_model


class VideoSettings(BaseModel):
    """The image-to-video model of the methods that make a clip, and how they sample."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("stages/starter/models/wan/i2v", description="An image-to-video pipeline of Wan.")
    num_frames: int = Field(5, ge=2, description="Of a clip, 1 + 4 k.")
    num_inference_steps: int = Field(8, ge=1, description="As in the paper (Video4Edit, section 4.1).")
    guidance_scale: float = Field(1.0, ge=0, description="Classifier-free; off at 1 and below.")
    keep_clips: bool = Field(False, description="Keep each clip beside its edit, as a lossless animated WebP.")


EditorName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]  # names a folder, too


class EditSettings(StageConfig):
    """How the methods that are compared sample."""

    prefix: ClassVar[str] = ""
    """Of the names of the benchmark and validation stages."""

    methods: tuple[str, ...]
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
    adapters: dict[EditorName, str] = Field(
        {}, description="LoRAs of `model` that are here already, folders by the names that they get beside the methods."
    )
    folders: dict[EditorName, FolderSettings] = Field(
        {},
        description="Edits that others made, by the names that they get beside the methods; see docs/benchmarks.md.",
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
        """The methods, and after them the adapters, pipelines and folders by their names."""
        return (*self.methods, *self.adapters, *self.other_pipelines, *self.folders)

    @property
    def to_choose(self) -> dict[str, tuple[float, ...]]:
        """The strengths, by method, of which the best on the validation split is taken."""
        given = {method: getattr(self, field) for method, field in TUNED.items() if method in self.methods}
        return {method: strengths for method, strengths in given.items() if len(strengths) > 1}

    @property
    def other_pipelines(self) -> Mapping[str, PipelineSettings]:
        """Other people's editors, by name."""
        return {}

    @property
    def pixels(self) -> int | None:
        """How many a picture is scaled to before it is edited; None: it stays as it is."""
        return None

    @property
    def clip_length(self) -> int:
        """The frames of an item: 1 for pictures."""
        return 1

    @model_validator(mode="after")
    def _methods_differ(self) -> Self:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("name each method once")
        others = [*self.adapters, *self.other_pipelines, *self.folders]
        known = {name for kind in (Method, ClipMethod, CustomizationMethod) for name in get_args(kind)}
        if taken := sorted({name for name in others if name in known or others.count(name) > 1}):
            raise ValueError(f"{taken[0]} is here already; give the adapter, pipeline or folder another name")
        return self

    @field_validator(*TUNED.values())
    @classmethod
    def _strengths_are_shares(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < strength <= 1 for strength in strengths):
            raise ValueError("each lies above 0 and is at most 1")
        return strengths

    @model_validator(mode="after")
    def _flowedit_ends_after_its_start(self) -> Self:
        if self.flowedit_end > min(self.flowedit_starts):
            raise ValueError("flowedit_end is at most the lowest of flowedit_starts")
        return self


class EditPicturesSettings(EditSettings):
    """What the two stages that edit pictures share."""

    num_pixels: int | None = Field(
        None,
        ge=1024,
        description="Pictures are scaled to about so many before they are edited, their sides multiples of 32; edits "
        "are scaled back where they are scored. None: each keeps its size.",
    )

    @property
    def pixels(self) -> int | None:
        """How many a picture is scaled to before it is edited; None: it stays as it is."""
        return self.num_pixels


class EditConfig(EditPicturesSettings):
    """Which methods edit pictures, and how they sample."""

    methods: tuple[Method, ...] = Field(
        ("byg", "untrained", "copy", "regenerate", "sdedit", "flowedit", "sft"),
        description="None, and no pipelines: nothing is done with pictures.",
    )
    video: VideoSettings = VideoSettings()
    pipelines: dict[EditorName, PipelineSettings] = Field(
        {}, description="Other people's editors, by the names that they get beside the methods; see docs/baselines.md."
    )

    @property
    def other_pipelines(self) -> Mapping[str, PipelineSettings]:
        """Other people's editors, by name."""
        return self.pipelines


class EditVideoConfig(EditSettings):
    """Which methods edit clips, all with one text-to-video model, and how they sample."""

    prefix: ClassVar[str] = "video_"

    methods: tuple[ClipMethod, ...] = Field((), description="None: nothing is done with clips.")
    model: str = Field("stages/starter/models/wan/t2v", description="A text-to-video pipeline of Wan.")
    num_frames: int = Field(5, ge=2, description="Of a clip, 1 + 4 k; a longer or shorter one is sampled so.")
    num_inference_steps: int = Field(20, ge=1)
    guidance_scale: float = Field(1.0, ge=0, description="Classifier-free; off at 1 and below.")
    batch_size: int = runtime(16, ge=1)

    @property
    def clip_length(self) -> int:
        """The frames of an item."""
        return self.num_frames


class EditCustomizationConfig(EditPicturesSettings):
    """Which methods show a picture's object in another setting, and how they sample."""

    prefix: ClassVar[str] = "customization_"

    methods: tuple[CustomizationMethod, ...] = Field((), description="None: nothing is done with customization.")


def trained_stages(config: EditSettings) -> set[str]:
    """The stages that train the configured methods."""
    return {stage for method, stage in ADAPTER_STAGES.items() if method in config.methods}


def edit_sources(config: EditSettings) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    models = [config.model, *(settings.model for settings in config.other_pipelines.values())]
    adapters = [resolved_model(folder) for folder in config.adapters.values()]
    if set(VIDEO_METHODS) & set(config.methods):
        models.append(config.video.model)
    folders = [settings.path for settings in config.folders.values()]
    return [*(source for model in models for source in model_sources(model)), *adapters, *folders]
