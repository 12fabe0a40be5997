"""LAION's aesthetic predictor: a linear head over CLIP ViT-L/14, the pictures prepared as VBench does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, normalize, resize
from transformers import CLIPVisionModelWithProjection

from cluster.errors import UserError
from stages.evaluate.motion.frame_scores import aesthetic_score
from stages.evaluate.motion.weights import read_weights
from stages.train.backbones.models import resolved_model

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI CLIP's
BATCH_SIZE = 16
SETTING = "evaluate_video.motion.aesthetic"


class AestheticModel:
    """CLIP's picture side and the head, loaded once."""

    def __init__(self, clip: str, head: str, device: str):
        """Raises UserError if one can't be loaded, or they don't belong together."""
        tensors = read_weights(head, f"{SETTING}.head")
        try:
            self.clip = CLIPVisionModelWithProjection.from_pretrained(resolved_model(clip), use_safetensors=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"evaluate_video: {clip} can't be loaded as a CLIP model ({' '.join(str(error).split())[:200]}). Name "
                f"a folder that save_pretrained made, with safetensors, or a hub id, with --set {SETTING}.clip=..."
            ) from None
        width = self.clip.config.projection_dim
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        if shapes != {"weight": [1, width], "bias": [1]}:
            raise UserError(
                f"evaluate_video: {head} is no linear head for {clip}: it has {shapes}, wanted are weight [1, {width}] "
                f"and bias [1]. Name LAION's sa_0_4_vit_l_14_linear, converted, with --set {SETTING}.head=..."
            )
        self.weight, self.bias = (tensors[name].double().numpy() for name in ("weight", "bias"))
        self.device = device
        self.clip.to(device).eval().requires_grad_(False)

    def score(self, frames: Sequence[np.ndarray]) -> float:
        """`aesthetic_score` of all frames, uint8 `[T, H, W, 3]`."""
        return aesthetic_score(self.embeds(frames), self.weight, self.bias)

    @torch.no_grad()
    def embeds(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """CLIP's embeddings `[T, D]`: bicubic to the model's size by the shorter side, not antialiased, the middle."""
        side, batches = self.clip.config.image_size, []
        for start in range(0, len(frames), BATCH_SIZE):
            pixels = torch.from_numpy(np.stack(frames[start : start + BATCH_SIZE])).permute(0, 3, 1, 2).to(self.device)
            pixels = center_crop(resize(pixels, [side], InterpolationMode.BICUBIC, antialias=False), [side, side])
            batches.append(self.clip(pixel_values=normalize(pixels / 255, MEAN, STD)).image_embeds)
        return torch.cat(batches).double().cpu().numpy()
