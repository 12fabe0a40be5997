"""Where a backbone's weights come from, and where it runs. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]

_PROJECT = Path(__file__).resolve().parents[3]


def resolved_model(model: str) -> str:
    """The absolute path of a model folder, given so or from the working or project folder; or the hub id."""
    for path in (Path(model).expanduser(), _PROJECT / model):
        if path.is_dir():
            return str(path.resolve())
    return model


def model_sources(model: str) -> list[str]:
    """What of a model belongs to a stage's fingerprint: its folder's content; of a hub id, the id alone."""
    path = resolved_model(model)
    return [path] if os.path.isdir(path) else []


def resolved_device(device: Device) -> str:
    """`cuda` or `cpu`; `auto` is a GPU where this process sees one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
