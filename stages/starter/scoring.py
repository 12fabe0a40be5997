"""One question for all kinds of benchmark items of the scene world: is the edit done, is all else kept?"""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from stages.starter import clip_edits, customization, oracle, world


@dataclasses.dataclass(frozen=True)
class ItemScore:
    """`edit_success`: the edit is done, or the setting is the one that was asked for. `preservation`: all else is as
    it was, or the object is the same."""

    edit_success: bool
    preservation: bool

    @property
    def whole_scene_right(self) -> bool:
        return self.edit_success and self.preservation


def score_item(metadata: str, edited: np.ndarray) -> ItemScore:
    """Scores a picture, uint8 `[H, W, 3]`, or a clip `[F, H, W, 3]`, by what the item's `metadata` tells.

    Raises ValueError or KeyError if that is no item of the scene world, or the picture has another size.
    """
    if clip_edits.is_clip_edit(metadata):
        clip = clip_edits.score_clip(clip_edits.ClipEdit.from_json(metadata), edited)
        return ItemScore(clip.edit_success, clip.preservation)
    if is_customization(metadata):
        wanted = json.loads(metadata)
        shown = customization.score_customization(wanted["object"], wanted["setting"], edited)
        return ItemScore(shown.setting_right, shown.same_object)
    score = oracle.score(world.Edit.from_json(metadata), edited)
    return ItemScore(bool(score.edit_success), bool(score.preservation))


def is_customization(metadata: str) -> bool:
    """Whether a benchmark item's metadata describes an object of this world in another setting."""
    try:
        value = json.loads(metadata)
    except (TypeError, json.JSONDecodeError):
        return False
    return isinstance(value, dict) and value.keys() - {"questions"} == {"object", "setting"}
