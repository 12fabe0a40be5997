"""What a backbone is: a module of this package with these names. And which one a model is.

Imports every backbone, and with them diffusers: only what runs a model imports this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import torch
from diffusers import DiffusionPipeline, ModelMixin

from cluster.errors import UserError, one_line
from stages.train.backbones import flux, sd3, wan, wan_i2v
from stages.train.backbones.models import resolved_model
from stages.train.backbones.pictures import Picture
from stages.train.roles import TextEmbeds


class BackboneEncoder(Protocol):
    """A pipeline's parts around its transformer: pixels to packed tokens and back, texts to embeddings.

    Made from (model, device, dtype, max_length, num_frames): the most tokens of a text, and the frames of the clip
    that a picture's edit is, 1 for image models. Nothing in it is trained.
    """

    pipeline: DiffusionPipeline
    """The library's own, without its transformer."""

    def encode_text(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Embeddings of texts, `[B, ...]` each, by the names that `velocity` reads."""

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1], `[B, 3, H, W]` (of a video `[B, 3, F, H, W]`), to packed tokens `[B, N, C]`."""

    def encode_reference(self, images: Sequence[Picture]) -> tuple[torch.Tensor, TextEmbeds]:
        """What a velocity is given of pictures (or clips) to edit: its `reference`, and what goes beside the text's."""

    def decode(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Packed tokens to pixels in [0, 1], in the shape that `encode_pixels` takes; gradients go through."""

    def decode_pixels(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The same, without gradients."""

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        """How many tokens lie along each axis, rows and columns last; their product is N."""

    def shift(self, num_tokens: int) -> float:
        """How far the model's own scheduler moves its times towards noise."""

    @property
    def token_size(self) -> int:
        """Pixels on a side of one token: every side of a picture must be a multiple of it."""

    @property
    def token_channels(self) -> int:
        """The C of a token."""


class Backbone(Protocol):
    """A module with these names. Tokens are packed, `[B, N, C]`, everywhere outside it."""

    NAME: str
    TRANSFORMER: type[ModelMixin]
    PIPELINE: type[DiffusionPipeline]
    """Reads and writes LoRAs of the transformer as the library does."""
    LORA_TARGETS: Sequence[str]
    """Ends of the paths of the linear layers that get a LoRA; each must see a gradient."""
    GUIDANCE_IS_INPUT: bool
    """The transformer takes the guidance scale, or none at all; else guidance is classifier-free: two forwards."""
    Encoder: type[BackboneEncoder]

    @staticmethod
    def velocity(
        transformer: ModelMixin,
        x_t: torch.Tensor,
        t: torch.Tensor,
        text: TextEmbeds,
        reference: torch.Tensor | None,
        grid: tuple[int, ...],
        guidance_scale: float,
        reference_positions: Literal["kontext", "shared"],
    ) -> torch.Tensor:
        """The velocity `[B, N, C]` at tokens `x_t` of times `t` `[B]` (float32, 1 is noise), for these texts."""


BACKBONES: dict[str, Backbone] = {
    "FluxPipeline": flux,
    "FluxKontextPipeline": flux,
    "StableDiffusion3Pipeline": sd3,
    "WanPipeline": wan,
    "WanImageToVideoPipeline": wan_i2v,
}
"""By the class that a model's `model_index.json` names."""

HIDDEN_STATES = {wan_i2v.NAME: wan_i2v.velocity_and_hidden_states}
"""Of the backbones that show what their blocks give: the velocity with these hidden states."""


def backbone_of(model: str, setting: str = "model") -> Backbone:
    """The backbone of a model folder or hub id, by the `_class_name` in its `model_index.json`.

    Raises UserError, with the `setting` to change, if there is no such file or no backbone for that class.
    """
    known = ", ".join(BACKBONES)
    advice = f"Name a folder that save_pretrained of one of {known} made, or a hub id, with --set {setting}=..."
    try:
        name = DiffusionPipeline.load_config(resolved_model(model)).get("_class_name")
    except (OSError, ValueError) as error:
        text = one_line(error)
        raise UserError(f"{model}/model_index.json can't be read ({text}). {advice}") from error
    if name not in BACKBONES:
        raise UserError(f"{model}/model_index.json names the pipeline {name}, which has no backbone here. {advice}")
    return BACKBONES[name]


def boundary_of(model: str) -> float | None:
    """The time at which a pipeline's second transformer takes over, as Wan2.2's has; None: it has but one."""
    config = DiffusionPipeline.load_config(resolved_model(model))
    has_two = config.get("transformer_2", (None, None))[0] is not None
    return config.get("boundary_ratio") if has_two and config["_class_name"] == "WanPipeline" else None


def load_network(model: str, load: Callable[[str], ModelMixin]) -> ModelMixin | wan.Experts:
    """The network of a pipeline, its parts loaded by `load(subfolder)`: one transformer, or two experts as one."""
    boundary_ratio = boundary_of(model)
    if boundary_ratio is None:
        return load("transformer")
    return wan.Experts(load("transformer"), load("transformer_2"), boundary_ratio)


@contextlib.contextmanager
def loading(model: str, setting: str) -> Iterator[Backbone]:
    """Gives the model's backbone, and turns what goes wrong while it is loaded into a UserError with the `setting`."""
    backbone = backbone_of(model, setting)
    try:
        yield backbone
    except (OSError, ValueError) as error:
        text, pipeline = one_line(error), backbone.PIPELINE.__name__
        raise UserError(
            f"{model} can't be loaded as a {pipeline} ({text}). Name a folder that "
            f"{pipeline}.save_pretrained made, or a hub id, with --set {setting}=..."
        ) from error
