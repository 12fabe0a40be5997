"""Weights by configuration: safetensors files, from the working or the project folder."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from cluster.errors import UserError

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
_PROJECT = pathlib.Path(__file__).resolve().parents[3]


def weights_problem(path: str) -> str | None:
    """What is wrong with the name of a file of weights, and what to do; None: nothing."""
    if path.endswith(SUFFIX):
        return None
    stem = pathlib.PurePath(path).stem or "weights"
    return (
        f"{path} is no {SUFFIX} file. Only these are read, for other kinds can run code when they are opened. Convert "
        'one that you trust: python -c "import torch, safetensors.torch as s; t = torch.load('
        f"'{path}', weights_only=True); s.save_file({{k: v.contiguous() for k, v in t.items()}}, '{stem}{SUFFIX}')\""
    )


def resolved_file(path: str) -> str:
    """The absolute path of a file, given so or from the working or project folder; else what was given."""
    for place in (pathlib.Path(path).expanduser(), _PROJECT / path):
        if place.exists():
            return str(place.resolve())
    return path


def read_weights(path: str, setting: str) -> dict[str, torch.Tensor]:
    """The tensors of a file by name.

    Raises:
        UserError: it is no safetensors file, isn't there, or can't be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if problem := weights_problem(path):
        raise UserError(f"evaluate_video: {problem}")
    try:
        return load_file(resolved_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"evaluate_video: {path} can't be read ({' '.join(str(error).split())[:200]}). Name a {SUFFIX} file with "
            f"--set {setting}=..."
        ) from None
