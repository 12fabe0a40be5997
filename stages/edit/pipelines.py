"""Other people's editors, through their diffusers pipelines: picture and instruction in, edited picture out.

A picture keeps its own size: the pipelines would otherwise draw about a megapixel, or 480x832.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import Field

from cluster.config import StageConfig
from cluster.errors import UserError
from stages.edit.editors import Item, size_of
from stages.train.backbones.models import resolved_model

if TYPE_CHECKING:
    import torch


class PipelineSettings(StageConfig):
    """One editor that others have trained, and how it samples."""

    model: str = Field(description="The folder that its diffusers pipeline was saved to, or a hub id.")
    num_inference_steps: int = Field(ge=1)
    guidance_scale: float = Field(
        ge=0, description="Kontext's embedded one; of Qwen-Image-Edit and Wan-VACE the classifier-free one (1: none)."
    )
    negative_prompt: str = Field(" ", description="What classifier-free guidance leads away from.")


Call = Callable[[Any, Item, PipelineSettings, "torch.Generator"], Image.Image]


def _kontext(pipeline, item: Item, settings: PipelineSettings, generator: torch.Generator) -> Image.Image:
    width, height = item.image.size
    return pipeline(
        image=item.image,
        prompt=item.instruction,
        height=height,
        width=width,
        max_area=width * height,  # else the result has a megapixel, and with
        _auto_resize=False,  # this the source goes in at one of Kontext's training sizes
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        generator=generator,
    ).images[0]


def _qwen_image_edit(pipeline, item: Item, settings: PipelineSettings, generator: torch.Generator) -> Image.Image:
    """The result has the picture's size; as its reference the pipeline always takes it at about a megapixel."""
    width, height = item.image.size
    guided = settings.guidance_scale > 1
    return pipeline(
        image=item.image,
        prompt=item.instruction,
        negative_prompt=settings.negative_prompt if guided else None,
        true_cfg_scale=settings.guidance_scale,
        height=height,
        width=width,
        num_inference_steps=settings.num_inference_steps,
        generator=generator,
    ).images[0]


def _wan_vace(pipeline, item: Item, settings: PipelineSettings, generator: torch.Generator) -> Image.Image:
    """The picture is the control video of one frame, all of it to be redrawn, as Ditto conditions on a clip."""
    width, height = item.image.size
    return pipeline(
        video=[item.image],
        prompt=item.instruction,
        negative_prompt=settings.negative_prompt,
        height=height,
        width=width,
        num_frames=1,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        generator=generator,
        output_type="pil",
    ).frames[0][0]


CALLS: dict[str, Call] = {
    "FluxKontextPipeline": _kontext,
    "QwenImageEditPipeline": _qwen_image_edit,
    "QwenImageEditPlusPipeline": _qwen_image_edit,
    "WanVACEPipeline": _wan_vace,
}


@dataclasses.dataclass(frozen=True)
class PipelineEditor:
    """Calls a loaded pipeline for one item after the other, each with its own generator."""

    name: str
    pipeline: Any
    settings: PipelineSettings
    seed: int

    def edit(self, items: Sequence[Item]) -> list[Image.Image]:
        from stages.train.flow import item_generator

        size_of(items, _multiple(self.pipeline))
        call = CALLS[type(self.pipeline).__name__]
        return [call(self.pipeline, item, self.settings, item_generator(item.item_id, self.seed)) for item in items]


def _multiple(pipeline) -> int:
    """What the sides of a picture must be multiples of: the pixels on a side of one token."""
    if hasattr(pipeline, "vae_scale_factor_spatial"):  # Wan's
        transformer = pipeline.transformer or pipeline.transformer_2
        return pipeline.vae_scale_factor_spatial * transformer.config.patch_size[1]
    return pipeline.vae_scale_factor * 2


def pipeline_class(name: str, settings: PipelineSettings) -> str:
    """The class that the model's `model_index.json` names. Raises UserError if there is none, or none of `CALLS`."""
    from diffusers import DiffusionPipeline

    with _loading(name, settings):
        class_name = DiffusionPipeline.load_config(resolved_model(settings.model)).get("_class_name")
    if class_name not in CALLS:
        raise UserError(
            f"edit.pipelines.{name}.model: {settings.model} holds a {class_name}, which no editor is made of here. "
            f"Known are {', '.join(CALLS)}."
        )
    return class_name


def load_pipeline(
    name: str, settings: PipelineSettings, *, seed: int, device: str, dtype: torch.dtype
) -> PipelineEditor:
    """The editor `name` of `EditConfig.pipelines`; Wan's autoencoder stays in float32, as its authors have it.

    Raises UserError if it can't be loaded, or as `pipeline_class` does.
    """
    import diffusers
    import torch

    class_name = pipeline_class(name, settings)
    dtypes = {"default": dtype, "vae": torch.float32} if class_name == "WanVACEPipeline" else dtype
    with _loading(name, settings):
        pipeline = getattr(diffusers, class_name).from_pretrained(
            resolved_model(settings.model), torch_dtype=dtypes, use_safetensors=True
        )
    pipeline.set_progress_bar_config(disable=True)
    return PipelineEditor(name, pipeline.to(device), settings, seed)


@contextlib.contextmanager
def _loading(name: str, settings: PipelineSettings) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"edit.pipelines.{name}.model: {settings.model} can't be loaded as a diffusers pipeline ({text}). Name a "
            "folder that its save_pretrained made, or a hub id."
        ) from error
