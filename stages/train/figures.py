"""The figures of training steps: means over the ranks, means over steps, and the stop where one is out of bounds."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from cluster.errors import UserError
from stages.train.roles import Batch


class TrainingDiverged(UserError):
    """A loss or gradient that isn't finite, or too large; with the `step`, `figures` and global `batch`."""

    def __init__(self, step: int, figures: dict[str, float], batch: Batch, bound: float) -> None:
        bad = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        super().__init__(
            f"Training stopped at step {step}: a figure isn't finite or the gradient norm is above {bound:g} "
            f"({bad}). The rows of that step: {', '.join(batch.ids)}. A lower learning rate often helps; the "
            "bound is stop_gradient_norm."
        )
        self.step, self.figures, self.batch = step, figures, batch


def reduced(figures: dict[str, torch.Tensor], world_size: int) -> dict[str, float]:
    """The figures of a step, means over the ranks; on every rank at once.

    A rank's loss is a mean over its own rows, so the norms of gradients at its output add up in
    squares, each rank's part a share of the global mean.
    """
    names = sorted(figures)
    values = torch.stack([figures[name].detach().float() for name in names])
    if world_size > 1:
        is_norm = torch.tensor([name.startswith("gradient_") for name in names], device=values.device)
        values = values / world_size
        values = torch.where(is_norm, values.square(), values)
        dist.all_reduce(values)
        values = torch.where(is_norm, values.sqrt(), values)
    return dict(zip(names, values.tolist(), strict=True))


def norm_name(adapter: str) -> str:
    """The figure that has the norm of an adapter's gradient."""
    return "gradient_norm" if adapter == "student" else f"gradient_norm_{adapter}"


def means(history: list[tuple[int, str, float]], first: int, last: int) -> dict[str, float]:
    """The mean of each figure over the steps from `first` to `last`."""
    found: dict[str, list[float]] = {}
    for step, name, value in reversed(history):
        if step < first:
            break
        if step <= last:
            found.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in sorted(found.items())}
