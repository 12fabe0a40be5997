"""CLIP and the DINO family: from pictures and captions to embeddings."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPModel, CLIPProcessor, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from cluster.errors import UserError
from stages.evaluate.perception.settings import ClipSettings, DinoSettings
from stages.train.backbones.models import resolved_model

SHORTER_SIDE = 256 / 224  # of the square that is cut from the middle, as DINO's own evaluation has it
DINO_TYPES = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")


@contextlib.contextmanager
def loading(setting: str, model: str, kind: str) -> Iterator[str]:
    """What to load a model from. What goes wrong inside becomes a UserError that names the setting."""
    try:
        yield resolved_model(model)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"{setting} = {model!r} can't be loaded as {kind} ({text}). Name a folder or hub id with its "
            "configuration, its processor and its weights as safetensors."
        ) from error


def load_frozen(model_class: Any, model: str, device: str, **options: Any) -> PreTrainedModel:
    """A model in float32. Raises ValueError where weights are missing, which transformers would draw at random."""
    network, found = model_class.from_pretrained(
        model, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True, **options
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{len(missing)} of its weights are not there, such as {missing[0]}")
    return network.to(device).eval().requires_grad_(False)


def in_batches(sequence: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(sequence), size):
        yield sequence[start : start + size]


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB picture as `[1, 3, H, W]` in [0, 1], float32."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def standardised(pixels: torch.Tensor, processor: BaseImageProcessor) -> torch.Tensor:
    """Pixels `[B, 3, H, W]` in [0, 1] less the processor's mean, by its deviation."""
    mean, deviation = (
        torch.tensor(values, dtype=pixels.dtype).view(1, 3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    return (pixels - mean) / deviation


class ClipEncoder:
    """CLIP, frozen, in float32. Raises UserError if `settings.model` can't be loaded."""

    def __init__(self, settings: ClipSettings, device: str, batch_size: int) -> None:
        with loading("perception.clip.model", settings.model, "CLIP") as model:
            self.network = load_frozen(CLIPModel, model, device)
            self.processor = CLIPProcessor.from_pretrained(model, trust_remote_code=False)
        self.device, self.batch_size = device, batch_size

    def encode_squares(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings `[N, D]` of the whole pictures: both sides scaled to the model's, which keeps every pixel.

        Bicubic without antialiasing or clamping, half-pixel centres, as InstructPix2Pix's metric does it.
        """
        side = self.network.config.vision_config.image_size
        squares = [
            F.interpolate(to_tensor(image), size=(side, side), mode="bicubic", align_corners=False) for image in images
        ]
        pixels = [standardised(square, self.processor.image_processor) for square in squares]
        return self._image_embeddings(pixels)

    def encode_crops(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings `[N, D]` of the pictures as the model's own processor prepares them.

        Of the published models: bicubic, the shorter side to 224, then the middle 224 x 224.
        """
        pixels = [self.processor.image_processor(image, return_tensors="pt")["pixel_values"] for image in images]
        return self._image_embeddings(pixels)

    @torch.no_grad()
    def _image_embeddings(self, pixels: Sequence[torch.Tensor]) -> np.ndarray:
        parts = [
            self.network.get_image_features(torch.cat(list(batch)).to(self.device)).pooler_output.cpu()
            for batch in in_batches(pixels, self.batch_size)
        ]
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings `[N, D]` of captions. What is beyond the model's 77 tokens is cut off, as CLIP does."""
        length = self.network.config.text_config.max_position_embeddings
        parts = []
        for batch in in_batches(texts, self.batch_size):
            inputs = self.processor.tokenizer(
                list(batch), padding=True, truncation=True, max_length=length, return_tensors="pt"
            ).to(self.device)
            features = self.network.get_text_features(inputs["input_ids"], inputs["attention_mask"])
            parts.append(features.pooler_output.cpu())
        return torch.cat(parts).numpy()


class DinoEncoder:
    """A DINO, DINOv2 or DINOv3, frozen, in float32, that sees squares of `settings.size`.

    Raises UserError, naming `setting`, if the model can't be loaded or its patches don't fill that size.
    """

    def __init__(self, settings: DinoSettings, device: str, batch_size: int, setting: str = "perception.dino") -> None:
        with loading(f"{setting}.model", settings.model, "DINO, DINOv2 or DINOv3") as model:
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            if config.model_type not in DINO_TYPES:
                raise ValueError(f"it is of type {config.model_type}, not {', '.join(DINO_TYPES)}")
            # DINO's checkpoints have no pooler; and ViT alone has to be told that its positions may be interpolated
            is_vit = config.model_type == "vit"
            options = {"add_pooling_layer": False} if is_vit else {}
            self.network = load_frozen(AutoModel, model, device, **options)
            self.processor = AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
        if settings.size % config.patch_size:
            raise UserError(
                f"{setting}.size = {settings.size} is no multiple of {config.patch_size}, the side of the patches of "
                f"{settings.model}."
            )
        self.settings, self.device, self.batch_size = settings, device, batch_size
        self._options = {"interpolate_pos_encoding": True} if is_vit else {}

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The class tokens after the last normalisation, `[N, D]`."""
        parts = []
        for batch in in_batches(images, self.batch_size):
            resized = torch.cat([to_tensor(resize(image, self.settings)) for image in batch])
            pixels = standardised(resized, self.processor).to(self.device)
            parts.append(self.network(pixels, **self._options).last_hidden_state[:, 0].cpu())
        return torch.cat(parts).numpy()


def resize(image: Image.Image, settings: DinoSettings) -> Image.Image:
    """The picture at `size` x `size`, by Pillow's bicubic filter, which is antialiased, in 8 bits.

    `square` scales both sides. `crop` scales the shorter side to 256/224 of the size (the longer one is rounded down)
    and takes the middle.
    """
    side = settings.size
    if settings.resize == "square":
        return image.resize((side, side), Image.Resampling.BICUBIC)
    shorter = round(side * SHORTER_SIDE)
    width, height = (max(shorter, shorter * length // min(image.size)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def grouped(keys: Sequence) -> Iterator[list[int]]:
    """The indices of equal keys together, in the order of their first."""
    order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    indices = sorted(range(len(keys)), key=lambda i: order[keys[i]])
    for _, group in itertools.groupby(indices, key=lambda i: keys[i]):
        yield list(group)
