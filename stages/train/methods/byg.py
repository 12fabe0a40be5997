"""ByG, Bootstrap Your Generator: an editing model from images and captions alone, without one edit pair.

Each step (section 4, algorithm 1): an EMA copy of the student samples an edit (*bootstrap*, 4.1); the frozen base
says in which direction the edit lies (*prior*, 4.2, eq. 2); the reverse instruction must lead back to the source
(*cycle*, 4.3, eq. 3), where the reverse pass sees the clean edit and its gradient goes to the one-step estimate
(straight-through, eq. 4). Identity steps teach to copy what the instruction doesn't touch.
"""

from __future__ import annotations

import torch

from stages.train import flow
from stages.train.methods.settings import ByGConfig
from stages.train.roles import Batch, Draws, Roles, joined

TRAINED = ("student",)
LATENTS = ("source",)
TEXTS = ("src_caption", "tgt_caption", "instruction", "reverse_instruction")
LABELS = ()


def rollout(
    roles: Roles, batch: Batch, noise: torch.Tensor, node: torch.Tensor, nodes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples the edit with the EMA from noise to the end (section 4.1).

    Returns (x_t at each row's `node`, the clean edit), both `[B, N, C]`. The number of forwards never varies.
    """
    state, captured = noise, noise.clone()
    with torch.no_grad():
        for index in range(len(nodes) - 1):
            t = nodes[index].expand(len(state))
            velocity = roles.rollout(state, t, batch.texts["instruction"], batch.latents["source"])
            state = state + (nodes[index + 1] - nodes[index]) * velocity
            captured = torch.where((node == index + 1)[:, None, None], state, captured)
    return captured, state


def prior_loss(
    config: ByGConfig, velocity: torch.Tensor, v_src: torch.Tensor, v_tgt: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """The prior (section 4.2): direction plus `alpha` times magnitude; a mean over all rows, those outside count 0."""
    low, high = config.prior_t_range
    loss = torch.zeros_like(t)
    if config.directional:
        loss = loss + flow.directional_loss(velocity, v_src, v_tgt)
    if config.mse:
        loss = loss + (config.alpha if config.directional else 1.0) * flow.velocity_loss(velocity, v_tgt)
    return (loss * ((t >= low) & (t <= high))).mean()


def identity_step(config: ByGConfig, roles: Roles, batch: Batch, draws: Draws) -> dict[str, float]:
    """The source as input and reference with the reverse instruction, an edit that is done already (section 4.3)."""
    source = batch.latents["source"]
    noise = draws.normal(source)
    t = draws.times(lambda n, g: flow.logit_normal(n, g, config.reverse_shift), source.device)
    velocity = roles.student(flow.noised(source, noise, t), t, batch.texts["reverse_instruction"], source)
    loss = flow.velocity_loss(velocity, noise - source).mean()
    roles.backward(config.lambda_id * loss)
    return {"loss_identity": loss.detach()}


def edit_step(config: ByGConfig, roles: Roles, batch: Batch, draws: Draws) -> dict[str, torch.Tensor]:
    """Forward and reverse pass with decoupled straight-through: two gradients, never two graphs alive.

    The reverse pass's value depends on the clean edit alone. So it runs first, with the clean edit as a leaf that
    collects `g`; then the forward pass runs with the extra loss `<-t g, v>`, which is the gradient that eq. 4 routes
    to the one-step estimate `y_hat = x_t - t v`.
    """
    source, texts = batch.latents["source"], batch.texts
    nodes = flow.sampling_nodes(config.num_rollout_steps).to(source.device)
    low, high = config.prior_t_range
    wanted = draws.times(lambda n, g: flow.logit_normal(n, g, config.forward_shift), source.device)
    # of the nodes at which this step may train; where none is in prior_t_range the prior counts nothing
    node = flow.nearest_node(wanted.clamp(low, high), nodes[:-1], draws.t_range)
    t, noise = nodes[node], draws.normal(source)
    t_reverse = draws.times(lambda n, g: flow.logit_normal(n, g, config.reverse_shift), source.device)
    noise_reverse = draws.normal(source)

    x_t, clean_edit = rollout(roles, batch, noise, node, nodes)
    if not config.bootstrap:
        x_t = flow.noised(source, noise, t)
    x_reverse = flow.noised(source, noise_reverse, t_reverse)
    with torch.no_grad():  # the four frozen queries in one batch
        answers = roles.frozen(
            torch.cat([x_t, x_t, x_reverse, x_reverse]),
            torch.cat([t, t, t_reverse, t_reverse]),
            joined([texts["src_caption"], texts["tgt_caption"], texts["tgt_caption"], texts["src_caption"]]),
            None,
        )
        v_src, v_tgt, v_src_reverse, v_tgt_reverse = answers.chunk(4)

    if not config.gradient_routing:
        return _coupled(config, roles, batch, x_t, t, x_reverse, t_reverse, noise_reverse, answers)

    figures: dict[str, torch.Tensor] = {}
    clean_edit = clean_edit.detach().requires_grad_()
    velocity = roles.student(x_reverse, t_reverse, texts["reverse_instruction"], clean_edit)
    loss_cycle = flow.velocity_loss(velocity, noise_reverse - source).mean()
    loss_prior = prior_loss(config, velocity, v_src_reverse, v_tgt_reverse, t_reverse)
    figures |= _gradient_norms(config, velocity, loss_cycle, loss_prior)
    figures |= {"loss_cycle": loss_cycle.detach(), "loss_prior_reverse": loss_prior.detach()}
    roles.backward(config.lambda_cycle * config.cycle * loss_cycle + config.lambda_prior * loss_prior)
    routed = clean_edit.grad

    velocity = roles.student(x_t, t, texts["instruction"], source)
    loss_prior = prior_loss(config, velocity, v_src, v_tgt, t)
    surrogate = (-flow.expand(t, routed) * routed * velocity).sum()
    figures |= {"loss_prior_forward": loss_prior.detach(), "gradient_routed": (flow.expand(t, routed) * routed).norm()}
    roles.backward(config.lambda_prior * loss_prior + (surrogate if config.cycle else 0 * surrogate))
    return figures


def _coupled(config, roles, batch, x_t, t, x_reverse, t_reverse, noise_reverse, answers) -> dict[str, torch.Tensor]:
    """Without gradient routing (table 4): the reverse pass sees the one-step estimate itself."""
    source, texts = batch.latents["source"], batch.texts
    v_src, v_tgt, v_src_reverse, v_tgt_reverse = answers.chunk(4)
    velocity = roles.student(x_t, t, texts["instruction"], source)
    loss_forward = prior_loss(config, velocity, v_src, v_tgt, t)
    estimate = flow.clean_estimate(x_t, velocity, t)
    reverse = roles.student(x_reverse, t_reverse, texts["reverse_instruction"], estimate)
    loss_cycle = flow.velocity_loss(reverse, noise_reverse - source).mean()
    loss_reverse = prior_loss(config, reverse, v_src_reverse, v_tgt_reverse, t_reverse)
    total = config.lambda_cycle * config.cycle * loss_cycle + config.lambda_prior * (loss_forward + loss_reverse)
    roles.backward(total)
    return {
        "loss_cycle": loss_cycle.detach(),
        "loss_prior_reverse": loss_reverse.detach(),
        "loss_prior_forward": loss_forward.detach(),
    }


def _gradient_norms(config, velocity, loss_cycle, loss_prior) -> dict[str, torch.Tensor]:
    """How hard cycle and prior pull at the student's output: their balance decides what is learned."""
    figures = {}
    for name, weight, loss in (("cycle", config.lambda_cycle, loss_cycle), ("prior", config.lambda_prior, loss_prior)):
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, velocity, retain_graph=True)
            figures[f"gradient_{name}"] = weight * gradient.norm()
    return figures


def step(config: ByGConfig, roles: Roles, batch: Batch, draws: Draws, index: int) -> dict[str, torch.Tensor]:
    """One training step: gradients are left in the student's parameters; returns the figures to log.

    The first `identity_warmup` steps are identity steps, afterwards a share of `identity_probability`.
    """
    identity = draws.chance(config.identity_probability) and config.identity_steps
    if index < config.identity_warmup or identity:
        return identity_step(config, roles, batch, draws)
    return edit_step(config, roles, batch, draws)
