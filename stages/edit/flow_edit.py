"""FlowEdit (Kulikov et al. 2024): the way from a source to its edit, integrated without inverting the source."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stages.train.flow import euler, noised

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def flow_edit(
    v_src: Velocity,
    v_tgt: Velocity,
    source: torch.Tensor,
    draw_noise: Callable[[], torch.Tensor],
    nodes: torch.Tensor,
    *,
    num_averages: int = 1,
    num_sampled_steps: int = 0,
) -> torch.Tensor:
    """The edited latents `[B, N, C]` of the `source` latents (Algorithm 1 of the paper).

    Noise is drawn `num_averages` times for each step, and once more where steps are sampled.

    Args:
        v_src, v_tgt: the model's velocity `(x_t [B, N, C], t [B]) -> [B, N, C]` under the source's caption and
            under the target's.
        draw_noise: gives fresh noise `[B, N, C]` at every call.
        nodes: times, falling from t_{n_max} to 0.
        num_averages: n_avg, the draws over which a step's direction is averaged.
        num_sampled_steps: n_min, the last steps, which are ordinary sampling under the target's caption.
    """
    num_steps = len(nodes) - 1 - num_sampled_steps

    def direction(z_fe: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(z_fe)
        for _ in range(num_averages):
            z_src = noised(source, draw_noise(), t)
            z_tar = z_src + (z_fe - source)  # in this order equal captions give equal states, to the bit
            total += v_tgt(z_tar, t) - v_src(z_src, t)
        return total / num_averages

    z_fe = euler(direction, source, nodes[: num_steps + 1])
    if num_sampled_steps == 0:
        return z_fe
    t = nodes[num_steps].expand(len(source))
    z_tar = noised(source, draw_noise(), t) + (z_fe - source)
    return euler(v_tgt, z_tar, nodes[num_steps:])
