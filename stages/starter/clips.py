"""Clips of the scene world: five frames in which a scene becomes its edited scene, an object moves, or nothing does.

The first frame is the source and the last one the target, both rendered exactly; in between, colours run along a
straight line, shapes along that of their level functions (so an outline travels from the old to the new one), and
what comes or goes fades. Nothing but the changed object changes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from stages.starter import world
from stages.starter.world import Edit, Scene, SceneObject

NUM_FRAMES = 5  # 4k + 1, as Wan's causal autoencoder takes them
CLIP_KINDS = (*world.EDIT_TYPES, "move", "still")
STILL_CAPTION = "nothing changes"


@dataclasses.dataclass(frozen=True)
class Clip:
    """What a clip shows: `kind` (of CLIP_KINDS), its first and last scene, and what happens between them, in words."""

    kind: str
    source: Scene
    target: Scene
    evolution_caption: str

    @property
    def first_caption(self) -> str:
        return world.caption(self.source)

    @property
    def last_caption(self) -> str:
        return world.caption(self.target)

    @property
    def content(self) -> str:
        """The first frame but for its style, and what happens then."""
        plain = dataclasses.replace(self.source, style="day")
        return f"{world.caption(plain)} then {self.evolution_caption}"

    @property
    def caption(self) -> str:
        """All of the clip; the style that it begins with stands last."""
        return self.content + (" at night" if self.source.style == "night" else "")


def changed_object(source: Scene, target: Scene) -> tuple[SceneObject | None, SceneObject | None]:
    """The one object that is not in both scenes, as it was and as it will be; None where there is none.

    Raises ValueError if more than one differs: nothing says which of them becomes which.
    """
    gone = [o for o in source.objects if o not in target.objects]
    come = [o for o in target.objects if o not in source.objects]
    if len(gone) > 1 or len(come) > 1:
        raise ValueError(f"a clip changes one object at most, not {len(gone)} into {len(come)}")
    return (gone[0] if gone else None), (come[0] if come else None)


def evolution_caption(edit: Edit) -> str:
    """What happens in the clip that leads from the edit's source to its target."""
    before, after = changed_object(edit.source, edit.target)
    if edit.edit_type == "background":
        return f"the background shifts from {edit.source.background} to {edit.target.background}"
    if edit.edit_type == "style":
        return "night falls" if edit.target.style == "night" else "day breaks"
    if edit.edit_type == "add":
        return f"a {after.name} fades in {world.PLACES[after.place]}"
    if edit.edit_type == "remove":
        return f"the {before.name} fades out"
    if edit.edit_type == "color":
        return f"the {before.name} turns {after.color}"
    return f"the {before.name} morphs into a {after.shape}"


def clip_of(edit: Edit) -> Clip:
    """The clip that leads from the edit's source to its target."""
    return Clip(edit.edit_type, edit.source, edit.target, evolution_caption(edit))


def _neighbours(place: int) -> tuple[int, int]:
    """The quadrants that share a side with this one; a way between them touches no other quadrant."""
    return place ^ 1, place ^ 2


def sample_move(scene: Scene, generator: np.random.Generator) -> Clip:
    """A named object moves into a free quadrant beside its own; in every scene of the world one can."""
    free = scene.free_places
    moves = [(o, place) for o in scene.objects for place in _neighbours(o.place) if place in free]
    chosen, place = moves[int(generator.integers(len(moves)))]
    moved = tuple(dataclasses.replace(o, place=place) if o is chosen else o for o in scene.objects)
    text = f"the {chosen.name} moves to the {world.PLACES[place]}"
    return Clip("move", scene, dataclasses.replace(scene, objects=moved), text)


def sample_clip(generator: np.random.Generator, kinds: Sequence[str] = CLIP_KINDS) -> Clip:
    """A clip of one of `kinds`, each as likely as any other."""
    kind = kinds[int(generator.integers(len(kinds)))]
    scene = world.sample_scene(generator, world.NUM_OBJECTS.get(kind))
    if kind == "move":
        return sample_move(scene, generator)
    if kind == "still":
        return Clip("still", scene, scene, STILL_CAPTION)
    return clip_of(world.sample_edit(scene, generator, (kind,)))


def _between(first: np.ndarray, last: np.ndarray, progress: float) -> np.ndarray:
    return np.asarray(first) * (1 - progress) + np.asarray(last) * progress


def _color(scene_object: SceneObject) -> np.ndarray:
    return np.array(world.COLORS[scene_object.color]) / 255 * scene_object.shade


@functools.cache
def _travelling_mask(
    shapes: tuple[str, str],
    sizes: tuple[int, int],
    middles: tuple[tuple[float, float], tuple[float, float]],
    progress: float,
) -> np.ndarray:
    """The share of each pixel that an object covers whose outline and middle are on their way."""
    at = tuple(_between(*middles, progress))
    levels = (world.level(shape, size, at) for shape, size in zip(shapes, sizes, strict=True))
    return world.coverage(_between(*levels, progress))


def _changing_mask(before: SceneObject | None, after: SceneObject | None, progress: float) -> np.ndarray:
    """The share of each pixel that the changing object covers; one that fades covers less than its shape."""
    if before is None or after is None:
        present, share = (after, progress) if before is None else (before, 1 - progress)
        return world.mask_of(present) * share
    middles = (world.center(before.place, before.offset), world.center(after.place, after.offset))
    return _travelling_mask((before.shape, after.shape), (before.size, after.size), middles, progress)


def render_between(source: Scene, target: Scene, progress: float) -> np.ndarray:
    """The picture at `progress` in [0, 1] from source to target, float64 `[32, 32, 3]` in [0, 1]."""
    backgrounds = (np.array(world.BACKGROUNDS[scene.background]) / 255 for scene in (source, target))
    image = np.broadcast_to(_between(*backgrounds, progress), (world.IMAGE_SIZE, world.IMAGE_SIZE, 3)).copy()
    for scene_object in source.objects:
        if scene_object in target.objects:
            mask = world.mask_of(scene_object)[..., None]
            image = image * (1 - mask) + _color(scene_object) * mask
    before, after = changed_object(source, target)
    if before or after:
        mask = _changing_mask(before, after, progress)[..., None]
        image = image * (1 - mask) + _between(_color(before or after), _color(after or before), progress) * mask
    image += world.light_map(source.light)[..., None]
    factors = (np.array(world.STYLE_FACTORS[scene.style]) for scene in (source, target))
    return np.clip(image * _between(*factors, progress), 0, 1)


def render_clip(clip: Clip, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """All frames at even steps, float64 `[F, 32, 32, 3]` in [0, 1].

    Raises ValueError unless the number of frames is 4k + 1 and above 1.
    """
    if num_frames < 2 or num_frames % 4 != 1:
        raise ValueError(f"a clip has 4k + 1 frames (5, 9, 13, ...), not {num_frames}")
    return np.stack([render_between(clip.source, clip.target, i / (num_frames - 1)) for i in range(num_frames)])
