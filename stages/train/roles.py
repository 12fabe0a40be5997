"""What a method trains with: networks by role, a batch of encoded data, and the draws of one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from stages.train.flow import is_within

_MAX_DRAWS = 2000
_MARGIN = 1e-6

TextEmbeds = Mapping[str, torch.Tensor]
"""Embeddings of a batch of texts, by the names that the backbone's transformer takes (each `[B, ...]`)."""


class Velocity(Protocol):
    """A network in one role: the velocity `[B, N, C]` at tokens `x_t` of times `t` `[B]`, given text and reference."""

    def __call__(
        self, x_t: torch.Tensor, t: torch.Tensor, text: TextEmbeds, reference: torch.Tensor | None
    ) -> torch.Tensor: ...


class VelocityAndHiddenStates(Protocol):
    """A network in one role that also shows what its chosen blocks give, each `[B, N, D]`."""

    def __call__(
        self, x_t: torch.Tensor, t: torch.Tensor, text: TextEmbeds, reference: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]: ...


@dataclasses.dataclass
class Batch:
    """Encoded rows: `latents` by field, `[B, N, C]`, `texts` by field, and `labels`, plain words by field.

    `grid` is how the tokens of the latents lie: (rows, columns), of clips (frames, rows, columns).
    """

    ids: list[str]
    latents: dict[str, torch.Tensor]
    texts: dict[str, TextEmbeds]
    labels: dict[str, list[str | None]] = dataclasses.field(default_factory=dict)
    grid: tuple[int, ...] = ()


class Draws:
    """All randomness of one step, for the whole global batch, of which this rank takes its rows.

    Drawing for all ranks on each makes the numbers independent of how many ranks there are.
    """

    def __init__(self, seed: int, step: int, batch_size: int, rows: slice) -> None:
        self.generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        self.batch_size = batch_size
        self._rows = rows
        self.t_range = (0.0, 1.0)
        """The times of this step: of a model with two experts those of the one that it trains."""

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        """Noise in the shape of this rank's rows `like`, in float32 before the cast."""
        noise = torch.randn((self.batch_size, *like.shape[1:]), generator=self.generator)
        return noise[self._rows].to(like)

    def times(self, draw: Callable[[int, torch.Generator], torch.Tensor], device) -> torch.Tensor:
        """This rank's times, drawn by `draw(num, generator)`, those outside `t_range` again.

        After `_MAX_DRAWS` rounds, in a range that the distribution hardly reaches, the nearest time in it is taken.
        """
        low, high = self.t_range
        t = draw(self.batch_size, self.generator)
        for _ in range(_MAX_DRAWS):
            inside = is_within(t, self.t_range)
            if inside.all():
                break
            t = torch.where(inside, t, draw(self.batch_size, self.generator))
        else:
            t = torch.where(is_within(t, self.t_range), t, t.clamp(low, high if high >= 1 else high - _MARGIN))
        return t[self._rows].to(device)

    def chance(self, probability: float) -> bool:
        """One coin for the whole step: every rank sees the same side."""
        return bool(torch.rand((), generator=self.generator) < probability)

    def subset(self, num: int, size: int) -> list[int]:
        """`size` of `num` different numbers for the whole step, rising, the same on every rank."""
        return sorted(torch.randperm(num, generator=self.generator)[:size].tolist())

    def choice(self, num: int) -> int:
        """One of `num` for the whole step, the same on every rank."""
        return int(torch.randint(num, (), generator=self.generator))


class Judge(Protocol):
    """A frozen vision-language model that looks at decoded edits: its loss per row, `[B]`, and its share of right
    answers; gradients reach the `edited` tokens `[B, N, C]`."""

    def __call__(self, edited: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]: ...


class PerceptualDistance(Protocol):
    """How different the decoded edits `[B, N, C]` look from their sources, `[B]`; gradients reach the edits."""

    def __call__(self, edited: torch.Tensor, batch: Batch) -> torch.Tensor: ...


class Backward(Protocol):
    """Backpropagates a loss into one of the trained adapters."""

    def __call__(self, loss: torch.Tensor, name: str = "student") -> None: ...


@dataclasses.dataclass
class Roles:
    """The networks: the `student` is trained, `rollout` is what samples (its EMA), `frozen` the pretrained base.

    A method that names it in its TRAINED has an `auxiliary` too, trained beside the student; a method whose
    settings ask for them has a `judge` and a `perceptual` distance. A method that distils has `student_hidden`, the
    student with its hidden states, and `teacher_hidden`, another pretrained network with its own.
    """

    student: Velocity
    rollout: Velocity
    frozen: Velocity
    backward: Backward
    auxiliary: Velocity | None = None
    judge: Judge | None = None
    perceptual: PerceptualDistance | None = None
    student_hidden: VelocityAndHiddenStates | None = None
    teacher_hidden: VelocityAndHiddenStates | None = None


def joined(texts: list[TextEmbeds]) -> TextEmbeds:
    """Several batches of text embeddings as one."""
    return {key: torch.cat([text[key] for text in texts]) for key in texts[0]}
