"""Tiny models of the real classes with random weights, as files."""

import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from torchvision.models import optical_flow
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

ARCHITECTURE = "raft_small"
SIDE, WIDTH = 16, 12


def write_raft(folder: pathlib.Path) -> str:
    torch.manual_seed(0)
    save_file(getattr(optical_flow, ARCHITECTURE)().state_dict(), folder / "raft.safetensors")
    return str(folder / "raft.safetensors")


def write_clip_model(folder: pathlib.Path) -> str:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8,
        projection_dim=WIDTH,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip")
    return str(folder / "clip")


def write_head(folder: pathlib.Path, width: int = WIDTH) -> str:
    generator = torch.Generator().manual_seed(1)
    head = {"weight": torch.randn(1, width, generator=generator), "bias": torch.randn(1, generator=generator)}
    save_file(head, folder / f"head_{width}.safetensors")
    return str(folder / f"head_{width}.safetensors")


def noise(num_frames: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of coarse random colours, each a little to the right of the one before."""
    generator = np.random.default_rng(seed)
    wide = generator.integers(0, 256, (height, width + 4 * num_frames, 3), dtype=np.uint8)
    return [wide[:, 4 * (num_frames - t) :][:, :width] for t in range(num_frames)]
