"""Checkpoints: the whole state of a training run in one safetensors file, to go on from to the bit."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cluster.errors import UserError
from cluster.folder import Folder

_KEPT = 2


class Checkpoints:
    """The checkpoints of one training run, in a folder; the newest few are kept.

    `identity` names what a checkpoint must agree in to be gone on with (method, backbone, rank, ...).
    """

    def __init__(self, folder: Folder, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity

    def save(self, step: int, tensors: dict[str, torch.Tensor], history: list[tuple[int, str, float]]) -> None:
        """Writes the state after `step` steps: under another name, then renamed."""
        names = sorted({name for _, name, _ in history})
        index = {name: number for number, name in enumerate(names)}
        rows = [(float(at), float(index[name]), value) for at, name, value in history]
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        tensors["history"] = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
        metadata = {
            "step": str(step),
            "identity": json.dumps(self.identity, sort_keys=True),
            "history_names": json.dumps(names),
            "crc32": str(_checksum(tensors)),
        }
        self.folder.write_bytes(f"step-{step:08d}.safetensors", save(tensors, metadata=metadata))
        for name in self._files()[:-_KEPT]:
            self.folder.remove(name)

    def load(
        self, on_damage: Callable[[str], None] = lambda text: None
    ) -> tuple[int, dict[str, torch.Tensor], list[tuple[int, str, float]]] | None:
        """The newest good state as (step, tensors, history), or None if there is none.

        Damaged files are passed over, and told to `on_damage`.

        Raises UserError if the checkpoint belongs to other training: it names what differs.
        """
        for name in reversed(self._files()):
            try:
                with safe_open(self.folder.local(name), framework="pt") as opened:
                    metadata = opened.metadata()
                    tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}
                if int(metadata["crc32"]) != _checksum(tensors):
                    raise ValueError("its content doesn't match its checksum")
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                on_damage(f"Checkpoint {self.folder.path(name)} is damaged and passed over: {error}")
                continue
            self._check(name, json.loads(metadata["identity"]))
            names = json.loads(metadata["history_names"])
            rows = tensors.pop("history").tolist()
            history = [(int(at), names[int(key)], value) for at, key, value in rows]
            return int(metadata["step"]), tensors, history
        return None

    def _check(self, name: str, found: dict[str, Any]) -> None:
        for key in sorted({*found, *self.identity}):
            if found.get(key) != self.identity.get(key):
                raise UserError(
                    f"Checkpoint {self.folder.path(name)} was made with {key} {found.get(key)!r}, this "
                    f"training has {self.identity.get(key)!r}. Take that setting back, or remove the "
                    "checkpoint's folder to start anew."
                )

    def _files(self) -> list[str]:
        return [name for name in self.folder.list(".safetensors") if name.startswith("step-")]


def _checksum(tensors: dict[str, torch.Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].numpy(), zlib.crc32(name.encode(), value))
    return value
