"""Flow-GRPO (Liu et al. 2025): reinforcement learning with the judge's answers as reward, NP-Edit's baseline.

The student samples a group of edits of each picture by a stochastic differential equation with the same marginals as
its flow. What a judge thinks of them, against the others of the group, weighs how much likelier each one's way is to
become. It starts from a model that edits already (`init_adapter`): a group that is bad all through teaches nothing.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from stages.train import flow
from stages.train.methods.settings import FlowGRPOConfig
from stages.train.roles import Batch, Draws, Roles, TextEmbeds, Velocity

TRAINED = ("student",)
LATENTS = ("source",)
TEXTS = ("instruction",)
LABELS = ("edit_type", "object", "instruction")


def stochastic_step(
    x_t: torch.Tensor, velocity: torch.Tensor, t: torch.Tensor, next_t: torch.Tensor, noise_level: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean `[B, N, C]` and the standard deviation (a number) of the state at `next_t`, from that at `t`.

    With `sigma = noise_level sqrt(t / (1 - t))` and the score `-(x_t + (1 - t) v) / t`, the drift of the equation is
    `v + sigma^2 / (2 t) (x_t + (1 - t) v)` (Flow-GRPO, eq. 9). At t = 1 the denominator is that of `next_t`: sigma
    would be infinite.
    """
    rest = 1 - (next_t if t == 1 else t)
    sigma = noise_level * (t / rest).sqrt()
    drift = velocity + sigma.square() / (2 * t) * (x_t + (1 - t) * velocity)
    return x_t + (next_t - t) * drift, sigma * (t - next_t).sqrt()


def log_probability(state: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Of a state under a step's normal distribution: a mean over its numbers, `[B]`, in float32."""
    normed = (state.float() - mean.float()) / deviation
    return (-0.5 * normed.square() - deviation.log() - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def advantages(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """How much better each of `[B * group_size]` is than its group, in standard deviations of the group."""
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True, correction=0) + 1e-4)).flatten()


def repeated(batch: Batch, num: int) -> Batch:
    """Every row `num` times, side by side."""
    texts: dict[str, TextEmbeds] = {
        field: {name: tensor.repeat_interleave(num, 0) for name, tensor in embeds.items()}
        for field, embeds in batch.texts.items()
    }
    return dataclasses.replace(
        batch,
        ids=[row for row in batch.ids for _ in range(num)],
        latents={name: tensor.repeat_interleave(num, 0) for name, tensor in batch.latents.items()},
        texts=texts,
        labels={name: [label for label in column for _ in range(num)] for name, column in batch.labels.items()},
    )


@torch.no_grad()
def sample_group(
    student: Velocity, batch: Batch, noises: list[torch.Tensor], nodes: torch.Tensor, noise_level: float
) -> list[torch.Tensor]:
    """The states `[B, N, C]` of each edit's way over the times `nodes`, from the first of the noises to the edit.

    The last step, to t = 0, has no noise: nothing would take it away again.
    """
    states = [noises[0]]
    text, source = batch.texts["instruction"], batch.latents["source"]
    for t, next_t, noise in zip(nodes[:-1], nodes[1:], noises[1:], strict=True):
        velocity = student(states[-1], t.expand(len(noise)), text, source)
        mean, deviation = stochastic_step(states[-1], velocity, t, next_t, noise_level)
        states.append(mean + deviation * noise if next_t > 0 else states[-1] + (next_t - t) * velocity)
    return states


def step(config: FlowGRPOConfig, roles: Roles, batch: Batch, draws: Draws, index: int) -> dict[str, torch.Tensor]:
    """One update: a group for each row, its rewards, and a gradient from each of the steps that are trained.

    Edits are used once, so the ratio of new to old probability is 1 and its clipping has nothing to do.
    """
    size, source = config.group_size, batch.latents["source"]
    groups = source.unsqueeze(1).expand(-1, size, -1, -1)
    nodes = flow.sampling_nodes(config.num_rollout_steps, config.shift).to(source.device)
    noises = [draws.normal(groups).flatten(0, 1) for _ in nodes]
    batch = repeated(batch, size)
    states = sample_group(roles.student, batch, noises, nodes, config.noise_level)
    with torch.no_grad():
        losses, right = roles.judge(states[-1], batch)
    rewards = (-losses).exp()  # how probable the judge finds it that all its questions have the right answer
    advantage = advantages(rewards, size)
    places = range(config.num_rollout_steps - 1)  # of the last step nothing is random
    chosen = draws.subset(len(places), min(config.num_trained_steps, len(places)))
    for place in chosen:
        t, next_t, state = nodes[place], nodes[place + 1], states[place]
        velocity = roles.student(state, t.expand(len(state)), batch.texts["instruction"], batch.latents["source"])
        mean, deviation = stochastic_step(state, velocity, t, next_t, config.noise_level)
        logarithm = log_probability(states[place + 1], mean, deviation)
        roles.backward(-(advantage * (logarithm - logarithm.detach()).exp()).mean() / len(chosen))
    spread = rewards.view(-1, size).std(1, correction=0).mean()
    return {"reward": rewards.mean(), "reward_spread": spread, "judged_right": right.mean()}
