"""A student beside its teacher: two networks that show what their blocks give, if the two can be compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from cluster.errors import UserError
from stages.train.backbones.backbone import HIDDEN_STATES, backbone_of
from stages.train.roles import TextEmbeds, VelocityAndHiddenStates
from stages.train.settings import TrainVideo4EditConfig


def with_hidden_states(
    config: TrainVideo4EditConfig, student: nn.Module, teacher: nn.Module, grid: tuple[int, ...]
) -> tuple[VelocityAndHiddenStates, VelocityAndHiddenStates]:
    """Student and teacher as roles, for tokens that lie in `grid`, with the hidden states of the method's blocks.

    Raises UserError if the two can't be compared.
    """
    name = backbone_of(config.model).NAME
    if name not in HIDDEN_STATES or backbone_of(config.teacher_model).NAME != name:
        raise UserError(
            f"{config.stage}: model {config.model} and teacher_model {config.teacher_model} must both be one of "
            f"{', '.join(HIDDEN_STATES)}: only these show what their blocks give."
        )
    for setting in ("num_layers", "num_attention_heads", "attention_head_dim"):
        ours, theirs = (network.config.get(setting) for network in (student, teacher))
        if ours != theirs:
            raise UserError(
                f"The teacher {config.teacher_model} has a {setting} of {theirs}, the student {config.model} one of "
                f"{ours}: their hidden states can't be compared. Choose two of one size, --set "
                f"{config.stage}.teacher_model=..."
            )
    try:
        blocks = getattr(config, config.method).distilled_blocks(teacher.config.num_layers)
    except ValueError as error:
        raise UserError(f"{config.stage}.{config.method}.blocks: {error}.") from None
    return _role(name, student, grid, blocks), _role(name, teacher, grid, blocks)


def _role(name: str, transformer: nn.Module, grid: tuple[int, ...], blocks: Sequence[int]) -> VelocityAndHiddenStates:
    forward = HIDDEN_STATES[name]

    def velocity(
        x_t: torch.Tensor, t: torch.Tensor, text: TextEmbeds, reference: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return forward(transformer, x_t, t, text, reference, grid, blocks)

    return velocity
