"""What the evaluate stages are told."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cluster.config import StageConfig, runtime
from cluster.vllm import EngineSettings
from stages.evaluate.motion.config import MotionConfig
from stages.evaluate.perception.settings import PerceptionSettings


class EvaluateConfig(StageConfig):
    """What scores the edits, and how sure the figures are."""

    prefix: ClassVar[str] = ""
    """Of the methods' names in a run's figures, which other stages' stand beside."""

    metrics: tuple[Literal["scene_oracle", "pixels"], ...] = Field(
        ("scene_oracle", "pixels"),
        description="scene_oracle scores the items whose metadata describes an edit of the scene world.",
    )
    judge: EngineSettings | None = Field(None, description="The vision-language model that judges, or none.")
    judge_task: Literal["viescore", "viescore_subject", "imgedit", "yes_no"] = Field(
        "viescore", description="What it is asked, see docs/evaluation.md."
    )
    judge_prompts: str | None = Field(
        None, description="A checkout of the benchmark's repository, whose official words are used instead of our own."
    )
    judge_attempts: int = Field(3, ge=1, description="Calls until an unreadable answer stays unscored.")
    judge_passes: int = Field(1, ge=1, description="Times that every edit is judged; more than one show the noise.")
    perception: PerceptionSettings | None = Field(None, description="The models of further metrics, or none.")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    num_resamples: int = Field(2000, ge=100, description="Of the bootstrap; tests of many methods draw more.")
    seed: int = 0
    num_workers: int = runtime(2, ge=1)

    @model_validator(mode="after")
    def _fits_the_task(self) -> EvaluateConfig:
        if self.judge_task == "yes_no" and self.judge_passes > 1:
            raise ValueError("judge_passes: yes_no reads probabilities, which are the same in every pass; leave it 1")
        if self.judge_task == "yes_no" and self.judge_prompts:
            raise ValueError("judge_prompts: yes_no has no official words; leave it out")
        return self


class EvaluateVideoConfig(EvaluateConfig):
    """The same for clips, all frames of which the metrics see; no judge looks at them."""

    prefix: ClassVar[str] = "video/"

    judge: None = Field(None, description="None looks at clips.")
    motion: MotionConfig | None = Field(None, description="Video metrics that need models, or none of them.")

    @field_validator("perception")
    @classmethod
    def _asks_about_no_clips(cls, value: PerceptionSettings | None) -> PerceptionSettings | None:
        if value is not None and value.tifa is not None:
            raise ValueError("tifa asks about pictures, not about clips: leave it out")
        return value


class EvaluateCustomizationConfig(EvaluateConfig):
    """The same for objects in other settings, which a judge is asked about in other words."""

    prefix: ClassVar[str] = "customization/"

    judge_task: Literal["viescore_subject", "yes_no"] = Field(
        "viescore_subject", description="What the judge is asked, see docs/evaluation.md."
    )
