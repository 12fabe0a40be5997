"""A training step as one would write it down, to hold the engine against: no ranks, checkpoints, history, bounds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from stages.train.adapters import Adapters
from stages.train.backbones.backbone import HIDDEN_STATES, Backbone, backbone_of
from stages.train.backbones.models import resolved_model
from stages.train.data import EncodedData
from stages.train.engine import METHODS
from stages.train.roles import Draws, Roles
from stages.train.settings import TrainConfig
from stages.train.stage import load_judge


class BareLoop:
    """Model, LoRAs, torch's AdamW over lists of tensors and the method's own step; whole LoRA methods alone."""

    def __init__(self, config: TrainConfig, data: EncodedData, first_step: int = 0) -> None:
        self.config, self.data, self.count = config, data, first_step
        self.method, self.backbone = METHODS[config.method], backbone_of(config.model)
        self.transformer = load_transformer(self.backbone, config.model)
        self.adapters = Adapters(self.transformer)
        self.tensors, self.optimizers = {}, {}
        for name in (*self.method.TRAINED, "ema"):
            adapter = self.adapters.add(name, config.rank, config.lora_alpha, self.backbone.LORA_TARGETS, 0)
            self.tensors[name] = list(adapter.tensors.values())
        for name in self.method.TRAINED:
            for tensor in self.tensors[name]:
                tensor.requires_grad_()
            self.optimizers[name] = torch.optim.AdamW(
                self.tensors[name], lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
            )
        self.roles = Roles(
            self._role("student"), self._role("ema"), self._role(None), lambda loss, name="": loss.backward()
        )
        if "auxiliary" in self.method.TRAINED:
            self.roles.auxiliary = self._role("auxiliary")
        self.roles.judge = load_judge(config, data.grid, torch.device("cpu"))
        if hasattr(config, "teacher_model"):
            teacher = load_transformer(self.backbone, config.teacher_model)
            self.roles.student_hidden = self._with_hidden_states(self.transformer, "student")
            self.roles.teacher_hidden = self._with_hidden_states(teacher, None)

    def _role(self, name: str | None) -> Callable[..., torch.Tensor]:
        config = self.config

        def velocity(x_t, t, text, reference):
            with self.adapters.use(name):
                return self.backbone.velocity(
                    self.transformer,
                    x_t,
                    t,
                    text,
                    reference,
                    self.data.grid,
                    config.guidance_scale,
                    config.reference_positions,
                )

        return velocity

    def _with_hidden_states(self, transformer: torch.nn.Module, adapter: str | None) -> Callable:
        forward = HIDDEN_STATES[self.backbone.NAME]
        blocks = getattr(self.config, self.config.method).distilled_blocks(transformer.config.num_layers)

        def velocity(x_t, t, text, reference):
            with self.adapters.use(adapter) if adapter else contextlib.nullcontext():
                return forward(transformer, x_t, t, text, reference, self.data.grid, blocks)

        return velocity

    def step(self) -> None:
        """One update of whatever adapter the method's turn is about, and of the average."""
        config = self.config
        first = self.count * config.batch_size
        rows = [(first + row) % len(self.data) for row in range(config.batch_size)]
        draws = Draws(config.seed, self.count, config.batch_size, slice(0, config.batch_size))
        settings = getattr(config, config.method)
        self.method.step(settings, self.roles, self.data.batch(rows), draws, self.count)
        for name, optimizer in self.optimizers.items():
            if self.tensors[name][0].grad is None:
                continue
            torch.nn.utils.clip_grad_norm_(self.tensors[name], config.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad()
            if name == "student":
                with torch.no_grad():
                    students = [tensor.detach() for tensor in self.tensors[name]]
                    torch._foreach_lerp_(self.tensors["ema"], students, 1 - config.ema_decay)
        self.count += 1


def load_transformer(backbone: Backbone, model: str) -> torch.nn.Module:
    """The frozen transformer of a model, in float32."""
    transformer = backbone.TRANSFORMER.from_pretrained(
        resolved_model(model), subfolder="transformer", use_safetensors=True, torch_dtype=torch.float32
    )
    return transformer.requires_grad_(False).eval()
