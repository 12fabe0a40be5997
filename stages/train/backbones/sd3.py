"""Stable Diffusion 3 and 3.5: a rectified-flow transformer over text and latents that it cuts into 2x2 patches.

Its positions are a fixed table of rows and columns, cropped to the picture. It takes no guidance scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn

from stages.train.backbones.image_encoder import ImageEncoder, pack, unpack
from stages.train.roles import TextEmbeds

NAME = "sd3"
TRANSFORMER = SD3Transformer2DModel
PIPELINE = StableDiffusion3Pipeline
# Not add_q_proj: the last block throws the text's queries away, and its LoRA would never see a gradient.
LORA_TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "norm1.linear",
    "norm1_context.linear",
    "context_embedder",
    "proj_out",
]
GUIDANCE_IS_INPUT = False
MAX_TEXT_TOKENS = 256  # of T5: StableDiffusion3Pipeline's default; SD3.5 medium saw no longer texts


def velocity(
    transformer: SD3Transformer2DModel,
    x_t: torch.Tensor,
    t: torch.Tensor,
    text: TextEmbeds,
    reference: torch.Tensor | None,
    grid: tuple[int, ...],
    guidance_scale: float = 1.0,
    reference_positions: Literal["kontext", "shared"] = "shared",
) -> torch.Tensor:
    """The velocity `[B, N, 64]` at packed tokens `x_t` of times `t` `[B]`, for a `grid` of (rows, columns) tokens.

    Reference tokens follow the picture's in the sequence, and have the picture's positions whatever
    `reference_positions` says: the table has no third axis. `guidance_scale` is no input of this transformer.
    The embedding of times is computed in float32, from t * 1000 in float32.
    """
    latents, positions = unpack(x_t, grid), contextlib.nullcontext()
    if reference is not None:
        latents = torch.cat([latents, unpack(reference, grid)], dim=2)  # below the picture
        positions = _own_positions(transformer.pos_embed)
    with positions:
        output = transformer(
            hidden_states=latents,
            encoder_hidden_states=text["prompt_embeds"],
            pooled_projections=text["pooled_prompt_embeds"],
            timestep=1000 * t,
            return_dict=False,
        )[0]
    return pack(output[:, :, : 2 * grid[0]])


@contextlib.contextmanager
def _own_positions(pos_embed: nn.Module) -> Iterator[None]:
    """Inside, the upper and the lower half of the latents are embedded each as a picture of its own."""

    def halves_as_batch(module: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return torch.cat(inputs[0].chunk(2, dim=2))

    def halves_as_sequence(module: nn.Module, inputs: tuple[torch.Tensor], embedded: torch.Tensor) -> torch.Tensor:
        return torch.cat(embedded.chunk(2), dim=1)

    hooks = [
        pos_embed.register_forward_pre_hook(halves_as_batch),
        pos_embed.register_forward_hook(halves_as_sequence),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Encoder(ImageEncoder):
    """The parts of a StableDiffusion3Pipeline around its transformer: autoencoder, two CLIPs and T5.

    Raises ValueError for a pipeline that was saved without T5.
    """

    def __init__(
        self,
        model: str | Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_length: int = 512,
        num_frames: int = 1,
    ) -> None:
        super().__init__(PIPELINE, model, device, dtype, num_frames)
        if self.pipeline.text_encoder_3 is None:
            raise ValueError("it has no text_encoder_3, which is T5")
        self.max_length = min(max_length, MAX_TEXT_TOKENS, self.pipeline.tokenizer_3.model_max_length)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Embeddings of texts: `prompt_embeds` `[B, L, D]`, CLIP's tokens before T5's, and `pooled_prompt_embeds`."""
        prompt_embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(texts),
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_length,
        )
        return {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled}
