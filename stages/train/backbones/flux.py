"""FLUX.1: a rectified-flow transformer over text and 2x2-packed latents (16 channels, so tokens of 64)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from stages.train.backbones.image_encoder import ImageEncoder
from stages.train.roles import TextEmbeds

NAME = "flux"
TRANSFORMER = FluxTransformer2DModel
PIPELINE = FluxPipeline
LORA_TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "proj_mlp",
    "proj_out",
    "norm1.linear",
    "norm1_context.linear",
    "norm.linear",
    "x_embedder",
    "context_embedder",
]
GUIDANCE_IS_INPUT = True


def image_ids(height: int, width: int, index: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Positions `[H * W, 3]` of packed latents: (index, row, column); a picture has index 0, Kontext's reference 1."""
    ids = torch.zeros(height, width, 3, device=device)
    ids[..., 0] = index
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None, :]
    return ids.reshape(-1, 3)


def velocity(
    transformer: FluxTransformer2DModel,
    x_t: torch.Tensor,
    t: torch.Tensor,
    text: TextEmbeds,
    reference: torch.Tensor | None,
    grid: tuple[int, ...],
    guidance_scale: float,
    reference_positions: Literal["kontext", "shared"] = "kontext",
) -> torch.Tensor:
    """The velocity `[B, N, 64]` at packed tokens `x_t` of times `t` `[B]`, for a `grid` of (rows, columns) tokens.

    Reference tokens are appended to the sequence, as FLUX.1 Kontext does; `shared` gives them the picture's positions.
    FLUX multiplies t by 1000 in its hidden dtype, so t comes in float32 and in [0, 1].
    """
    positions = image_ids(*grid, index=0, device=x_t.device)
    tokens = x_t
    if reference is not None:
        tokens = torch.cat([x_t, reference], dim=1)
        index = 1 if reference_positions == "kontext" else 0
        positions = torch.cat([positions, image_ids(*grid, index=index, device=x_t.device)])
    prompt_embeds = text["prompt_embeds"]
    guidance = torch.full_like(t, guidance_scale) if transformer.config.guidance_embeds else None
    output = transformer(
        hidden_states=tokens,
        encoder_hidden_states=prompt_embeds,
        pooled_projections=text["pooled_prompt_embeds"],
        timestep=t,
        img_ids=positions,
        txt_ids=torch.zeros(prompt_embeds.shape[1], 3, device=x_t.device),
        guidance=guidance,
        return_dict=False,
    )[0]
    return output[:, : x_t.shape[1]]


class Encoder(ImageEncoder):
    """The parts of a FluxPipeline around its transformer: autoencoder, CLIP and T5."""

    def __init__(
        self,
        model: str | Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_length: int = 512,
        num_frames: int = 1,
    ) -> None:
        super().__init__(PIPELINE, model, device, dtype, num_frames)
        self.max_length = min(max_length, self.pipeline.tokenizer_2.model_max_length)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Embeddings of texts: `prompt_embeds` `[B, L, D]` and `pooled_prompt_embeds` `[B, P]`."""
        prompt_embeds, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(texts), prompt_2=None, max_sequence_length=self.max_length
        )
        return {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled}
