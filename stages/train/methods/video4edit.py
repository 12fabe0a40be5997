"""Video4Edit: an image edit as a short clip from the source to the edited picture.

A frozen first/last-frame teacher is given both pictures and an evolution caption and samples the clips once, offline
(`rollout`). At each step student and teacher see the same noised rollout, but the student, an image-to-video model,
is given the source and the raw instruction alone. It learns the teacher's hidden states (eq. 2) and how the clip ends
(eq. 6); and, beyond the paper, the teacher's velocity: equal hidden states give another velocity under the student's
own last layer, and near t = 1 the tail's weight is 0, so there nothing else says where to go.
"""

from __future__ import annotations

import torch

from stages.train import flow
from stages.train.backbones.packing import unpack
from stages.train.methods.settings import Video4EditConfig
from stages.train.roles import Batch, Draws, Roles, TextEmbeds, Velocity

TRAINED = ("student",)
LATENTS = ("rollout", "tail", "source_condition", "pair_condition", "source_image_embeds", "pair_image_embeds")
TEXTS = ("instruction", "evolution_caption")
LABELS = ()


@torch.no_grad()
def rollout(
    teacher: Velocity,
    noise: torch.Tensor,
    text: TextEmbeds,
    condition: torch.Tensor,
    nodes: torch.Tensor,
    guidance_scale: float = 1.0,
    negative: TextEmbeds | None = None,
) -> torch.Tensor:
    """The teacher's clips `[B, N, C]`, sampled from `noise` over the times `nodes` `[S + 1]` from 1 to 0 (Euler).

    `nodes` can be the `sigmas` of the model's own scheduler. Above a guidance scale of 1 there is a second forward
    with the `negative` text.
    """
    state = noise.float()
    for t, next_t in zip(nodes[:-1], nodes[1:], strict=True):
        x_t, times = state.to(noise.dtype), t.expand(len(state))
        velocity = teacher(x_t, times, text, condition).float()
        if guidance_scale > 1:
            unguided = teacher(x_t, times, negative, condition).float()
            velocity = unguided + guidance_scale * (velocity - unguided)
        state = state + (next_t - t) * velocity
    return state.to(noise.dtype)


def distillation_loss(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """The blocks' squared differences, summed over blocks (eq. 2): per sample `[B]`, in float32.

    Within a block it is their mean, so that the weight doesn't hang on the size of clip and model.
    """
    return sum(flow.velocity_loss(ours, theirs) for ours, theirs in zip(student, teacher, strict=True))


def tail_weight(t: torch.Tensor) -> torch.Tensor:
    """`(1 - t)^3`: what the estimate at time t is worth (eq. 5, T = 1)."""
    return (1 - t) ** 3


def tail_loss(estimate: torch.Tensor, tail: torch.Tensor, grid: tuple[int, int, int], beta: float) -> torch.Tensor:
    """How far the last latent frame of a clip's clean `estimate` `[B, N, C]` is from `tail`: `[B]`, float32 (eq. 6).

    The mean absolute difference, and `beta` times that of the spatial gradients, which are taken between
    neighbouring latent pixels along both axes.
    """
    num_tokens = tail.shape[1]
    difference = unpack(estimate[:, -num_tokens:].float() - tail.float(), (1, *grid[1:]))
    rows, columns = difference.diff(dim=-2), difference.diff(dim=-1)
    gradients = rows.abs().flatten(1).mean(1) + columns.abs().flatten(1).mean(1)
    return difference.abs().flatten(1).mean(1) + beta * gradients


def step(config: Video4EditConfig, roles: Roles, batch: Batch, draws: Draws, index: int) -> dict[str, torch.Tensor]:
    """One step (eq. 1): gradients are left in the student; returns the figures to log."""
    latents, texts = batch.latents, batch.texts
    clip, noise = latents["rollout"], draws.normal(latents["rollout"])
    t = draws.times(lambda n, g: flow.logit_normal(n, g, config.shift), clip.device)
    x_t = flow.noised(clip, noise, t)
    text = {**texts["instruction"], "image_embeds": latents["source_image_embeds"]}
    velocity, hidden = roles.student_hidden(x_t, t, text, latents["source_condition"])
    total, figures = torch.zeros((), device=clip.device), {}
    if config.distillation:
        caption = texts["evolution_caption" if config.evolution_captions else "instruction"]
        text = {**caption, "image_embeds": latents["pair_image_embeds"]}
        with torch.no_grad():
            wanted_velocity, wanted = roles.teacher_hidden(x_t, t, text, latents["pair_condition"])
        loss_kd = distillation_loss(hidden, wanted).mean()
        loss_velocity = flow.velocity_loss(velocity, wanted_velocity).mean()
        total = total + config.lambda_kd * loss_kd + config.lambda_velocity * loss_velocity
        figures |= {"loss_kd": loss_kd.detach(), "loss_velocity": loss_velocity.detach()}
    if config.tail:
        estimate = flow.clean_estimate(x_t, velocity, t)  # eq. 3
        loss_tail = (tail_weight(t) * tail_loss(estimate, latents["tail"], batch.grid, config.beta)).mean()
        total = total + config.lambda_tail * loss_tail
        figures["loss_tail"] = loss_tail.detach()
    roles.backward(total)
    return figures
