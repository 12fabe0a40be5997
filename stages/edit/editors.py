"""Editors behind one interface: what is trained here, and what it must beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from PIL import Image

from cluster.errors import UserError

if TYPE_CHECKING:
    from stages.edit.sampler import Sampler

Method = Literal["byg", "untrained", "copy", "regenerate", "sdedit", "sft"]
ADAPTER_STAGES = {"byg": "train_byg", "sft": "train_sft"}  # trained methods, and the stages that train them


@dataclasses.dataclass(frozen=True)
class Item:
    """What is asked of an editor: an RGB picture and the texts about it."""

    item_id: str
    image: Image.Image
    instruction: str
    src_caption: str
    tgt_caption: str


class Editor(Protocol):
    """Edits items whose pictures have one size; the results come in the items' order."""

    def edit(self, items: Sequence[Item]) -> list[Image.Image]: ...


class Copy:
    """Changes nothing: perfect preservation, no success."""

    def edit(self, items: Sequence[Item]) -> list[Image.Image]:
        return [item.image for item in items]


@dataclasses.dataclass(frozen=True)
class InstructionEditor:
    """Follows the instruction with the source as reference tokens; without an adapter: the untrained base."""

    sampler: Sampler
    seed: int
    adapter: str | None = None

    def edit(self, items: Sequence[Item]) -> list[Image.Image]:
        height, width, noise = _start(self.sampler, items, self.seed)
        tokens = self.sampler.sample(
            [item.instruction for item in items],
            noise,
            height,
            width,
            reference=self.sampler.tokens([item.image for item in items]),
            adapter=self.adapter,
        )
        return self.sampler.pictures(tokens, height, width)


@dataclasses.dataclass(frozen=True)
class Regenerate:
    """Draws the target caption anew, without a look at the source."""

    sampler: Sampler
    seed: int

    def edit(self, items: Sequence[Item]) -> list[Image.Image]:
        height, width, noise = _start(self.sampler, items, self.seed)
        tokens = self.sampler.sample([item.tgt_caption for item in items], noise, height, width)
        return self.sampler.pictures(tokens, height, width)


@dataclasses.dataclass(frozen=True)
class SDEdit:
    """Noises the source to the time `strength` and draws on from there with the target caption."""

    sampler: Sampler
    seed: int
    strength: float

    def edit(self, items: Sequence[Item]) -> list[Image.Image]:
        height, width, noise = _start(self.sampler, items, self.seed)
        source = self.sampler.tokens([item.image for item in items])
        tokens = self.sampler.vary(
            [item.tgt_caption for item in items], noise, height, width, source, self.strength
        )
        return self.sampler.pictures(tokens, height, width)


def _start(sampler: Sampler, items: Sequence[Item], seed: int):
    """(height, width, noise) of a batch.

    Raises UserError for a picture that can't be cut into whole tokens.
    """
    width, height = items[0].image.size
    if width % sampler.token_size or height % sampler.token_size:
        raise UserError(
            f"edit: the picture of item {items[0].item_id!r} is {width}x{height} pixels; this model works on "
            f"sides that are multiples of {sampler.token_size}. Resize or crop the benchmark's pictures."
        )
    return height, width, sampler.noise([item.item_id for item in items], seed, height, width)
