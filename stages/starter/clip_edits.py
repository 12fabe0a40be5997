"""Edits of whole clips of the scene world, and the oracle that scores them frame by frame.

An edit gives a clip the other style, day or night, from its first frame to its last; all that happens in it goes on
as before. So every frame has its truth: the frame of the same clip rendered in the other style.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from stages.starter import clips, oracle, world

CLIP_KINDS = tuple(kind for kind in clips.CLIP_KINDS if kind != "style")  # a clip in which night falls has no style
_EVERYWHERE = np.ones((world.IMAGE_SIZE, world.IMAGE_SIZE), dtype=bool)


@dataclasses.dataclass(frozen=True)
class ClipEdit:
    """A clip of so many frames, and the style that all of them should get."""

    clip: clips.Clip
    style: str
    num_frames: int = clips.NUM_FRAMES

    @property
    def target(self) -> clips.Clip:
        """The clip as it should be."""
        return in_style(self.clip, self.style)

    @property
    def instruction(self) -> str:
        return f"turn it into a {self.style} scene"

    @property
    def reverse_instruction(self) -> str:
        return f"turn it into a {self.clip.source.style} scene"

    def to_json(self) -> str:
        clip = self.clip
        return json.dumps(
            {
                "edit_type": "style",
                "kind": clip.kind,
                "evolution_caption": clip.evolution_caption,
                "first": clip.source.to_json(),
                "last": clip.target.to_json(),
                "style": self.style,
                "num_frames": self.num_frames,
            },
            sort_keys=True,
        )

    @staticmethod
    def from_json(text: str) -> ClipEdit:
        raw = json.loads(text)
        first, last = (world.Scene.from_json(raw[name]) for name in ("first", "last"))
        return ClipEdit(clips.Clip(raw["kind"], first, last, raw["evolution_caption"]), raw["style"], raw["num_frames"])


def in_style(clip: clips.Clip, style: str) -> clips.Clip:
    """The same clip in another style."""
    source, target = (dataclasses.replace(scene, style=style) for scene in (clip.source, clip.target))
    return dataclasses.replace(clip, source=source, target=target)


def sample_clip_edit(
    generator: np.random.Generator, kind: str, style: str, num_frames: int = clips.NUM_FRAMES
) -> ClipEdit:
    """A clip of this kind in `style`, and the edit that gives it the other one."""
    other = world.STYLES[1 - world.STYLES.index(style)]
    return ClipEdit(in_style(clips.sample_clip(generator, (kind,)), style), other, num_frames)


def is_clip_edit(metadata: str) -> bool:
    """Whether a benchmark item's metadata describes an edit of a clip of this world."""
    try:
        value = json.loads(metadata)
    except (TypeError, json.JSONDecodeError):
        return False
    return isinstance(value, dict) and {"kind", "first", "last", "style"} <= value.keys()


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """By frame: whether it has the new style, and whether all else in it is as in the source clip."""

    done: tuple[bool, ...]
    kept: tuple[bool, ...]

    @property
    def edit_success(self) -> bool:
        return all(self.done)

    @property
    def preservation(self) -> bool:
        return all(self.kept)

    @property
    def whole_scene_right(self) -> bool:
        return self.edit_success and self.preservation

    @property
    def frames_right(self) -> float:
        """The share of the frames that are right."""
        return float(np.mean(np.logical_and(self.done, self.kept)))


def score_clip(edit: ClipEdit, frames: Sequence[np.ndarray]) -> ClipScore:
    """Scores frames (uint8 or float in [0, 1], `[32, 32, 3]` each) against what the edit should give.

    A frame's style is the one whose light fits it best, by least squares against the true frame. All else is kept
    where no 4x4 block is far from the true frame in the style that the frame has, and each of the sixteen patches
    is lit or in shade as it was; the first and the last frame must also read as their scenes do.

    Raises ValueError if there are more frames or fewer than the edit has.
    """
    if len(frames) != edit.num_frames:
        raise ValueError(f"{len(frames)} frames, where the clip has {edit.num_frames}")
    truths = {style: clips.render_clip(in_style(edit.clip, style), len(frames)) for style in world.STYLES}
    scenes = {0: edit.clip.source, len(frames) - 1: edit.clip.target}
    done, kept = [], []
    for index, frame in enumerate(frames):
        pixels = frame.astype(np.float64) / 255 if frame.dtype == np.uint8 else np.asarray(frame, dtype=np.float64)
        style = _style_of(pixels, truths["day"][index])
        done.append(style == edit.style)
        same = oracle.worst_block(pixels, truths[style][index], _EVERYWHERE) < oracle.MAX_BLOCK_ERROR
        same = same and _light_signs(pixels, style, edit.clip, index / (len(frames) - 1)) == edit.clip.source.light
        if same and index in scenes:
            same = oracle.read(pixels) == oracle.expected_reading(dataclasses.replace(scenes[index], style=style))
        kept.append(bool(same))
    return ClipScore(tuple(done), tuple(kept))


def _style_of(pixels: np.ndarray, plain: np.ndarray) -> str:
    """The style whose factors are nearest to those that explain the frame best, given it in plain day."""
    factors = (pixels * plain).sum(axis=(0, 1)) / (plain**2).sum(axis=(0, 1))
    return min(world.STYLES, key=lambda style: np.abs(np.array(world.STYLE_FACTORS[style]) - factors).sum())


def _light_signs(pixels: np.ndarray, style: str, clip: clips.Clip, progress: float) -> tuple[int, ...]:
    """+1 for each patch that is lit and -1 for each in shade, in reading order."""
    unlit = (dataclasses.replace(s, style="day", light=(0,) * world.NUM_PATCHES**2) for s in (clip.source, clip.target))
    difference = pixels / np.array(world.STYLE_FACTORS[style]) - clips.render_between(*unlit, progress)
    patches = difference.reshape(world.NUM_PATCHES, world.PATCH_SIZE, world.NUM_PATCHES, world.PATCH_SIZE, 3)
    brightness = patches.mean(axis=(1, 3, 4))
    return tuple(int(lit) for lit in np.where(brightness.ravel() > brightness.mean(), 1, -1))
