"""Pixels to the inputs of a vision-language model, differentiably, with the result of the model's own processor.

The processors of transformers resize uint8 images, which stops every gradient. Here all stays floating point:
the same sizes, the same antialiased bicubic filter, the same mean and deviation, the same order of patches. What
differs is the rounding to 256 levels, once after each axis: by at most about 1.2 levels of the result. Sizes and
statistics are read from the processor that was loaded with the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension, PILImageResampling
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize


@dataclasses.dataclass(frozen=True)
class QwenSettings:
    """How Qwen2-VL, Qwen2.5-VL and Qwen3-VL see: one grid of patches for an image of any shape."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int


@dataclasses.dataclass(frozen=True)
class OneVisionSettings:
    """How LLaVA-OneVision sees: the whole image in one square, and, of an image that comes alone, square crops."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    square: int
    resolutions: tuple[tuple[int, int], ...]


PixelSettings = QwenSettings | OneVisionSettings


def pixel_settings(image_processor: object) -> PixelSettings:
    """The settings of a loaded image processor. Raises ValueError if it isn't one that this module equals."""
    if not isinstance(image_processor, Qwen2VLImageProcessor | LlavaOnevisionImageProcessor):
        name = type(image_processor).__name__ if image_processor else "none"
        raise ValueError(f"its image processor, {name}, is not that of a known model")
    p = image_processor
    usual = p.do_resize and p.do_rescale and p.do_normalize and p.resample == PILImageResampling.BICUBIC
    if not usual or abs(p.rescale_factor * 255 - 1) > 1e-6:
        raise ValueError("its image processor does not resize by bicubic interpolation, rescale and normalize")
    mean, std, size = tuple(p.image_mean), tuple(p.image_std), p.size
    if isinstance(p, Qwen2VLImageProcessor):
        return QwenSettings(
            mean, std, p.patch_size, p.merge_size, p.temporal_patch_size, size.shortest_edge, size.longest_edge
        )
    if p.do_center_crop or size.height is None or size.height != size.width:
        raise ValueError("its image processor does not resize to one square without cropping")
    return OneVisionSettings(mean, std, size.height, tuple(map(tuple, p.image_grid_pinpoints)))


def model_inputs(images: Sequence[torch.Tensor], settings: PixelSettings) -> dict[str, torch.Tensor]:
    """All that the model takes besides tokens, for rows of one or more images.

    `images`: for each image of a row, `[B, 3, H, W]` in [0, 1]; H and W may differ between them. Images are laid
    out row by row, as the processors do it.
    """
    if isinstance(settings, QwenSettings):
        grids, patches = zip(*(qwen_patches(pixels, settings) for pixels in images), strict=True)
        rows = len(images[0])
        return {
            "pixel_values": torch.cat(patches, dim=1).flatten(0, 1),
            "image_grid_thw": torch.tensor(grids, device=images[0].device).repeat(rows, 1),
        }
    if len(images) == 1:
        pixel_values = onevision_crops(images[0], settings)
    else:  # several images in one chat: each as one square, without crops
        squares = [onevision_square(pixels, settings) for pixels in images]
        pixel_values = torch.stack(squares, dim=1).flatten(0, 1)[:, None]
    rows, device = len(images[0]), images[0].device
    sizes = [tuple(pixels.shape[-2:]) for pixels in images]
    return {
        "pixel_values": pixel_values,
        "image_sizes": torch.tensor(sizes, device=device).repeat(rows, 1),
        "batch_num_images": torch.full((rows,), len(images), device=device),
    }


def qwen_patches(pixels: torch.Tensor, settings: QwenSettings) -> tuple[tuple[int, int, int], torch.Tensor]:
    """An image's grid (time, height, width in patches) and its patches `[B, N, D]`.

    pixels `[B, 3, H, W]`; N runs over squares of merge_size x merge_size patches, and within each over its patches;
    D is (colour, time, height, width) of one patch, where the one image stands in every frame.
    """
    patch, merge = settings.patch_size, settings.merge_size
    height, width = smart_resize(
        *pixels.shape[-2:], patch * merge, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels
    )
    image = normalized(resized(pixels, (height, width)), settings)
    blocks = image.unflatten(3, (-1, merge, patch)).unflatten(2, (-1, merge, patch))
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [B, rows, columns, merge, merge, 3, patch, patch]
    frames = torch.stack([blocks] * settings.temporal_patch_size, dim=6)
    return (1, height // patch, width // patch), frames.flatten(5).flatten(1, 4)


def onevision_crops(pixels: torch.Tensor, settings: OneVisionSettings) -> torch.Tensor:
    """The whole image in one square, then the crops of its enlargement: `[B, 3, H, W]` -> `[B, 1 + crops, 3, S, S]`.

    The enlargement has the resolution, of those that the model knows, that wastes least; what it does not fill is
    black.
    """
    square = settings.square
    resolution = select_best_resolution(tuple(pixels.shape[-2:]), settings.resolutions)
    filled = get_patch_output_size(pixels[0], resolution, ChannelDimension.FIRST)
    large = _padded(resized(pixels, filled), resolution, [0.0] * 3)
    crops = large.unflatten(3, (-1, square)).unflatten(2, (-1, square)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    whole = resized(pixels, (square, square))
    return normalized(torch.cat([whole[:, None], crops], dim=1), settings)


def onevision_square(pixels: torch.Tensor, settings: OneVisionSettings) -> torch.Tensor:
    """The image with a border of the mean colour that makes it square: `[B, 3, H, W]` -> `[B, 3, S, S]`."""
    side = max(pixels.shape[-2:])
    border = [int(mean * 255) / 255 for mean in settings.mean]  # the processor's border has whole levels
    return normalized(resized(_padded(pixels, (side, side), border), (settings.square,) * 2), settings)


def resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`[B, 3, H, W]` in another size, kept within [0, 1], in float32 or better."""
    pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    # Bicubic weights are partly negative: beside an edge the result leaves the range, which uint8 can't hold. The
    # processors' uint8 kernel goes over rows, then over columns, and each time holds no more than uint8 does.
    for step in ((pixels.shape[-2], size[1]), size):
        pixels = F.interpolate(pixels, step, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    return pixels


def normalized(pixels: torch.Tensor, settings: PixelSettings) -> torch.Tensor:
    """`[..., 3, H, W]` less the mean, by the deviation."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    return (pixels - mean) / std


def _padded(pixels: torch.Tensor, size: tuple[int, int], color: Sequence[float]) -> torch.Tensor:
    """The image in the middle of `size`; of an odd difference the larger half goes below and to the right."""
    height, width = pixels.shape[-2:]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    shift = pixels.new_tensor(color)[:, None, None]  # F.pad knows one value for all channels: pad the difference
    return F.pad(pixels - shift, (left, size[1] - width - left, top, size[0] - height - top)) + shift
