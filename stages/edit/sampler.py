"""Few-step Euler sampling with a pipeline's parts: text to picture or clip, with or without a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from PIL import Image

from cluster.errors import UserError
from stages.train import flow
from stages.train.adapters import Adapters
from stages.train.backbones.backbone import load_network, loading
from stages.train.backbones.pictures import Picture, to_clips, to_images, to_pixels
from stages.train.backbones.wan import Experts
from stages.train.export import FILES
from stages.train.roles import TextEmbeds


class Sampler:
    """An image pipeline's parts on one device, with LoRA adapters of which one or none is active at a time.

    Args:
        model: a pipeline's folder, or a hub id.
        adapters: name -> folder with a LoRA as `load_lora_weights` takes it.
        transformer: a folder with another transformer for the model.
        guidance_scale: an input of the model where it takes one; elsewhere classifier-free above 1: away from
            the velocity without text (the reference stays), two forwards a step.
        shift: of the sampling times towards noise; None: as the model's own scheduler has it.
        num_frames: of the clips that a video model makes; 1: pictures.
        setting: where the model was named, for errors.

    Raises:
        UserError: the model can't be loaded, or an adapter isn't one of this model.
    """

    def __init__(
        self,
        model: str | Path,
        adapters: Mapping[str, Path] | None = None,
        *,
        transformer: Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_inference_steps: int = 10,
        guidance_scale: float = 3.5,
        shift: float | None = None,
        reference_positions: str = "kontext",
        max_text_tokens: int = 512,
        num_frames: int = 1,
        setting: str = "edit.model",
    ) -> None:
        with loading(str(model), setting) as self.backbone:
            self.encoder = self.backbone.Encoder(model, device, dtype, max_text_tokens, num_frames)

            def load(subfolder: str) -> ModelMixin:
                place = (str(transformer), {}) if transformer else (str(model), {"subfolder": subfolder})
                options = {"torch_dtype": dtype, "use_safetensors": True}
                return self.backbone.TRANSFORMER.from_pretrained(place[0], **place[1], **options)

            self.transformer = load("transformer") if transformer else load_network(str(model), load)
        self.transformer.to(device).eval().requires_grad_(False)
        self.device, self.dtype = device, dtype
        self.num_inference_steps, self.guidance_scale, self.shift = num_inference_steps, guidance_scale, shift
        self.reference_positions = reference_positions
        for name, folder in (adapters or {}).items():
            self._load_adapter(name, folder)
        self.adapters = Adapters(self.transformer)

    def _load_adapter(self, name: str, folder: Path) -> None:
        parts = {"": self.transformer}
        if isinstance(self.transformer, Experts):
            parts = {part: getattr(self.transformer, part) for part in Experts.PARTS}
        for part, network in parts.items():
            try:
                network.load_lora_adapter(
                    str(folder),
                    adapter_name=name,
                    weight_name=FILES[part],
                    use_safetensors=True,
                    local_files_only=True,
                )
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                text = " ".join(str(error).split())[:300]
                raise UserError(
                    f"edit: the adapter {name!r} in {folder} doesn't fit the model ({text}). It must have been "
                    "trained on the model that edit.model names."
                ) from error
            if name not in getattr(network, "peft_config", {}):  # diffusers only warns where no key fits
                raise UserError(f"edit: {Path(folder) / FILES[part]} holds no LoRA of this model's transformer.")

    def tokens(self, images: Sequence[Picture]) -> torch.Tensor:
        """Pictures of one size, or clips, as packed latents `[B, N, 64]`, float32."""
        return self.encoder.encode_pixels(to_pixels(images)).float()

    def reference(self, images: Sequence[Picture]) -> dict[str, Any]:
        """What the model is given of pictures or clips to edit: keyword arguments `reference` and `image_embeds`."""
        tokens, image_embeds = self.encoder.encode_reference(images)
        return {"reference": tokens, "image_embeds": image_embeds}

    def pictures(self, tokens: torch.Tensor, height: int, width: int) -> list[Image.Image]:
        """Packed latents as pictures."""
        return to_images(self.encoder.decode_pixels(tokens.to(self.dtype), height, width))

    def clips(self, tokens: torch.Tensor, height: int, width: int) -> list[list[Image.Image]]:
        """Packed latents of clips as all their frames."""
        return to_clips(self.encoder.decode_pixels(tokens.to(self.dtype), height, width))

    def noise(self, item_ids: Sequence[str], seed: int, height: int, width: int) -> torch.Tensor:
        """The items' noise as tokens `[B, N, 64]`."""
        return self.noises(item_ids, seed, height, width)()

    def noises(self, item_ids: Sequence[str], seed: int, height: int, width: int) -> Callable[[], torch.Tensor]:
        """Fresh noise `[B, N, 64]` of the items at every call; the first is that of `noise`."""
        shape = (math.prod(self.encoder.grid(height, width)), self.encoder.token_channels)
        generators = [flow.item_generator(item_id, seed) for item_id in item_ids]
        return lambda: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)

    @property
    def token_size(self) -> int:
        """Pixels on a side of one token: every side of a picture must be a multiple of it."""
        return self.encoder.token_size

    def nodes(self, num_tokens: int) -> torch.Tensor:
        """The sampler's times from 1 to 0, `[num_inference_steps + 1]`."""
        shift = self.shift
        if shift is None:
            shift = self.encoder.shift(num_tokens)
        return flow.sampling_nodes(self.num_inference_steps, shift).to(self.device)

    @torch.no_grad()
    def sample(
        self,
        texts: Sequence[str],
        noise: torch.Tensor,
        height: int,
        width: int,
        *,
        reference: torch.Tensor | None = None,
        image_embeds: TextEmbeds | None = None,
        adapter: str | None = None,
    ) -> torch.Tensor:
        """Tokens `[B, N, 64]` sampled from the noise, for texts and where given a reference."""
        nodes = self.nodes(noise.shape[1])
        velocity = self.velocity(texts, height, width, self.guidance_scale, reference, image_embeds)
        with self.adapters.use(adapter):
            return flow.euler(velocity, noise, nodes)

    @torch.no_grad()
    def vary(
        self,
        texts: Sequence[str],
        noise: torch.Tensor,
        height: int,
        width: int,
        source: torch.Tensor,
        strength: float,
    ) -> torch.Tensor:
        """SDEdit (Meng et al. 2022): the source is noised to the time `strength`, and sampled on from there.

        All `num_inference_steps` lie between `strength` and 0. Strength 1 is `sample` without a reference; at
        0 the source stays as it is.
        """
        nodes = strength * self.nodes(noise.shape[1])
        start = flow.noised(source, noise, nodes[:1].expand(len(source)))
        with self.adapters.use(None):
            return flow.euler(self.velocity(texts, height, width, self.guidance_scale), start, nodes)

    @torch.no_grad()
    def sample_few_step(
        self,
        texts: Sequence[str],
        noises: Sequence[torch.Tensor],
        times: Sequence[float],
        height: int,
        width: int,
        *,
        reference: torch.Tensor,
        image_embeds: TextEmbeds | None = None,
        adapter: str | None,
    ) -> torch.Tensor:
        """Tokens `[B, N, 64]` of a few-step editor, which knows just these `times` (NP-Edit, eq. 3)."""
        velocity = self.velocity(texts, height, width, self.guidance_scale, reference, image_embeds)
        with self.adapters.use(adapter):
            return flow.few_step(velocity, noises, times)

    def velocity(
        self,
        texts: Sequence[str],
        height: int,
        width: int,
        guidance_scale: float,
        reference: torch.Tensor | None = None,
        image_embeds: TextEmbeds | None = None,
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """The model's velocity `(x_t [B, N, 64], t [B]) -> [B, N, 64]` for texts, under the adapter then active."""
        grid, beside = self.encoder.grid(height, width), image_embeds or {}
        text = {**self.encoder.encode_text(texts), **beside}
        if reference is not None:
            reference = reference.to(self.dtype)

        @torch.no_grad()
        def velocity(x_t: torch.Tensor, t: torch.Tensor, text: TextEmbeds = text) -> torch.Tensor:
            return self.backbone.velocity(
                self.transformer,
                x_t.to(self.dtype),
                t,
                text,
                reference,
                grid,
                guidance_scale,
                self.reference_positions,
            )

        def guided(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            free = velocity(x_t, t, nothing)
            return free + guidance_scale * (velocity(x_t, t) - free)

        if guidance_scale > 1 and not self.backbone.GUIDANCE_IS_INPUT:
            nothing = {**self.encoder.encode_text([""] * len(texts)), **beside}
            return guided
        return velocity
