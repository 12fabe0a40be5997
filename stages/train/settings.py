"""The configurations of the training stages. Light to import: planning reads them without torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cluster.config import StageConfig, runtime
from stages.train.backbones.models import Device, Dtype
from stages.train.methods.settings import (
    ByGConfig,
    FlowGRPOConfig,
    NPEditConfig,
    SFTConfig,
    Video4EditConfig,
    VideoByGConfig,
)
from stages.train.vlm.questions import QuestionTemplates


class TrainConfig(StageConfig):
    """What every method has: the base model, its LoRA, the optimizer, and how the work is spread."""

    model: str = Field("stages/starter/models/flux", description="a diffusers pipeline's folder, or a hub id")
    init_adapter: str | None = Field(
        None, description="a folder with a LoRA of the same rank to start from, as this stage exports it"
    )
    rank: int = Field(64, ge=1)
    alpha: float | None = Field(None, gt=0, description="the LoRA's weight is alpha / rank; unset: alpha = rank")
    num_steps: int = Field(30_000, ge=1)
    batch_size: int = Field(8, ge=1, description="rows of a step, over all ranks")
    learning_rate: float = Field(3e-4, gt=0)
    learning_rate_warmup: int = Field(0, ge=0, description="steps over which the rate rises from 0")
    learning_rate_decay: float = Field(
        0.0, ge=0, le=1, description="share of the steps, the last, in which it falls to 0"
    )
    learning_rate_shape: Literal["linear", "cosine"] = Field("linear", description="how it falls")
    weight_decay: float = Field(1e-2, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_gradient_norm: float = Field(1.0, gt=0, description="a larger gradient is scaled down to this norm")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="of the average that samples and is exported; 0: the student itself"
    )
    seed: int = Field(0, ge=0)
    guidance_scale: float = Field(3.5, ge=0, description="FLUX.1-dev's distilled guidance, an input; others take none")
    reference_positions: Literal["kontext", "shared"] = Field(
        "kontext", description="of FLUX; elsewhere a reference always shares the picture's"
    )
    num_frames: int = Field(1, ge=1, description="of the clips that a video model trains on; 1: pictures")
    dtype: Dtype = Field("float32", description="of the base and of the activations")

    stop_gradient_norm: float = runtime(1e4, gt=0, description="a larger gradient, or a NaN, stops the training")
    sharding: Literal["none", "zero3"] = runtime("none", description="how the frozen base lies on the ranks")
    persistence_threshold: int = runtime(
        100_000, ge=0, description="zero3: parameters with no more elements are kept whole on every rank"
    )
    gradient_checkpointing: bool = runtime(False, description="forwards again at backward, for less memory")
    device: Device = runtime("auto", description="auto: GPUs if the cluster has any")
    num_workers: int = runtime(1, ge=1, description="ranks; each takes a GPU where they run on GPUs")
    num_threads: int = runtime(1, ge=1, description="CPU threads of a rank")
    checkpoint_every: int = runtime(200, ge=1)
    log_every: int = runtime(20, ge=1, description="steps whose means make one point in MLflow")
    preview_every: int = runtime(0, ge=0, description="0: no previews")
    preview_metric: Literal["none", "scene"] = runtime(
        "none", description="what the previews are scored by; scene: the starter's oracle"
    )
    num_preview_items: int = runtime(16, ge=1)
    num_preview_steps: int = runtime(12, ge=1, description="sampling steps of a preview")

    @property
    def stage(self) -> str:
        """The stage that these settings belong to, as errors name it."""
        return f"train_{self.method}"

    @property
    def trains_all(self) -> bool:
        """Whether every weight is trained, not a LoRA."""
        return getattr(self, "weights", "lora") == "full"

    @property
    def lora_alpha(self) -> float:
        return self.alpha if self.alpha is not None else float(self.rank)


class TrainByGConfig(TrainConfig):
    """ByG, on the rows of `encode`."""

    method: Literal["byg"] = "byg"
    byg: ByGConfig = ByGConfig()


class TrainByGVideoConfig(TrainByGConfig):
    """ByG on clips, on the rows of `encode_clips`, as in the paper (B.2): few steps, no average by default.

    A model with two experts (Wan2.2) gets a LoRA for each, both trained in one run.
    """

    model: str = Field("stages/starter/models/wan/t2v", description="a text-to-video pipeline of Wan")
    byg: VideoByGConfig = VideoByGConfig()
    num_frames: int = Field(5, ge=2, description="of a clip, 1 + 4 k, as encode_clips has it")
    num_steps: int = Field(750, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="of the average that samples and is exported; 0: the student itself"
    )

    @property
    def stage(self) -> str:
        """The stage that these settings belong to, as errors name it."""
        return "train_byg_video"


class FullTuningConfig(TrainConfig):
    """Of methods whose networks can be trained whole."""

    weights: Literal["lora", "full"] = Field("lora", description="what is trained; full: all, under zero3")
    offload_optimizer: bool = runtime(False, description="full: the optimizer's state lies in the CPU's memory")

    @model_validator(mode="after")
    def _all_weights_are_cut(self) -> Self:
        if self.weights == "full" and self.sharding != "zero3":
            raise ValueError("training all weights (weights: full) needs sharding: zero3")
        return self


class TrainSFTConfig(FullTuningConfig):
    """Supervised training, on the encoded pairs."""

    method: Literal["sft"] = "sft"
    sft: SFTConfig = SFTConfig()


class TrainVideo4EditConfig(FullTuningConfig):
    """Video4Edit, on the rows of `rollout`; optimizer, schedule and average as in the paper (section 4.1).

    There the student is trained whole: `weights: full`.
    """

    method: Literal["video4edit"] = "video4edit"
    video4edit: Video4EditConfig = Video4EditConfig()
    model: str = Field("stages/starter/models/wan/i2v", description="the student: an image-to-video pipeline of Wan")
    teacher_model: str = Field("stages/starter/models/wan/flf2v", description="a first/last-frame pipeline of Wan")
    num_frames: int = Field(5, ge=2, description="of a clip, 1 + 4 k, as the rollouts have it")
    learning_rate: float = Field(1e-4, gt=0)
    learning_rate_decay: float = Field(0.95, ge=0, le=1, description="all but the warm-up of the paper, 5 %")
    learning_rate_shape: Literal["linear", "cosine"] = "cosine"
    ema_decay: float = Field(0.9999, ge=0, lt=1)


class JudgedConfig(TrainConfig):
    """Of methods that ask a vision-language model."""

    vlm: str = Field("stages/starter/models/qwen3vl", description="the judge: a Qwen-VL's or LLaVA-OneVision's folder")
    vlm_dtype: Dtype = "float32"
    questions: QuestionTemplates = QuestionTemplates()


class TuplesConfig(TrainConfig):
    """Of methods that need no way back, so that either data engine's edit tuples do.

    `tuples` decides which stage's rows are read: these are in the fingerprint, so it needn't be.
    """

    tuples: Literal["caption", "propose"] = runtime(
        "caption", description="which stage wrote them: ByG's, one edit of a picture, or NP-Edit's, up to four"
    )
    type_shares: dict[str, Annotated[float, Field(gt=0, le=1)]] | None = Field(
        None,
        description="of each step's rows by edit type, the others alike; the paper: {remove: 0.25}; none: as they come",
    )

    @field_validator("type_shares")
    @classmethod
    def _are_shares(cls, shares: dict[str, float] | None) -> dict[str, float] | None:
        if sum((shares or {}).values()) > 1 + 1e-9:
            raise ValueError("the shares of all types together are at most 1")
        return shares


class TrainFlowGRPOConfig(JudgedConfig, TuplesConfig):
    """Flow-GRPO, on the rows of `encode`, of which each step draws `flow_grpo.group_size` edits."""

    method: Literal["flow_grpo"] = "flow_grpo"
    flow_grpo: FlowGRPOConfig = FlowGRPOConfig()
    rank: int = Field(32, ge=1)
    alpha: float | None = Field(64.0, gt=0, description="the LoRA's weight is alpha / rank; unset: alpha = rank")
    learning_rate: float = Field(1e-4, gt=0)
    num_steps: int = Field(5000, ge=1)


class UnrolledConfig(JudgedConfig, FullTuningConfig):
    """NP-Edit, whatever it is trained for; a step is one update, of the student or of the auxiliary model.

    In the paper both are trained whole: `weights: full`.
    """

    method: Literal["np_edit"] = "np_edit"
    np_edit: NPEditConfig = NPEditConfig()
    lpips_weights: str = Field(
        "", description="a safetensors file with torchvision's vgg16, for lambda_lpips; empty: torchvision fetches it"
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="of the average that is exported; 0: the student itself")


class TrainNPEditConfig(UnrolledConfig, TuplesConfig):
    """NP-Edit for local edits, on the rows of `encode` or `encode_proposals`."""


class TrainCustomizationConfig(UnrolledConfig):
    """NP-Edit for customization: the source's main object in another setting (appendix E.2)."""

    np_edit: NPEditConfig = NPEditConfig(identity_warmup=100, lambda_dmd=2.0)

    @property
    def stage(self) -> str:
        """The stage that these settings belong to, as errors name it."""
        return "train_customization"
