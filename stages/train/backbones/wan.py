"""Wan 2.1 and 2.2, text-to-video: a rectified-flow transformer over clips of a causal 3D autoencoder.

A clip of 1 + 4 k frames has 1 + k latent frames of 16 channels. Its tokens are their 2x2 patches, `[B, N, 64]` with
N = frames * rows * columns, frame by frame: so the tokens of one frame stand together, the last frame's at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from torch import nn

from stages.train.backbones.packing import PATCH, Grid, pack, unpack
from stages.train.backbones.pictures import Picture, to_pixels
from stages.train.flow import is_within
from stages.train.roles import TextEmbeds

NAME = "wan"
TRANSFORMER = WanTransformer3DModel
PIPELINE = WanPipeline
LORA_TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_k_proj",
    "add_v_proj",
    "ffn.net.0.proj",
    "ffn.net.2",
    "condition_embedder.time_proj",
    "text_embedder.linear_1",
    "text_embedder.linear_2",
    "proj_out",
]
GUIDANCE_IS_INPUT = False


def velocity(
    transformer: WanTransformer3DModel | Experts,
    x_t: torch.Tensor,
    t: torch.Tensor,
    text: TextEmbeds,
    reference: torch.Tensor | None,
    grid: Grid,
    guidance_scale: float = 1.0,
    reference_positions: Literal["kontext", "shared"] = "shared",
) -> torch.Tensor:
    """The velocity `[B, N, 64]` at packed tokens `x_t` of times `t` `[B]`, for a `grid` of tokens.

    The tokens of a reference clip follow in the sequence and have the positions of the clip itself (ByG, B.2), whatever
    `reference_positions` says. `guidance_scale` is no input of this transformer: guidance takes a second forward.
    The sinusoids of times are computed in float32 whatever the weights are in, so t comes in float32.
    """
    if isinstance(transformer, Experts):
        transformer = transformer.of(t)
    latents = unpack(x_t, grid)
    positions = contextlib.nullcontext()
    if reference is not None:
        latents = torch.cat([latents, unpack(reference, grid)], dim=2)
        positions = _first_half_twice(transformer.rope)
    with positions:
        output = transformer(
            hidden_states=latents, timestep=1000 * t, encoder_hidden_states=text["prompt_embeds"], return_dict=False
        )[0]
    return pack(output[:, :, : grid[0]])


@contextlib.contextmanager
def _first_half_twice(rope: nn.Module) -> Iterator[None]:
    """Inside, both halves of a sequence get the rotary frequencies of the first."""

    def repeated(module: nn.Module, args: tuple, frequencies: tuple[torch.Tensor, ...]) -> tuple:
        return tuple(torch.cat([part.chunk(2, dim=1)[0]] * 2, dim=1) for part in frequencies)

    handle = rope.register_forward_hook(repeated)
    try:
        yield
    finally:
        handle.remove()


def expert_of(t: torch.Tensor, boundary_ratio: float | None) -> Literal["transformer", "transformer_2"]:
    """Which of Wan2.2's two experts serves the times `t` `[B]`: the high-noise `transformer` from the boundary on.

    Without a boundary (Wan2.1) there is but one. A step has one expert: raises ValueError if the times need both.
    """
    if boundary_ratio is None:
        return "transformer"
    is_high = is_within(t, (boundary_ratio, 1.0))
    if is_high.any() != is_high.all():
        raise ValueError(f"times on both sides of the experts' boundary {boundary_ratio}: {t.tolist()}")
    return "transformer" if is_high.all() else "transformer_2"


class Experts(nn.Module):
    """Wan2.2's two transformers as one network: each forward goes to the expert of its times."""

    def __init__(
        self, transformer: WanTransformer3DModel, transformer_2: WanTransformer3DModel, boundary_ratio: float
    ) -> None:
        super().__init__()
        self.transformer, self.transformer_2 = transformer, transformer_2
        self.boundary_ratio = boundary_ratio

    PARTS = ("transformer", "transformer_2")
    """The expert of high noise, and the one of low noise."""

    _no_split_modules = WanTransformer3DModel._no_split_modules

    def of(self, t: torch.Tensor) -> WanTransformer3DModel:
        """The expert of the times `[B]`. Raises ValueError if they need both."""
        return getattr(self, expert_of(t, self.boundary_ratio))

    def enable_gradient_checkpointing(self) -> None:
        """Forwards again at backward, in both."""
        for expert in (self.transformer, self.transformer_2):
            expert.enable_gradient_checkpointing()

    @property
    def peft_config(self) -> dict:
        """The adapters that diffusers has loaded into the experts, by name."""
        return {
            name: settings
            for expert in (self.transformer, self.transformer_2)
            for name, settings in getattr(expert, "peft_config", {}).items()
        }


class Encoder:
    """The parts of a Wan pipeline around its transformers: pixels to tokens and back, texts to embeddings.

    The autoencoder stays in float32, as Wan's authors run it; tokens and embeddings come in `dtype`. Pictures are
    taken as clips of `num_frames` that stand still. Raises ValueError if that isn't 1 + 4 k.
    """

    def __init__(
        self,
        model: str | Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_length: int = 512,
        num_frames: int = 1,
    ) -> None:
        self.pipeline = WanPipeline.from_pretrained(
            str(model),
            transformer=None,
            transformer_2=None,
            torch_dtype={"vae": torch.float32, "default": dtype},
            use_safetensors=True,
        ).to(device)
        self.pipeline.vae.requires_grad_(False)
        self.device, self.dtype, self.max_length, self.num_frames = device, dtype, max_length, num_frames
        self._check_length(num_frames)
        config = self.pipeline.vae.config
        mean, std = (torch.tensor(numbers, device=device) for numbers in (config.latents_mean, config.latents_std))
        self._mean, self._std = mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Embeddings of texts: `prompt_embeds` `[B, max_length, D]`, zeros after a text's end."""
        prompt_embeds, _ = self.pipeline.encode_prompt(
            list(texts), do_classifier_free_guidance=False, max_sequence_length=self.max_length
        )
        return {"prompt_embeds": prompt_embeds}

    @torch.no_grad()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Clips in [-1, 1], `[B, 3, F, H, W]`, to packed tokens `[B, N, 64]` (the posterior's mode, normalised).

        Pictures `[B, 3, H, W]` are taken for still clips. Raises ValueError if F isn't 1 + 4 k: the autoencoder
        would silently drop the last frames.
        """
        if pixels.ndim == 4:
            pixels = pixels.unsqueeze(2).expand(-1, -1, self.num_frames, -1, -1)
        return pack(self._encode(pixels)).to(self.dtype)

    def encode_reference(self, images: Sequence[Picture]) -> tuple[torch.Tensor, TextEmbeds]:
        """The tokens of the clips to edit, or of pictures as still ones, `[B, N, 64]`; nothing goes beside the text."""
        return self.encode_pixels(to_pixels(images)), {}

    def _check_length(self, num_frames: int) -> None:
        if (num_frames - 1) % self.pipeline.vae_scale_factor_temporal:
            raise ValueError(f"a clip of {num_frames} frames: Wan's autoencoder takes 1 + 4 k of them")

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self._check_length(pixels.shape[2])
        latents = self.pipeline.vae.encode(pixels.to(self.device, torch.float32)).latent_dist.mode()
        return (latents - self._mean) / self._std

    def decode(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Packed tokens to pixels in [0, 1], `[B, 3, F, height, width]`; gradients go through."""
        _, rows, columns = self.grid(height, width)
        latents = unpack(tokens.float(), (tokens.shape[1] // (rows * columns), rows, columns))
        pixels = self.pipeline.vae.decode(latents * self._std + self._mean, return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def decode_pixels(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The same, without gradients."""
        return self.decode(tokens, height, width)

    def grid(self, height: int, width: int) -> Grid:
        """Latent frames, rows and columns of tokens for a clip of `num_frames` frames of `height` x `width` pixels."""
        frames = (self.num_frames - 1) // self.pipeline.vae_scale_factor_temporal + 1
        return frames, height // self.token_size, width // self.token_size

    @property
    def token_size(self) -> int:
        """Pixels on a side of one token: every side of a clip must be a multiple of it."""
        return self.pipeline.vae_scale_factor_spatial * PATCH

    @property
    def token_channels(self) -> int:
        """The C of a token."""
        return self.pipeline.vae.config.z_dim * PATCH * PATCH

    def shift(self, num_tokens: int) -> float:
        """How far the model's own scheduler moves its times towards noise: as far for clips of any size."""
        scheduler = self.pipeline.scheduler.config
        return scheduler.get("flow_shift", scheduler.get("shift", 1.0))
