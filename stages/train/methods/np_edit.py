"""NP-Edit: a few-step editor trained by a vision-language model's Yes and No, and by distribution matching.

After a warm-up of plain reconstruction (algorithm 1, line 2), turns alternate: one update of the student by the
judge's answers (eq. 4) and by DMD (eq. 5), then `num_auxiliary_updates` of the auxiliary model, which learns the
distribution of the student's edits. The student never sees an edited picture: it is unrolled from noise (eq. 3).
"""

from __future__ import annotations

import torch

from stages.train import flow
from stages.train.methods.settings import NPEditConfig
from stages.train.roles import Batch, Draws, Roles

TRAINED = ("student", "auxiliary")
LATENTS = ("source",)
TEXTS = ("src_caption", "tgt_caption", "instruction", "nothing")
LABELS = ("edit_type", "object", "instruction")


def turn_of(config: NPEditConfig, index: int) -> tuple[str, int]:
    """What step `index` does: `warmup`, `student` or `auxiliary`; and the student's turns before it."""
    if index < config.identity_warmup:
        return "warmup", 0
    num_turns, place = divmod(index - config.identity_warmup, 1 + config.num_auxiliary_updates * config.dmd)
    return ("student" if place == 0 else "auxiliary"), num_turns + (place > 0)


def unroll(
    config: NPEditConfig, roles: Roles, batch: Batch, draws: Draws, num_turns: int, instruction: str = "instruction"
) -> torch.Tensor:
    """The edit from pure noise in one step or two (eq. 3), `[B, N, C]`.

    The time of the second step is one of `times`, the same for all rows so that no rank runs more forwards; 1
    means that there is no second step.
    """
    source, text = batch.latents["source"], batch.texts[instruction]
    noise, fresh = draws.normal(source), draws.normal(source)
    time = config.times[draws.choice(len(config.times))]
    t = torch.ones(len(source), device=source.device)
    single = time == 1 or num_turns < config.single_step_turns
    with torch.set_grad_enabled(torch.is_grad_enabled() and (single or config.through_both_steps)):
        edited = flow.clean_estimate(noise, roles.student(noise, t, text, source), t)
    if single:
        return edited
    t = t * time
    x_t = flow.noised(edited, fresh, t)
    return flow.clean_estimate(x_t, roles.student(x_t, t, text, source), t)


def dmd_gradient(
    x0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, v_real: torch.Tensor, v_fake: torch.Tensor
) -> torch.Tensor:
    """The direction from the edits to the teacher's distribution, negated: what to descend along, `[B, N, C]`.

    With v = eps - x0 and clean estimates `x_t - t v` it is `x0_fake - x0_real = t (v_real - v_fake)`; the paper's
    eq. 5 has the other sign. Each sample is divided by its mean |x0 - x0_real|, as DMD does.
    """
    scale = (x0 - flow.clean_estimate(x_t, v_real, t)).float().abs().flatten(1).mean(1).clamp_min(1e-6)
    return flow.expand(t / scale, x0) * (v_real - v_fake)


def dmd_loss(config: NPEditConfig, roles: Roles, batch: Batch, draws: Draws, x0: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient by the edits `x0` is `dmd_gradient` at a random time, a mean over rows (eq. 5)."""
    text = batch.texts["tgt_caption"]
    t = draws.times(lambda n, g: flow.logit_normal(n, g, config.dmd_shift), x0.device)
    noise = draws.normal(x0)
    with torch.no_grad():
        x_t = flow.noised(x0, noise, t)
        v_real, v_fake = roles.frozen(x_t, t, text, None), roles.auxiliary(x_t, t, text, None)
        wanted = x0 - dmd_gradient(x0, x_t, t, v_real, v_fake)
    return 0.5 * flow.velocity_loss(x0, wanted).mean()


def warmup_step(roles: Roles, batch: Batch, draws: Draws) -> dict[str, torch.Tensor]:
    """Reconstructs the reference under its own caption (algorithm 1, lines 2 to 10)."""
    source = batch.latents["source"]
    noise = draws.normal(source)
    t = draws.times(flow.logit_normal, source.device)
    velocity = roles.student(flow.noised(source, noise, t), t, batch.texts["src_caption"], source)
    loss = flow.velocity_loss(velocity, noise - source).mean()
    roles.backward(loss)
    return {"loss_identity": loss.detach()}


def student_step(
    config: NPEditConfig, roles: Roles, batch: Batch, draws: Draws, num_turns: int
) -> dict[str, torch.Tensor]:
    """One update of the editor (lines 14 to 23); seldom it is asked to do nothing and must return the source."""
    if draws.chance(config.nothing_probability):
        edited = unroll(config, roles, batch, draws, num_turns, "nothing")
        loss = flow.velocity_loss(edited, batch.latents["source"]).mean()
        roles.backward(loss)
        return {"loss_nothing": loss.detach()}
    edited = unroll(config, roles, batch, draws, num_turns)
    total, figures = torch.zeros((), device=edited.device), {}
    if config.vlm:
        losses, right = roles.judge(edited, batch)
        total = total + config.lambda_vlm * losses.mean()
        figures |= {"loss_vlm": losses.mean().detach(), "judged_right": right.mean()}
    if config.dmd:
        loss_dmd = dmd_loss(config, roles, batch, draws, edited)
        total = total + config.lambda_dmd * loss_dmd
        figures["loss_dmd"] = loss_dmd.detach()
    if config.lambda_lpips:
        loss_lpips = roles.perceptual(edited, batch).mean()
        total = total + config.lambda_lpips * loss_lpips
        figures["loss_lpips"] = loss_lpips.detach()
    roles.backward(total)
    return figures


def auxiliary_step(
    config: NPEditConfig, roles: Roles, batch: Batch, draws: Draws, num_turns: int
) -> dict[str, torch.Tensor]:
    """One update of the auxiliary model on the student's present edits, from their captions (lines 24 to 30)."""
    with torch.no_grad():
        edited = unroll(config, roles, batch, draws, num_turns)
    noise = draws.normal(edited)
    t = draws.times(lambda n, g: flow.logit_normal(n, g, config.dmd_shift), edited.device)
    velocity = roles.auxiliary(flow.noised(edited, noise, t), t, batch.texts["tgt_caption"], None)
    loss = flow.velocity_loss(velocity, noise - edited).mean()
    roles.backward(loss, "auxiliary")
    return {"loss_auxiliary": loss.detach()}


def step(config: NPEditConfig, roles: Roles, batch: Batch, draws: Draws, index: int) -> dict[str, torch.Tensor]:
    """One turn: gradients are left in the adapter whose turn it is; returns the figures to log."""
    turn, num_turns = turn_of(config, index)
    if turn == "warmup":
        return warmup_step(roles, batch, draws)
    if turn == "student":
        return student_step(config, roles, batch, draws, num_turns)
    return auxiliary_step(config, roles, batch, draws, num_turns)
