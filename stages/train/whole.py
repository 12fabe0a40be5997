"""One network whose weights are all trained: its ZeRO-3 engine, its average and its state, cut over the ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_grad,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import nn

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Whole:
    """A network that is trained whole.

    Each rank holds its part of every parameter, of both moments and of the average, in float32.

    Args:
        name: what its state begins with.
        engine: of DeepSpeed, with an AdamW for the transformer's parameters.
        ema_decay: of the average; 0: the network is its own.
    """

    def __init__(self, name: str, engine: nn.Module, transformer: nn.Module, ema_decay: float) -> None:
        self.name, self.engine, self.transformer, self.ema_decay = name, engine, transformer, ema_decay
        self.parameters = dict(transformer.named_parameters())
        # An optimizer makes its states at its first step; here, so that a run which goes on can fill them.
        for flat in engine.optimizer.fp32_partitioned_groups_flat:
            moments = {name: torch.zeros_like(flat) for name in _MOMENTS}
            self._states[flat] = {"step": torch.zeros(())} | moments
        self._average = {name: _part(p).clone() for name, p in self.parameters.items()} if ema_decay else {}

    @property
    def _states(self) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
        return self.engine.optimizer.optimizer.state

    @property
    def num_parameters(self) -> int:
        return sum(parameter.ds_numel for parameter in self.parameters.values())

    def backward(self, loss: torch.Tensor) -> float:
        """Takes the gradients, means over the ranks. After the step's forwards; returns their norm before clipping."""
        self.engine.backward(loss)
        squares = [safe_get_local_grad(parameter).float().square().sum() for parameter in self.parameters.values()]
        total = torch.stack(squares).sum()
        dist.all_reduce(total)
        return total.sqrt().item()

    def step(self, learning_rate: float) -> None:
        """One step of the optimizer and of the average."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        for name, average in self._average.items():
            average.lerp_(_part(self.parameters[name]).to(average), 1 - self.ema_decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the transformer has the average's weights; without an average its own."""
        if not self._average:
            yield
            return
        kept = {name: self.parameters[name].ds_tensor.clone() for name in self._average}
        try:
            self._put(self._average)
            yield
        finally:
            self._put(kept)

    def _put(self, parts: Mapping[str, torch.Tensor]) -> None:
        """Sets the weights of the forwards. What ZeRO-3 still holds gathered is released: it would be out of date."""
        self.engine.optimizer.empty_partition_cache()
        for name, part in parts.items():
            self.parameters[name].ds_tensor.data.copy_(part)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All that changes from step to step, by `<part>/<parameter>`, gathered in float32 on rank 0.

        On every rank at once.
        """
        state = {f"{self.name}/num_updates": next(iter(self._states.values()))["step"]}
        for name, parameter in self.parameters.items():
            parts = {self._key(key): safe_get_local_optimizer_state(parameter, key) for key in _MOMENTS}
            parts[self.name] = _part(parameter)
            if self._average:
                parts["ema"] = self._average[name]
            state |= {f"{part}/{name}": _gathered(tensor, parameter) for part, tensor in parts.items()}
        return state

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a state that `state_tensors` gave, on any number of ranks."""
        weights = {}
        for name, parameter in self.parameters.items():
            weights[name] = _cut(tensors[f"{self.name}/{name}"], parameter)
            safe_set_local_fp32_param(parameter, weights[name])
            if self._average:
                self._average[name].copy_(_cut(tensors[f"ema/{name}"], parameter))
            for key in _MOMENTS:
                part = _cut(tensors[f"{self._key(key)}/{name}"], parameter)
                safe_set_local_optimizer_state(parameter, part, key)
        self._put(weights)
        for state in self._states.values():
            state["step"].fill_(tensors[f"{self.name}/num_updates"].item())

    def _key(self, moment: str) -> str:
        return moment if self.name == "student" else f"{self.name}_{moment}"

    def averages(self) -> dict[str, torch.Tensor]:
        """The average by parameter, gathered in float32 on rank 0. On every rank at once."""
        return {
            name: _gathered(self._average.get(name, _part(parameter)), parameter)
            for name, parameter in self.parameters.items()
        }


def _part(parameter: nn.Parameter) -> torch.Tensor:
    """This rank's part of a parameter, flat, in float32."""
    return safe_get_local_fp32_param(parameter).detach()


def _gathered(part: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """The whole tensor whose part of this rank is given, on rank 0 on the CPU; elsewhere none of it is kept."""
    device = parameter.ds_tensor.device
    parts = torch.empty(dist.get_world_size() * part.numel(), device=device)
    dist.all_gather_into_tensor(parts, part.to(device).contiguous())
    if dist.get_rank() != 0:
        return torch.empty(0)
    return parts[: parameter.ds_numel].view(parameter.ds_shape).cpu()


def _cut(whole: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """This rank's part of a whole tensor; behind its end there are zeros."""
    size = parameter.ds_tensor.numel()
    padded = torch.zeros(dist.get_world_size() * size)
    padded[: whole.numel()] = whole.flatten()
    return padded[dist.get_rank() * size :][:size].to(parameter.ds_tensor.device)
