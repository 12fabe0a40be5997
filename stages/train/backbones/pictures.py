"""Pictures to a network's pixels and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def to_pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as float32 in [-1, 1], `[B, 3, H, W]`."""
    arrays = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Pixels in [0, 1], `[B, 3, H, W]`, as pictures of 8 bits a channel; of clips `[B, 3, F, H, W]` the last frames."""
    if pixels.ndim == 5:
        pixels = pixels[:, :, -1]
    arrays = (pixels.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
