"""Latents of clips as tokens: 2x2 patches, frame by frame. FLUX packs a picture like the only frame of a clip."""

from __future__ import annotations

import torch

Grid = tuple[int, int, int]
"""Latent frames, rows and columns of tokens."""

PATCH = 2  # latent pixels on a side of one token; along time a token is one latent frame


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents `[B, C, F, H, W]` as tokens `[B, F * H/2 * W/2, C * 4]`, in a token by (channel, row, column)."""
    batch, channels, frames, height, width = latents.shape
    patches = latents.reshape(batch, channels, frames, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, -1, channels * PATCH * PATCH)


def unpack(tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The latents `[B, C, F, H, W]` of which `pack` made these tokens."""
    frames, rows, columns = grid
    patches = tokens.reshape(len(tokens), frames, rows, columns, -1, PATCH, PATCH)
    return patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(len(tokens), -1, frames, rows * PATCH, columns * PATCH)
