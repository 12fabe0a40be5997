"""Wan, image-to-video and first/last-frame-to-video: a clip that starts from a picture, or runs between two.

The transformer's input has 36 channels: 16 of the noised clip, 4 of a mask, 16 of the condition, which is the clip
encoded with its known frames alone. Here the `reference` of a velocity is mask and condition, packed: `[B, N, 80]`.
Wan2.1 sees the known pictures through CLIP too: `image_embeds` beside the text's `prompt_embeds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModel

from stages.train.backbones import wan
from stages.train.backbones.packing import Grid, pack, unpack
from stages.train.backbones.pictures import to_pixels
from stages.train.roles import TextEmbeds

NAME = "wan_i2v"
TRANSFORMER = WanTransformer3DModel
PIPELINE = WanImageToVideoPipeline
LORA_TARGETS = wan.LORA_TARGETS
GUIDANCE_IS_INPUT = False

TEXT_LENGTH = 512
"""The transformer tells text from picture tokens by this number, which the library has fixed."""


def frame_mask(latents: torch.Tensor, with_last: bool) -> torch.Tensor:
    """Which of a clip's frames are known, `[B, 4, F, H, W]` for latents of this shape: 1 where one is.

    The 4 channels are the 4 frames of a latent frame. The first latent frame holds the first picture alone, in
    all four; a known last picture is the fourth frame of the last latent frame.
    """
    batch, _, frames, height, width = latents.shape
    mask = latents.new_zeros(batch, 4, frames, height, width)
    mask[:, :, 0] = 1
    if with_last:
        mask[:, 3, -1] = 1
    return mask


def velocity(
    transformer: WanTransformer3DModel,
    x_t: torch.Tensor,
    t: torch.Tensor,
    text: TextEmbeds,
    reference: torch.Tensor,
    grid: Grid,
    guidance_scale: float = 1.0,
    reference_positions: Literal["kontext", "shared"] = "shared",
) -> torch.Tensor:
    """The velocity `[B, N, 64]` at packed tokens `x_t` of times `t` `[B]` in float32, for a `grid` of tokens.

    `reference` `[B, N, 80]` is what `encode_condition` gives; it lies in channels, so neither `guidance_scale` nor
    `reference_positions` is read. With `image_embeds` (`[B, 257, D]`, or `[B, 514, D]` for two pictures) the text must
    have 512 tokens: raises ValueError otherwise.
    """
    prompt_embeds, image_embeds = text["prompt_embeds"], text.get("image_embeds")
    if image_embeds is not None:
        if prompt_embeds.shape[1] != TEXT_LENGTH:
            raise ValueError(f"{prompt_embeds.shape[1]} tokens of text: beside pictures it must be {TEXT_LENGTH}")
        positions = transformer.condition_embedder.image_embedder.pos_embed
        if positions is not None:  # two pictures, which the library takes as two rows
            image_embeds = image_embeds.reshape(2 * len(image_embeds), positions.shape[1] // 2, -1)
    output = transformer(
        hidden_states=torch.cat([unpack(x_t, grid), unpack(reference, grid)], dim=1),
        timestep=1000 * t,
        encoder_hidden_states=prompt_embeds,
        encoder_hidden_states_image=image_embeds,
        return_dict=False,
    )[0]
    return pack(output)


def velocity_and_hidden_states(
    transformer: WanTransformer3DModel,
    x_t: torch.Tensor,
    t: torch.Tensor,
    text: TextEmbeds,
    reference: torch.Tensor,
    grid: Grid,
    blocks: Sequence[int],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The same velocity, and what these blocks of the transformer give, each `[B, N, D]`, from first to last."""
    collected: list[torch.Tensor] = []
    # A hook that returns nothing leaves the block's output as it is.
    handles = [
        transformer.blocks[block].register_forward_hook(lambda module, args, output: collected.append(output))
        for block in blocks
    ]
    try:
        return velocity(transformer, x_t, t, text, reference, grid), collected
    finally:
        for handle in handles:
            handle.remove()


class Encoder(wan.Encoder):
    """The parts of an image-to-video or first/last-frame pipeline of Wan2.1 around its transformer."""

    def __init__(
        self,
        model: str | Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_length: int = TEXT_LENGTH,
        num_frames: int = 5,
    ) -> None:
        super().__init__(model, device, dtype, max_length, num_frames)
        self.image_processor = CLIPImageProcessor.from_pretrained(str(model), subfolder="image_processor")
        self.image_encoder = CLIPVisionModel.from_pretrained(
            str(model), subfolder="image_encoder", dtype=dtype, use_safetensors=True
        ).to(device)

    @torch.no_grad()
    def encode_images(self, *images: Sequence[Image.Image]) -> torch.Tensor:
        """What CLIP sees of the known pictures, `[B, 257, D]`; of first and last ones side by side `[B, 514, D]`.

        It is the layer before CLIP's last.
        """
        embeds = []
        for pictures in images:
            pixels = self.image_processor(images=list(pictures), return_tensors="pt").pixel_values
            seen = self.image_encoder(pixels.to(self.device, self.dtype), output_hidden_states=True)
            embeds.append(seen.hidden_states[-2])
        return torch.cat(embeds, dim=1)

    @torch.no_grad()
    def encode_reference(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, TextEmbeds]:
        """The condition of clips that start from the pictures `[B, N, 80]`, and what CLIP sees, `image_embeds`."""
        return self.encode_condition(to_pixels(images)), {"image_embeds": self.encode_images(images)}

    @torch.no_grad()
    def encode_condition(self, first: torch.Tensor, last: torch.Tensor | None = None) -> torch.Tensor:
        """Mask and condition `[B, N, 80]` of clips whose first frame is known, and the last one where it is given.

        Pictures come in [-1, 1], `[B, 3, H, W]`; unknown frames are encoded as 0, a middle grey.
        """
        clip = first.new_zeros(*first.shape[:2], self.num_frames, *first.shape[2:])
        clip[:, :, 0] = first
        if last is not None:
            clip[:, :, -1] = last
        latents = self._encode(clip)
        return pack(torch.cat([frame_mask(latents, last is not None), latents], dim=1)).to(self.dtype)

    def encode_tail(
        self, source: torch.Tensor, edited: torch.Tensor, tail: Literal["clip", "tiled"] = "clip"
    ) -> torch.Tensor:
        """The latent frame that a finished edit should end in, `[B, rows * columns, 64]` (Video4Edit, eq. 4).

        `clip`: the last of the clip that jumps from the source to the edited picture and stays there for all other
        frames. `tiled`: as the paper writes, the edited picture four times; of these the causal autoencoder encodes
        the first alone, so it is the picture's own latent, not that of a clip's end. Pictures as in `encode_condition`.
        """
        if tail == "tiled":
            return self.encode_pixels(edited.unsqueeze(2))
        clip = torch.cat([source.unsqueeze(2), edited.unsqueeze(2).expand(-1, -1, self.num_frames - 1, -1, -1)], dim=2)
        tokens = self.encode_pixels(clip)
        _, rows, columns = self.grid(*source.shape[2:])
        return tokens[:, -rows * columns :]
