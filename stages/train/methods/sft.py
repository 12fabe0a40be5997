"""Supervised fine-tuning on true edit pairs: the upper bound that unpaired methods are measured against."""

from __future__ import annotations

import torch

from stages.train import flow
from stages.train.methods.settings import SFTConfig
from stages.train.roles import Batch, Draws, Roles

TRAINED = ("student",)
LATENTS = ("source", "target")
TEXTS = ("instruction",)
LABELS = ()


def step(config: SFTConfig, roles: Roles, batch: Batch, draws: Draws, index: int) -> dict[str, torch.Tensor]:
    """The flow-matching loss on the true target (ByG, eq. 1)."""
    source, target = batch.latents["source"], batch.latents["target"]
    noise = draws.normal(target)
    t = draws.times(lambda n, g: flow.logit_normal(n, g, config.shift), target.device)
    velocity = roles.student(flow.noised(target, noise, t), t, batch.texts["instruction"], source)
    loss = flow.velocity_loss(velocity, noise - target).mean()
    roles.backward(loss)
    return {"loss": loss.detach()}
