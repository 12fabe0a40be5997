"""Which models look at the edits. A metric whose model is not given is not computed."""

from __future__ import annotations

import pathlib
from typing import Literal

from pydantic import Field, field_validator, model_validator

from cluster.config import StageConfig, runtime
from cluster.vllm import EngineSettings
from stages.evaluate.perception import tifa_prompt
from stages.train.backbones.models import Device, model_sources

MODEL = "A model folder with safetensors (absolute, or from the project's or working folder), or a hub id."


class ClipSettings(StageConfig):
    """CLIP, for `clip_directional` and `clip_score`."""

    model: str = Field("openai/clip-vit-large-patch14", description=MODEL)
    metrics: tuple[Literal["clip_directional", "clip_score"], ...] = Field(
        ("clip_directional", "clip_score"),
        min_length=1,
        description="The first needs both captions, the second that of the edit.",
    )


class DinoSettings(StageConfig):
    """A vision transformer with a class token: DINO, DINOv2 (also with registers) or DINOv3."""

    model: str = Field(description=MODEL)
    size: int = Field(224, ge=1, description="Side of the square that the model sees: a multiple of its patches.")
    resize: Literal["crop", "square"] = Field(
        "crop",
        description="crop: bicubic, the shorter side to size * 256/224, then the middle. square: bicubic, both sides.",
    )


class SegmenterSettings(StageConfig):
    """Where the object is: Grounding DINO finds its box, SAM 2 its mask."""

    detector: str = Field("IDEA-Research/grounding-dino-tiny", description=MODEL)
    segmenter: str = Field("facebook/sam2.1-hiera-large", description=MODEL)
    box_threshold: float = Field(0.35, ge=0, lt=1, description="The best box counts from this score on.")
    noun_keys: tuple[str, ...] = Field(
        ("object", "class"),
        min_length=1,
        description="Where an item names its object: the column `object`, or keys of its metadata, the first there is.",
    )


class TifaSettings(StageConfig):
    """Yes/No questions about the edit's caption, which a vision-language model answers from the picture."""

    engine: EngineSettings
    questions: str | None = Field(
        None,
        description="A JSON file, path or URL: {item_id: [question, or {question, answer: Yes or No}]}. Without it an "
        "item's are those of its metadata, else the model writes them about its caption.",
    )
    answer_prompt: str = Field(
        "",
        description="What the model is asked about a picture, with a place for the {question}; empty: our own words.",
    )
    num_questions: int = Field(8, ge=1, le=32, description="That the model writes about a caption, at most.")
    attempts: int = Field(3, ge=1, description="Calls until an unreadable reply leaves the item unscored.")

    @field_validator("answer_prompt")
    @classmethod
    def _has_its_place(cls, value: str) -> str:
        if value and "{question}" not in value:
            raise ValueError("it has no {question}")
        return value


class PerceptionSettings(StageConfig):
    """The models by metric; give those that you want."""

    clip: ClipSettings | None = Field(None, description="For clip_directional and clip_score.")
    dino: DinoSettings | None = Field(None, description="For dino; as published facebook/dino-vits16.")
    dinov2: DinoSettings | None = Field(None, description="For dinov2; as published facebook/dinov2-base.")
    segmenter: SegmenterSettings | None = Field(None, description="For dinov2_masked, with the model of dinov2.")
    tifa: TifaSettings | None = Field(None, description="For tifa, and with the segmenter geometric_score.")
    batch_size: int = runtime(16, ge=1, description="Pictures that a model sees at once.")
    device: Device = runtime("auto", description="`auto` is a GPU where the worker has one (num_gpus).")
    num_gpus: float = runtime(0, ge=0, description="Of each worker.")
    num_workers: int = runtime(1, ge=1)

    @model_validator(mode="after")
    def _masks_need_a_model(self) -> PerceptionSettings:
        if self.segmenter is not None and self.dinov2 is None:
            raise ValueError("segmenter is there for dinov2_masked, which needs the model of dinov2: give that too")
        return self

    @property
    def sees(self) -> bool:
        """Whether a model of the workers' is given; TIFA's is an engine."""
        return any((self.clip, self.dino, self.dinov2))

    def sources(self) -> list[str]:
        """What of the models, prompts and questions belongs to a stage's fingerprint."""
        found = []
        if self.segmenter is not None:
            found += [self.segmenter.detector, self.segmenter.segmenter]
        found += [part.model for part in (self.clip, self.dino, self.dinov2) if part is not None]
        sources = [source for model in found for source in model_sources(model)]
        if self.tifa is not None:
            prompts = str(pathlib.Path(tifa_prompt.__file__).parent / tifa_prompt.PROMPT_VERSION)
            sources += [*self.tifa.engine.source(), prompts]
            sources += [self.tifa.questions] if self.tifa.questions else []
        return sources
