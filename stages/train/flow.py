"""Flow matching, as functions on tensors.

Conventions: `x_t = (1 - t) x0 + t eps`, velocity `v = eps - x0`, t in [0, 1], 1 is noise. Latents are tokens
`[B, N, C]`, times `[B]` in float32. Losses come per sample, `[B]`, in float32.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional


def item_generator(item_id: str, seed: int) -> torch.Generator:
    """The generator (on the CPU) of an item's draws, the same in any batch and for any method."""
    digest = hashlib.sha256(f"{seed}:{item_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def expand(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`[B]` to `[B, 1, 1]`, in the dtype of `like`."""
    return t.view(-1, *([1] * (like.ndim - 1))).to(like.dtype)


def noised(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The state x_t between the clean `x0` and the `noise`."""
    t = expand(t, x0)
    return (1 - t) * x0 + t * noise


def clean_estimate(x_t: torch.Tensor, velocity: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The one-step estimate `x_t - t v` of the clean latents."""
    return x_t - expand(t, x_t) * velocity


def velocity_loss(velocity: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error per sample."""
    return (velocity.float() - target.float()).square().flatten(1).mean(1)


def directional_loss(velocity: torch.Tensor, v_src: torch.Tensor, v_tgt: torch.Tensor) -> torch.Tensor:
    """`1 - cos(v - v_src, v_tgt - v_src)` over the whole sample (ByG, eq. 2)."""
    ours = (velocity.float() - v_src.float()).flatten(1)
    wanted = (v_tgt.float() - v_src.float()).flatten(1)
    return 1 - functional.cosine_similarity(ours, wanted, dim=1, eps=1e-6)


def shifted(t: torch.Tensor, shift: float) -> torch.Tensor:
    """Times moved towards noise (`shift` > 1) as flow schedulers do: `s t / (1 + (s - 1) t)`."""
    return shift * t / (1 + (shift - 1) * t)


def logit_normal(num: int, generator: torch.Generator, shift: float = 1.0) -> torch.Tensor:
    """Times `[num]` whose logits are normal, then shifted."""
    return shifted(torch.randn(num, generator=generator).sigmoid(), shift)


def logit_normal_share(low: float, shift: float = 1.0) -> float:
    """The share of the times that `logit_normal` draws which lie at `low` (in (0, 1)) or above."""
    return 0.5 * math.erfc((math.log(low / (1 - low)) - math.log(shift)) / math.sqrt(2))


def is_within(t: torch.Tensor, t_range: tuple[float, float]) -> torch.Tensor:
    """Which times lie in a range; its upper end belongs to the next range, but for 1.

    Compared in thousandths, as pipelines do: rounding must fall on the same side.
    """
    low, high = t_range
    return (1000 * t >= 1000 * low) & ((1000 * t < 1000 * high) | (high >= 1))


def sampling_nodes(num_steps: int, shift: float = 1.0) -> torch.Tensor:
    """The times `[num_steps + 1]` from 1 to 0 at which an Euler sampler stands."""
    return shifted(torch.linspace(1, 0, num_steps + 1), shift)


def nearest_node(t: torch.Tensor, nodes: torch.Tensor, t_range: tuple[float, float] = (0.0, 1.0)) -> torch.Tensor:
    """The index of the node nearest to each time, `[B]`, among those in the range.

    Raises ValueError if there is none.
    """
    inside = is_within(nodes, t_range)
    if not inside.any():
        raise ValueError(f"none of the nodes {nodes.tolist()} lies in {t_range}")
    distances = (t[:, None] - nodes[None, :]).abs()
    return distances.masked_fill(~inside[None, :], math.inf).argmin(dim=1)


def euler(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], state: torch.Tensor, nodes: torch.Tensor
) -> torch.Tensor:
    """Follows `velocity(x_t, t)` from the state at `nodes[0]` to that at `nodes[-1]`, in float32."""
    for t, next_t in zip(nodes[:-1], nodes[1:], strict=True):
        state = state + (next_t - t) * velocity(state, t.expand(len(state))).float()
    return state


def few_step(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noises: Sequence[torch.Tensor],
    times: Sequence[float],
) -> torch.Tensor:
    """Samples as a few-step model is trained: a clean estimate at each of the falling `times`, then noise anew.

    The first time is 1; `noises` holds fresh noise `[B, N, C]` for each of them, whose dtype the states have.
    """
    state = noises[0]
    for index, time in enumerate(times):
        t = torch.full((len(state),), time, device=state.device)
        clean = clean_estimate(state, velocity(state, t).to(state.dtype), t)
        if index + 1 == len(times):
            return clean
        state = noised(clean, noises[index + 1], torch.full_like(t, times[index + 1]))
    raise ValueError("few_step needs at least one time")
