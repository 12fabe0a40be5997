"""The state of a training: settings, optimizer, averaged weights, step and time, in one safetensors checkpoint."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import time

import pydantic
import safetensors
import safetensors.torch
import torch
from torch import nn


class TrainingSettings(pydantic.BaseModel):
    """What every resumable training of the starter has."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    seed: int = 0
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    decay_share: float = 0.4  # of the steps, in which the rate falls to zero
    ema_decay: float = 0.995
    checkpoint_seconds: float = 180
    muon_for_kernels: bool = False


class MuonAndAdamW:
    """Muon for the matrices of the blocks (and, where asked for, for kernels of convolutions), AdamW for all else."""

    def __init__(self, module: nn.Module, settings: TrainingSettings):
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        blocks = ("layers.", "blocks.", "merger.", "encoder.layer.")
        hidden = [p for n, p in named if p.ndim == 2 and any(block in n for block in blocks)]
        # Muon takes matrices alone: a kernel is seen as one, [out, in * size], over the same memory
        kernels = [p for _, p in named if settings.muon_for_kernels and p.ndim > 3 and p[0].numel() > 16]
        self.matrices = [(p, nn.Parameter(p.data.view(len(p), -1))) for p in kernels]
        rest = [p for _, p in named if not any(p is h for h in hidden + kernels)]
        hidden += [matrix for _, matrix in self.matrices]
        rate, decay = settings.learning_rate, settings.weight_decay
        self.parts: list[torch.optim.Optimizer] = []
        if hidden:
            self.parts.append(torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
        self.parts.append(torch.optim.AdamW(rest, lr=rate, weight_decay=decay, betas=(0.9, 0.98)))

    def step(self, rate: float) -> None:
        for kernel, matrix in self.matrices:
            matrix.grad, kernel.grad = None if kernel.grad is None else kernel.grad.view_as(matrix), None
        for part in self.parts:
            nn.utils.clip_grad_norm_([p for g in part.param_groups for p in g["params"]], 1.0)
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {}
        for number, part in enumerate(self.parts):
            for index, state in part.state_dict()["state"].items():
                found |= {f"optimizer.{number}.{index}.{name}": torch.as_tensor(v) for name, v in state.items()}
        return found

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        for number, part in enumerate(self.parts):
            state: dict[int, dict[str, torch.Tensor]] = collections.defaultdict(dict)
            for key, value in tensors.items():
                head, at, *rest = key.split(".")
                if head == "optimizer" and int(at) == number:
                    state[int(rest[0])][rest[1]] = value
            part.load_state_dict({"state": dict(state), "param_groups": part.state_dict()["param_groups"]})


class Progress:
    """One phase's module, averaged copy, optimizer, step and time, in one safetensors file."""

    def __init__(self, path: pathlib.Path, module: nn.Module, settings: TrainingSettings, total_steps: int):
        self.path, self.module, self.settings, self.total_steps = path, module, settings, total_steps
        self.optimizer = MuonAndAdamW(module, settings)
        self.average = {n: p.detach().clone() for n, p in module.named_parameters()}
        self.num_steps, self.spent = 0, 0.0
        if path.exists():
            device = next(module.parameters()).device
            with safetensors.safe_open(path, "pt", device=str(device)) as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            self.num_steps, self.spent = state["num_steps"], state["spent"]
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(tensors[f"model.{name}"])
                    self.average[name] = tensors[f"average.{name}"].clone()
            self.optimizer.load(tensors)
        self.last_tick, self.last_save = time.monotonic(), self.spent

    @property
    def finished(self) -> bool:
        return self.num_steps >= self.total_steps

    def step(self) -> None:
        """One optimizer step at the scheduled rate; counts the time since the last one."""
        s = self.settings
        left = 1 - self.num_steps / self.total_steps
        rate = s.learning_rate * min(1, (self.num_steps + 1) / s.warmup_steps, left / s.decay_share)
        self.optimizer.step(rate)
        self.num_steps += 1
        decay = min(s.ema_decay, self.num_steps / (self.num_steps + 10))
        with torch.no_grad():
            parameters = dict(self.module.named_parameters())
            torch._foreach_lerp_(list(self.average.values()), [parameters[n] for n in self.average], 1 - decay)
        now = time.monotonic()
        self.spent, self.last_tick = self.spent + now - self.last_tick, now

    @property
    def due(self) -> bool:
        return self.finished or self.spent - self.last_save >= self.settings.checkpoint_seconds

    def save(self) -> None:
        tensors = {f"model.{n}": p.detach() for n, p in self.module.named_parameters()}
        tensors |= {f"average.{n}": t for n, t in self.average.items()} | self.optimizer.tensors()
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        state = json.dumps({"num_steps": self.num_steps, "spent": self.spent})
        temporary = self.path.with_suffix(".tmp")
        safetensors.torch.save_file(tensors, temporary, metadata={"state": state})
        os.replace(temporary, self.path)
        self.last_save = self.spent

    def use_average(self) -> dict[str, torch.Tensor]:
        """Puts the averaged weights into the module; returns the present ones."""
        present = {n: p.detach().clone() for n, p in self.module.named_parameters()}
        self.put(self.average)
        return present

    def put(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(weights[name])
