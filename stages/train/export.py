"""The trained LoRA as diffusers has it: `load_lora_weights` of the backbone's pipeline takes the folder."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from cluster.errors import UserError
from cluster.folder import Folder
from stages.train.backbones.backbone import Backbone

FILE = "pytorch_lora_weights.safetensors"
FILES = {
    "": FILE,
    "transformer": "pytorch_lora_weights_high_noise.safetensors",
    "transformer_2": "pytorch_lora_weights_low_noise.safetensors",
}
"""By the part of the network that the LoRA is of: all of it, or one of two experts.

diffusers takes each by its `weight_name`, the second with `load_into_transformer_2=True`.
"""

_PREFIX = "transformer."


def save_lora(
    folder: Folder, tensors: dict[str, torch.Tensor], rank: int, alpha: float, backbone: Backbone, file: str = FILE
) -> None:
    """Writes a LoRA's tensors (`<module>.lora_A.weight`, ...) to `file`, as the backbone's pipeline has them.

    Equal ones give equal bytes.
    """
    modules = sorted({path.rsplit(".lora_", 1)[0] for path in tensors})
    layers = {path: tensor.detach().cpu().contiguous() for path, tensor in tensors.items()}
    with tempfile.TemporaryDirectory() as temporary:
        backbone.PIPELINE.save_lora_weights(
            temporary,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata={"r": rank, "lora_alpha": alpha, "target_modules": modules},
        )
        folder.write_bytes(file, _canonical((Path(temporary) / FILE).read_bytes()))


def read_lora(folder: Path, shapes: dict[str, torch.Size], alpha: float, name: str = FILE) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA that `save_lora` wrote, by path.

    Raises UserError if there is none, or if it isn't of these shapes and this alpha.
    """
    file = folder / name
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
            tensors = {key.removeprefix(_PREFIX): opened.get_tensor(key) for key in opened.keys()}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"init_adapter: {file} can't be read as a LoRA: {error}") from None
    differing = sorted(set(shapes) ^ set(tensors)) or [
        path for path, shape in shapes.items() if tensors[path].shape != shape
    ]
    if differing:
        raise UserError(
            f"init_adapter: {file} doesn't fit this training: {differing[0]} (and {len(differing) - 1} more) "
            "is missing or of another shape. It must be of the same model and rank."
        )
    found = metadata.get(f"{_PREFIX}lora_alpha")
    if found is not None and found != alpha:
        raise UserError(f"init_adapter: {file} has an alpha of {found:g}, this training one of {alpha:g}.")
    return tensors


def _canonical(data: bytes) -> bytes:
    """A safetensors file with the keys of its header sorted: the library writes its metadata in any order."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]
