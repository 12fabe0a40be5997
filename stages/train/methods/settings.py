"""The methods' settings. They import no torch: planning reads them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class MethodConfig(BaseModel):
    """What every method's settings can be asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def few_step_times(self) -> tuple[float, ...] | None:
        """The falling times, from 1, at which alone the trained editor samples; None: it follows its velocity."""
        return None

    @property
    def time_shifts(self) -> tuple[float, ...] | None:
        """The shifts of the logit-normal times that a step draws; None: it needs times of its own, wherever they lie.

        Only a method that can do with a part of the times can train a model with two experts.
        """
        return None

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks of a step that trains all weights: the `student`, and what it needs beside it.

        The `auxiliary` is trained, too; the `frozen` base is not.
        """
        return ("student",)

    @property
    def unrolls(self) -> bool:
        """Whether the gradient of one loss may pass through several forwards of a network."""
        return False

    def distilled_blocks(self, num_layers: int) -> tuple[int, ...]:
        """The transformer blocks, of `num_layers`, whose hidden states the method compares with its teacher's."""
        return ()


class ByGConfig(MethodConfig):
    """The method's settings; the ablations of the paper's table 4 are one field each."""

    gradient_routing: bool = Field(True, description="condition the reverse pass on the clean edit (eq. 4)")
    cycle: bool = Field(True, description="the cycle loss (eq. 3)")
    directional: bool = Field(True, description="the direction term of the prior (eq. 2)")
    bootstrap: bool = Field(True, description="x_t from the EMA's own sampling; else the noised source")
    mse: bool = Field(True, description="the mean squared error that anchors the prior's magnitude")
    identity_steps: bool = Field(True, description="identity steps after the warm-up")

    lambda_cycle: float = Field(1.0, ge=0)
    lambda_prior: float = Field(1.0, ge=0)
    lambda_id: float = Field(0.2, ge=0)
    alpha: float = Field(0.1, ge=0, description="weight of the prior's mean squared error")
    identity_warmup: int = Field(200, ge=0, description="steps of identity alone at the start")
    identity_probability: float = Field(0.15, ge=0, le=1)
    num_rollout_steps: int = Field(10, ge=2, description="sampling steps from noise to the clean edit")
    forward_shift: float = Field(1.0, gt=0, description="shift of the forward pass's times towards noise")
    reverse_shift: float = Field(1.0, gt=0, description="shift of the reverse pass's times towards noise")
    prior_t_range: tuple[float, float] = Field(
        (0.0, 1.0), description="times at which the frozen base is asked; near 1 it knows no detail"
    )

    @property
    def time_shifts(self) -> tuple[float, ...]:
        return (self.forward_shift, self.reverse_shift)


class VideoByGConfig(ByGConfig):
    """The method's settings for clips, as in the paper's appendix B.2; the shift's size is lost there, it is Wan's."""

    identity_probability: float = Field(0.10, ge=0, le=1)
    forward_shift: float = Field(3.0, gt=0, description="shift of the forward pass's times towards noise")
    reverse_shift: float = Field(3.0, gt=0, description="shift of the reverse pass's times towards noise")


class SFTConfig(MethodConfig):
    """Settings of supervised training."""

    shift: float = Field(1.0, gt=0, description="shift of the times towards noise")

    @property
    def time_shifts(self) -> tuple[float, ...]:
        return (self.shift,)


class NPEditConfig(MethodConfig):
    """NP-Edit's settings; the ablations of the paper's table 3 are one field each."""

    vlm: bool = Field(True, description="the judge's loss (eq. 4)")
    dmd: bool = Field(True, description="distribution matching (eq. 5)")
    identity_question: bool = Field(True, description="ask also whether the rest is the same")
    vocabulary: bool = Field(False, description="cross-entropy over all words in the place of Yes against No")

    lambda_vlm: float = Field(0.01, ge=0)
    lambda_dmd: float = Field(0.5, ge=0)
    lambda_lpips: float = Field(0.0, ge=0, description="of LPIPS between edit and source (appendix C); 0: without")
    identity_warmup: int = Field(250, ge=0, description="steps of reconstruction at the start")
    num_auxiliary_updates: int = Field(10, ge=1, description="steps of the auxiliary model to each of the student")
    single_step_turns: int = Field(4000, ge=0, description="the student's steps before it is unrolled twice")
    times: tuple[float, ...] = Field(
        (0.25, 0.5, 0.75, 1.0), min_length=1, description="where the second step starts; 1: there is none"
    )
    through_both_steps: bool = Field(True, description="gradient through the first of two steps as well")
    nothing_probability: float = Field(0.01, ge=0, le=1, description='of "do nothing" at the student\'s steps')
    dmd_shift: float = Field(1.0, gt=0, description="shift of the times of DMD towards noise")

    @field_validator("times")
    @classmethod
    def _are_times(cls, times: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < t <= 1 for t in times):
            raise ValueError("times lie above 0 and are at most 1")
        return times

    @model_validator(mode="after")
    def _learns_from_something(self) -> NPEditConfig:
        if not (self.vlm or self.dmd):
            raise ValueError("without vlm and without dmd there is nothing to learn from: leave one of them on")
        return self

    @property
    def few_step_times(self) -> tuple[float, ...]:
        return (1.0, *sorted({time for time in self.times if time < 1}, reverse=True))

    @property
    def networks(self) -> tuple[str, ...]:
        return ("student", "auxiliary", "frozen") if self.dmd else ("student",)

    @property
    def unrolls(self) -> bool:
        return self.through_both_steps and min(self.times) < 1


class FlowGRPOConfig(MethodConfig):
    """Flow-GRPO's settings, as NP-Edit's baseline has them (appendix F)."""

    group_size: int = Field(16, ge=2, description="edits of each row, which are compared with each other")
    num_rollout_steps: int = Field(12, ge=2)
    num_trained_steps: int = Field(11, ge=1, description="of the rollout's steps, drawn anew each time")
    noise_level: float = Field(0.7, gt=0, description="of the stochastic sampling, a in the paper")
    shift: float = Field(1.0, gt=0, description="shift of the times towards noise")
    identity_question: bool = Field(True, description="ask also whether the rest is the same")


class Video4EditConfig(MethodConfig):
    """Video4Edit's settings; the ablations of the paper's table 6 are one field each.

    The paper's weights, its beta and its choice of blocks are lost: these are ours.
    """

    distillation: bool = Field(True, description="the hidden states follow the teacher's (eq. 2)")
    tail: bool = Field(True, description="the clip's end follows the edited picture (eq. 6)")
    evolution_captions: bool = Field(True, description="the teacher reads these; else the student's instruction")

    lambda_kd: float = Field(1.0, ge=0)
    lambda_velocity: float = Field(
        1.0,
        ge=0,
        description="of the distilled velocity, the network's output beside its blocks'; ours, 0: as the paper",
    )
    lambda_tail: float = Field(1.0, ge=0)
    beta: float = Field(0.1, ge=0, description="weight of the tail's spatial gradients")
    blocks: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        4, description="the blocks that are distilled: how many, evenly spread, or which"
    )
    shift: float = Field(1.0, gt=0, description="shift of the times towards noise")

    @field_validator("blocks")
    @classmethod
    def _are_blocks(cls, blocks: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(blocks, tuple) and (not blocks or list(blocks) != sorted(set(blocks))):
            raise ValueError("give the indices of one block or more, rising, each once")
        return blocks

    @model_validator(mode="after")
    def _learns_from_something(self) -> Video4EditConfig:
        if not (self.distillation or self.tail):
            raise ValueError("without distillation and without tail there is nothing to learn from: leave one on")
        return self

    def distilled_blocks(self, num_layers: int) -> tuple[int, ...]:
        """Evenly spread, the last block among them, unless they are named.

        Raises ValueError if a transformer of `num_layers` blocks hasn't got them.
        """
        blocks = self.blocks
        if isinstance(blocks, int):
            blocks = tuple((place + 1) * num_layers // blocks - 1 for place in range(blocks))
        if blocks[0] < 0 or blocks[-1] >= num_layers:
            raise ValueError(f"blocks {self.blocks} can't be taken from a transformer of {num_layers}")
        return blocks


SETTINGS: dict[str, type[MethodConfig]] = {
    "byg": ByGConfig,
    "flow_grpo": FlowGRPOConfig,
    "np_edit": NPEditConfig,
    "sft": SFTConfig,
    "video4edit": Video4EditConfig,
}
