"""Pictures to a network's pixels and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

Picture = Image.Image | Sequence[Image.Image]
"""An RGB picture, or the frames of a clip."""


def to_pixels(images: Sequence[Picture]) -> torch.Tensor:
    """Pictures of one size as float32 in [-1, 1], `[B, 3, H, W]`; clips of one length `[B, 3, F, H, W]`."""
    arrays = np.stack([_array(image) for image in images])
    return torch.from_numpy(np.moveaxis(arrays, -1, 1)).float() / 127.5 - 1


def _array(image: Picture) -> np.ndarray:
    """uint8 `[H, W, 3]`; of a clip `[F, H, W, 3]`."""
    return np.asarray(image) if isinstance(image, Image.Image) else np.stack([np.asarray(frame) for frame in image])


def to_clips(pixels: torch.Tensor) -> list[list[Image.Image]]:
    """Clips `[B, 3, F, H, W]` in [0, 1] as all their frames; of pictures `[B, 3, H, W]` the only one."""
    if pixels.ndim == 4:
        return [[image] for image in to_images(pixels)]
    return [to_images(clip.transpose(0, 1)) for clip in pixels]


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Pixels in [0, 1], `[B, 3, H, W]`, as pictures of 8 bits a channel; of clips `[B, 3, F, H, W]` the last frames."""
    if pixels.ndim == 5:
        pixels = pixels[:, :, -1]
    arrays = (pixels.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
