"""What image backbones share: latents packed 2x2 into tokens, an autoencoder with shift and scale, a scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from stages.train.backbones.pictures import to_pixels
from stages.train.roles import TextEmbeds


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents `[B, C, 2 * rows, 2 * columns]` to tokens `[B, rows * columns, 4 * C]`, as FLUX orders them."""
    batch, channels, height, width = latents.shape
    cells = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `pack`, for a `grid` of (rows, columns) tokens."""
    rows, columns = grid
    cells = tokens.view(len(tokens), rows, columns, tokens.shape[2] // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, 2 * rows, 2 * columns)


def scheduler_shift(scheduler: Mapping, num_tokens: int) -> float:
    """How far the model's own scheduler moves its times towards noise, for a picture of `num_tokens` tokens.

    With dynamic shifting that is exp(mu), mu linear in the number of tokens, as in FLUX.1's pipelines.
    """
    if not scheduler.get("use_dynamic_shifting"):
        return scheduler.get("shift", 1.0)
    low, high = scheduler["base_image_seq_len"], scheduler["max_image_seq_len"]
    slope = (scheduler["max_shift"] - scheduler["base_shift"]) / (high - low)
    return math.exp(scheduler["base_shift"] + slope * (num_tokens - low))


class ImageEncoder:
    """The parts of an image pipeline around its transformer, without the texts: each pipeline has its own encoders.

    Raises ValueError if it is to work on clips.
    """

    def __init__(
        self,
        pipeline_class: type[DiffusionPipeline],
        model: str | Path,
        device: str,
        dtype: torch.dtype,
        num_frames: int = 1,
    ) -> None:
        if num_frames != 1:
            raise ValueError(f"it draws pictures, no clips of {num_frames} frames")
        self.pipeline = pipeline_class.from_pretrained(
            str(model), transformer=None, torch_dtype=dtype, use_safetensors=True
        ).to(device)
        self.pipeline.vae.requires_grad_(False)
        self.device, self.dtype = device, dtype

    @torch.no_grad()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1], `[B, 3, H, W]`, to packed tokens `[B, N, C]` (the posterior's mode, scaled)."""
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(self.device, self.dtype)).latent_dist.mode()
        return pack((latents - vae.config.shift_factor) * vae.config.scaling_factor)

    def encode_reference(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, TextEmbeds]:
        """The tokens of the pictures to edit, `[B, N, C]`; nothing goes beside the text."""
        return self.encode_pixels(to_pixels(images)), {}

    def decode(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Packed tokens to pixels in [0, 1], `[B, 3, height, width]`; gradients go through."""
        vae = self.pipeline.vae
        latents = unpack(tokens, self.grid(height, width)) / vae.config.scaling_factor + vae.config.shift_factor
        return (vae.decode(latents.to(self.dtype), return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def decode_pixels(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The same, without gradients."""
        return self.decode(tokens, height, width)

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        """Rows and columns of tokens for a picture of `height` x `width` pixels."""
        return height // self.token_size, width // self.token_size

    def shift(self, num_tokens: int) -> float:
        """How far the model's own scheduler moves its times towards noise."""
        return scheduler_shift(self.pipeline.scheduler.config, num_tokens)

    @property
    def token_size(self) -> int:
        """Pixels on a side of one token: every side of a picture must be a multiple of it."""
        return self.pipeline.vae_scale_factor * 2

    @property
    def token_channels(self) -> int:
        """The C of a token."""
        return self.pipeline.vae.config.latent_channels * 4
