"""Training every weight of the transformer: parameters, gradients, optimizer and average cut over the ranks by ZeRO-3.

A method that is trained so has one network to train, its student, and calls `backward` once a step.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_grad,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save
from torch import nn

from cluster.errors import UserError
from cluster.folder import Folder
from stages.train.engine import Trainer

EXPORTED = "transformer"
"""The folder of a training's artifact that holds the whole transformer, as diffusers has it."""

_MOMENTS = ("exp_avg", "exp_avg_sq")
_WEIGHTS = "diffusion_pytorch_model{suffix}.safetensors"
_SHARD_SIZE = "5GB"


class FullTrainer(Trainer):
    """The state of a training run of all weights, and its step. Works under ZeRO-3 alone.

    Each rank holds its part of every parameter, of both moments and of the average, in float32.
    """

    def _prepare(self) -> None:
        self.parameters = dict(self.transformer.named_parameters())
        self._loss: torch.Tensor | None = None
        optimizer = self.root.optimizer
        # Its states are made at its first step; here, so that a run which goes on can fill them.
        for flat in optimizer.fp32_partitioned_groups_flat:
            moments = {name: torch.zeros_like(flat) for name in _MOMENTS}
            optimizer.optimizer.state[flat] = {"step": torch.zeros(())} | moments
        self._average = {name: self._part(parameter).clone() for name, parameter in self.parameters.items()}

    @staticmethod
    def _part(parameter: nn.Parameter) -> torch.Tensor:
        """This rank's part of a parameter, flat, in float32."""
        return safe_get_local_fp32_param(parameter).detach()

    def _backward(self, loss: torch.Tensor, name: str = "student") -> None:
        """Kept for the engine, which takes gradients after the step's forwards."""
        if name != "student" or self._loss is not None:
            raise RuntimeError("a method that trains all weights has one loss a step, of the student")
        self._loss = loss

    @contextlib.contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Inside, the transformer has the student's weights or their average (`ema`).

        Raises UserError for the frozen base, of which nothing is kept.
        """
        if adapter is None:
            raise UserError(
                f"{self.config.method} asks the frozen base, which training all weights doesn't keep: "
                f"--set {self.config.stage}.weights=lora"
            )
        if adapter == "student":
            yield
            return
        kept = {name: parameter.ds_tensor.clone() for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.ds_tensor.data.copy_(self._average[name])
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.ds_tensor.data.copy_(kept[name])

    def _forget_gradients(self) -> None:
        self._loss = None

    def _gradient_norms(self) -> dict[str, float]:
        self.root.backward(self._loss)
        squares = [safe_get_local_grad(parameter).float().square().sum() for parameter in self.parameters.values()]
        total = torch.stack(squares).sum()
        dist.all_reduce(total)
        return {"student": total.sqrt().item()}

    def _update(self, norms: dict[str, float]) -> None:
        for group in self.root.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.root.step()
        for name, parameter in self.parameters.items():
            self._average[name].lerp_(self._part(parameter).to(self._average[name]), 1 - self.config.ema_decay)

    def _gathered(self, part: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """The whole tensor whose part of this rank is given, on rank 0 on the CPU; elsewhere none of it is kept.

        On every rank at once.
        """
        parts = torch.empty(self.world_size * part.numel(), device=self.device)
        dist.all_gather_into_tensor(parts, part.to(self.device).contiguous())
        if self.rank != 0:
            return torch.empty(0)
        return parts[: parameter.ds_numel].view(parameter.ds_shape).cpu()

    def _cut(self, whole: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """This rank's part of a whole tensor; behind its end there are zeros."""
        size = parameter.ds_tensor.numel()
        padded = torch.zeros(self.world_size * size)
        padded[: whole.numel()] = whole.flatten()
        return padded[self.rank * size : (self.rank + 1) * size].to(self.device)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All that changes from step to step, by `<part>/<parameter>`, gathered in float32 on rank 0.

        On every rank at once.
        """
        state = {"student/num_updates": torch.tensor(float(self.step))}
        for name, parameter in self.parameters.items():
            parts = {key: safe_get_local_optimizer_state(parameter, key) for key in _MOMENTS}
            parts |= {"student": self._part(parameter), "ema": self._average[name]}
            state |= {f"{part}/{name}": self._gathered(tensor, parameter) for part, tensor in parts.items()}
        return state

    def _load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            student = self._cut(tensors[f"student/{name}"], parameter)
            safe_set_local_fp32_param(parameter, student)
            parameter.ds_tensor.data.copy_(student)
            self._average[name].copy_(self._cut(tensors[f"ema/{name}"], parameter))
            for key in _MOMENTS:
                safe_set_local_optimizer_state(parameter, self._cut(tensors[f"{key}/{name}"], parameter), key)
        for state in self.root.optimizer.optimizer.state.values():
            state["step"].fill_(tensors["student/num_updates"].item())

    @property
    def num_parameters(self) -> int:
        return sum(parameter.ds_numel for parameter in self.parameters.values())

    def start_from(self, folder: Path) -> None:
        """Refused: start from a model with other weights instead."""
        raise UserError(
            f"{self.config.stage}: init_adapter is a LoRA, and all weights are trained. Name a pipeline whose "
            "transformer is the start in the setting model, and leave init_adapter out."
        )

    def export(self, out: Folder) -> None:
        """Writes the average to `transformer/`, as diffusers' `from_pretrained` takes it. On every rank at once."""
        dtype = getattr(torch, self.config.dtype)
        average = {
            name: self._gathered(self._average[name], parameter).to(dtype)
            for name, parameter in self.parameters.items()
        }
        if self.rank != 0:
            return
        folder = out.sub(EXPORTED)
        shards = split_torch_state_dict_into_shards(average, filename_pattern=_WEIGHTS, max_shard_size=_SHARD_SIZE)
        for file, names in shards.filename_to_tensors.items():
            tensors = {name: average[name].contiguous() for name in names}
            folder.write_bytes(file, save(tensors, metadata={"format": "pt"}))
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            folder.write_json(_WEIGHTS.format(suffix="") + ".index.json", index)
        folder.write_json("config.json", json.loads(self.transformer.to_json_string()))
