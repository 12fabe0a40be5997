"""Which video metrics, and the models for them. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cluster.config import StageConfig, runtime
from stages.evaluate.motion.weights import resolved_file, weights_problem
from stages.train.backbones.models import Device, model_sources

Metric = Literal["motion_fidelity", "dynamic_degree", "aesthetic"]


def _checked(path: str) -> str:
    if problem := weights_problem(path):
        raise ValueError(problem)
    return path


Weights = Annotated[str, AfterValidator(_checked)]


class FlowConfig(StageConfig):
    """The model of optical flow."""

    weights: Weights = Field(description="A safetensors file of torchvision's RAFT.")
    architecture: Literal["raft_large", "raft_small"] = "raft_large"


class AestheticConfig(StageConfig):
    """LAION's aesthetic predictor."""

    clip: str = Field("openai/clip-vit-large-patch14", description="A folder or hub id of CLIP.")
    head: Weights = Field(description="A safetensors file of the linear head, `weight` and `bias`.")


class MotionConfig(StageConfig):
    """Video metrics that need a model or tracks."""

    metrics: tuple[Metric, ...] = Field(min_length=1)
    flow: FlowConfig | None = Field(None, description="For dynamic_degree, and motion_fidelity without tracks.")
    tracks: str | None = Field(None, description="A folder of tracks that a point tracker made, for motion_fidelity.")
    aesthetic: AestheticConfig | None = None
    fps: float | None = Field(None, gt=0, description="Frames per second of the clips; none: what their files say.")
    device: Device = runtime("auto")
    num_gpus: float = runtime(0, ge=0, description="Of each worker.")

    @model_validator(mode="after")
    def _has_models(self) -> MotionConfig:
        if "dynamic_degree" in self.metrics and self.flow is None:
            raise ValueError("metric dynamic_degree needs flow.weights")
        if "motion_fidelity" in self.metrics and self.flow is None and self.tracks is None:
            raise ValueError("metric motion_fidelity needs tracks, or flow.weights to follow points along optical flow")
        if "aesthetic" in self.metrics and self.aesthetic is None:
            raise ValueError("metric aesthetic needs aesthetic.head")
        return self

    def sources(self) -> list[str]:
        """The files whose content belongs to the stage's fingerprint: those that the metrics read."""
        files = []
        if self._uses_flow():
            files.append(resolved_file(self.flow.weights))
        if "motion_fidelity" in self.metrics and self.tracks is not None:
            files.append(resolved_file(self.tracks))
        if "aesthetic" in self.metrics:
            files += [*model_sources(self.aesthetic.clip), resolved_file(self.aesthetic.head)]
        return files

    def _uses_flow(self) -> bool:
        return "dynamic_degree" in self.metrics or ("motion_fidelity" in self.metrics and self.tracks is None)
