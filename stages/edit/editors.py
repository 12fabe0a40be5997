"""Editors behind one interface: what is trained here, and what it must beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from PIL import Image

from cluster.errors import UserError

if TYPE_CHECKING:
    import torch

    from stages.edit.sampler import Sampler
    from stages.train.backbones.pictures import Picture

Method = Literal[
    "byg",
    "np_edit",
    "video4edit",
    "flow_grpo",
    "untrained",
    "copy",
    "regenerate",
    "sdedit",
    "flowedit",
    "zero_shot_i2v",
    "sft",
]
ClipMethod = Literal["byg_video", "untrained", "copy", "regenerate", "sdedit", "flowedit"]  # on items that are clips
CustomizationMethod = Literal["customization", "untrained", "copy", "regenerate"]  # the object in another setting
VIDEO_METHODS = ("video4edit", "zero_shot_i2v")  # they make a clip with a model of their own, and keep its last frame
CAPTIONS = {
    "regenerate": ("tgt_caption",),
    "sdedit": ("tgt_caption",),
    "flowedit": ("src_caption", "tgt_caption"),
}  # what they draw from, instead of the instruction
ADAPTER_STAGES = {
    "byg": "train_byg",
    "np_edit": "train_np_edit",
    "flow_grpo": "train_flow_grpo",
    "sft": "train_sft",
    "video4edit": "train_video4edit",
    "byg_video": "train_byg_video",
    "customization": "train_customization",
}  # trained methods, and the stages that train them


@dataclasses.dataclass(frozen=True)
class Item:
    """What is asked of an editor: an RGB picture, or a clip and its first frame, and the texts about it."""

    item_id: str
    image: Image.Image
    instruction: str
    src_caption: str
    tgt_caption: str
    frames: tuple[Image.Image, ...] = ()
    """Of a clip, all of them."""

    @property
    def source(self) -> Picture:
        """What is to be edited."""
        return self.frames or self.image


class Editor(Protocol):
    """Edits items whose pictures have one size; the results come in the items' order, of a clip its frames."""

    def edit(self, items: Sequence[Item]) -> list[Picture]: ...


class Copy:
    """Changes nothing: perfect preservation, no success."""

    def edit(self, items: Sequence[Item]) -> list[Picture]:
        return [item.source for item in items]


@dataclasses.dataclass(frozen=True)
class InstructionEditor:
    """Follows the instruction with the source as reference tokens; without an adapter: the untrained base."""

    sampler: Sampler
    seed: int
    adapter: str | None = None

    def edit(self, items: Sequence[Item]) -> list[Picture]:
        return _results(self.sampler, items, *self._sampled(items))

    def _sampled(self, items: Sequence[Item]) -> tuple[torch.Tensor, int, int]:
        """The edits' tokens, and the pictures' height and width."""
        height, width, noise = _start(self.sampler, items, self.seed)
        tokens = self.sampler.sample(
            [item.instruction for item in items],
            noise,
            height,
            width,
            **self.sampler.reference([item.source for item in items]),
            adapter=self.adapter,
        )
        return tokens, height, width


@dataclasses.dataclass(frozen=True)
class ClipEditor(InstructionEditor):
    """Asks an image-to-video model for the clip that starts from the source: its last frame is the edit."""

    def edit(self, items: Sequence[Item]) -> list[Picture]:
        return self.sampler.clips(*self._sampled(items))


@dataclasses.dataclass(frozen=True)
class FewStepEditor:
    """An editor that was trained for a few times alone, such as NP-Edit's: it jumps, and is noised anew in between."""

    sampler: Sampler
    seed: int
    adapter: str | None
    times: Sequence[float]

    def edit(self, items: Sequence[Item]) -> list[Picture]:
        height, width = size_of(items, self.sampler.token_size)
        fresh = self.sampler.noises([item.item_id for item in items], self.seed, height, width)
        tokens = self.sampler.sample_few_step(
            [item.instruction for item in items],
            [fresh() for _ in self.times],
            self.times,
            height,
            width,
            **self.sampler.reference([item.source for item in items]),
            adapter=self.adapter,
        )
        return _results(self.sampler, items, tokens, height, width)


@dataclasses.dataclass(frozen=True)
class Regenerate:
    """Draws the target caption anew, without a look at the source."""

    sampler: Sampler
    seed: int

    def edit(self, items: Sequence[Item]) -> list[Picture]:
        height, width, noise = _start(self.sampler, items, self.seed)
        tokens = self.sampler.sample([item.tgt_caption for item in items], noise, height, width)
        return _results(self.sampler, items, tokens, height, width)


@dataclasses.dataclass(frozen=True)
class SDEdit:
    """Noises the source to the time `strength` and draws on from there with the target caption."""

    sampler: Sampler
    seed: int
    strength: float

    def edit(self, items: Sequence[Item]) -> list[Picture]:
        height, width, noise = _start(self.sampler, items, self.seed)
        source = self.sampler.tokens([item.source for item in items])
        tokens = self.sampler.vary([item.tgt_caption for item in items], noise, height, width, source, self.strength)
        return _results(self.sampler, items, tokens, height, width)


@dataclasses.dataclass(frozen=True)
class FlowEdit:
    """Carries the source along the difference of two velocities, of the target's caption and of the source's.

    `start` and `end` are the paper's n_max / n and n_min / n: of the sampler's steps the last share `start` is taken,
    and of these the last share `end` (of all steps) is ordinary sampling. `guidance_scales`: (source, target).
    """

    sampler: Sampler
    seed: int
    start: float
    end: float
    num_averages: int
    guidance_scales: tuple[float, float]

    def edit(self, items: Sequence[Item]) -> list[Picture]:
        from stages.edit.flow_edit import flow_edit

        sampler, (height, width) = self.sampler, size_of(items, self.sampler.token_size)
        source = sampler.tokens([item.source for item in items])
        src_guidance, tgt_guidance = self.guidance_scales
        nodes = sampler.nodes(source.shape[1])
        num_steps = max(1, round(self.start * sampler.num_inference_steps))
        with sampler.adapters.use(None):
            tokens = flow_edit(
                sampler.velocity([item.src_caption for item in items], height, width, src_guidance),
                sampler.velocity([item.tgt_caption for item in items], height, width, tgt_guidance),
                source,
                sampler.noises([item.item_id for item in items], self.seed, height, width),
                nodes[-num_steps - 1 :],
                num_averages=self.num_averages,
                num_sampled_steps=round(self.end * sampler.num_inference_steps),
            )
        return _results(sampler, items, tokens, height, width)


def _results(sampler: Sampler, items: Sequence[Item], tokens: torch.Tensor, height: int, width: int) -> list[Picture]:
    """The edits: clips where the items are clips."""
    return (sampler.clips if items[0].frames else sampler.pictures)(tokens, height, width)


def size_of(items: Sequence[Item], multiple: int) -> tuple[int, int]:
    """(height, width) of a batch. Raises UserError where a side isn't a multiple of what the model works on."""
    width, height = items[0].image.size
    if width % multiple or height % multiple:
        raise UserError(
            f"edit: the picture of item {items[0].item_id!r} is {width}x{height} pixels; this model works on "
            f"sides that are multiples of {multiple}. Have pictures scaled, for example with "
            "--set edit.num_pixels=262144 (or edit_customization.num_pixels); give clips another size."
        )
    return height, width


def _start(sampler: Sampler, items: Sequence[Item], seed: int):
    """(height, width, noise) of a batch. Raises UserError as `size_of` does."""
    height, width = size_of(items, sampler.token_size)
    return height, width, sampler.noise([item.item_id for item in items], seed, height, width)
