"""Training every weight of the transformer: parameters, gradients, optimizer and average cut over the ranks by ZeRO-3.

Each network of a step has an engine of its own: the student, and of a method that needs them the auxiliary model, also
trained whole, and the frozen base. A method that is trained so calls `backward` once a step.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save
from torch import nn

from cluster.errors import UserError
from cluster.folder import Folder
from stages.train.engine import Trainer
from stages.train.sharding import load_root, run_in
from stages.train.whole import Whole

EXPORTED = "transformer"
"""The folder of a training's artifact that holds the whole transformer, as diffusers has it."""

_WEIGHTS = "diffusion_pytorch_model{suffix}.safetensors"
_SHARD_SIZE = "5GB"


class FullTrainer(Trainer):
    """The state of a training run of all weights, and its step. Works under ZeRO-3 alone."""

    def _prepare(self) -> None:
        self.engines = {"student": self.root}
        self.networks = {"student": self.transformer}
        self.wholes = {"student": Whole("student", self.root, self.transformer, self.config.ema_decay)}
        for name in self.settings.networks[1:]:
            is_trained = name in self.method.TRAINED
            self.engines[name], root = load_root(self.config, self.device, is_trained)
            self.networks[name] = root.transformer
            if is_trained:
                self.wholes[name] = Whole(name, self.engines[name], root.transformer, ema_decay=0)
        self._loss: tuple[str, torch.Tensor] | None = None

    def _network(self, adapter: str | None) -> nn.Module:
        name = {None: "frozen", "ema": "student"}.get(adapter, adapter)
        return self.networks[name]

    def using(self, adapter: str | None) -> contextlib.AbstractContextManager:
        """Inside, the student has its own weights or their average (`ema`)."""
        return self.wholes["student"].averaged() if adapter == "ema" else contextlib.nullcontext()

    def run(self, work: Callable[[], None]) -> None:
        """Does work that calls the roles, within the root of every engine at once."""
        for engine in self.engines.values():
            work = functools.partial(run_in, engine, work)
        work()

    def _backward(self, loss: torch.Tensor, name: str = "student") -> None:
        """Kept for its network's engine, which takes gradients after the step's forwards."""
        if self._loss is not None:
            raise RuntimeError("a method that trains all weights has one loss a step")
        self._loss = (name, loss)

    def _forget_gradients(self) -> None:
        self._loss = None

    def _gradient_norms(self) -> dict[str, float]:
        name, loss = self._loss
        return {name: self.wholes[name].backward(loss)}

    def _update(self, norms: dict[str, float]) -> None:
        """One step of the network that has a gradient: the others' moments and weights stay as they are."""
        for name in norms:
            self.wholes[name].step(self.learning_rate)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All that changes from step to step, by `<part>/<parameter>`, gathered in float32 on rank 0.

        On every rank at once.
        """
        return {key: tensor for whole in self.wholes.values() for key, tensor in whole.state_tensors().items()}

    def _load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        for whole in self.wholes.values():
            whole.load_tensors(tensors)

    @property
    def num_parameters(self) -> int:
        return self.wholes["student"].num_parameters

    def start_from(self, folder: Path) -> None:
        """Refused: start from a model with other weights instead."""
        raise UserError(
            f"{self.config.stage}: init_adapter is a LoRA, and all weights are trained. Name a pipeline whose "
            "transformer is the start in the setting model, and leave init_adapter out."
        )

    def export(self, out: Folder) -> None:
        """Writes the average to `transformer/`, as diffusers' `from_pretrained` takes it. On every rank at once."""
        dtype = getattr(torch, self.config.dtype)
        average = {name: tensor.to(dtype) for name, tensor in self.wholes["student"].averages().items()}
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
