"""The oracle: reads a *picture* of the scene world and says what it shows, by least squares, without any learning.

Every quadrant is explained as a linear background plus one of the known shapes in one colour; the explanation
with the smallest residual wins. An edit is scored against the scene that it should give: `edit_success` is the
attribute that was asked for, `preservation` is everything else (attributes, and pixels where nothing may change).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from stages.starter.world import (
    BACKGROUNDS,
    BYSTANDER_SHAPES,
    IMAGE_SIZE,
    OBJECT_COLORS,
    PLACES,
    QUADRANT_SIZE,
    SHAPES,
    SIZES,
    STYLE_FACTORS,
    Edit,
    Scene,
    object_mask,
    render_float,
)

MAX_BLOCK_ERROR = 0.1  # mean absolute error, of the range, that a 4x4 block which must stay may show
MAX_RESIDUAL = 0.08  # root mean square, of the range, that the explanation of a quadrant may leave
MIN_CONTRAST = 0.09  # length of the colour difference, of the range, from which on an object is an object
BLOCK = 4


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a picture shows. `objects[place]` is (shape, colour), None (nothing there) or "unclear"."""

    background: str
    style: str
    objects: tuple[tuple[str, str] | None | str, ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """Whether the edit was done and the rest kept; `worst_block` is the largest error where nothing may change."""

    edit_success: bool
    preservation: bool
    worst_block: float

    @property
    def whole_scene_right(self) -> bool:
        return self.edit_success and self.preservation


@functools.lru_cache(maxsize=1)
def _templates() -> tuple[list[tuple[str, int] | None], np.ndarray, np.ndarray]:
    """All explanations of a quadrant: their names, design matrices `[K, 256, 4]` and pseudo-inverses."""
    axis = np.arange(QUADRANT_SIZE) - (QUADRANT_SIZE - 1) / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    names: list[tuple[str, int] | None] = [None]
    masks = [np.zeros((QUADRANT_SIZE, QUADRANT_SIZE))]
    for shape in SHAPES + BYSTANDER_SHAPES:
        for size in SIZES:
            names.append((shape, size))
            masks.append(object_mask(shape, size, 0)[:QUADRANT_SIZE, :QUADRANT_SIZE])
    designs = np.stack([np.stack([np.ones_like(m), x, y, m], axis=-1).reshape(-1, 4) for m in masks])
    return names, designs, np.linalg.pinv(designs)


def _as_float(image: np.ndarray) -> np.ndarray:
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"the oracle reads {IMAGE_SIZE}x{IMAGE_SIZE} RGB pictures, not {image.shape}")
    return image.astype(np.float64) / 255 if image.dtype == np.uint8 else image.astype(np.float64)


def read(image: np.ndarray) -> Reading:
    """What the picture (uint8 or float in [0, 1], `[32, 32, 3]`) shows."""
    pixels = _as_float(image)
    names, designs, inverses = _templates()
    fits = []
    for place in range(len(PLACES)):
        row, column = divmod(place, 2)
        rows = slice(row * QUADRANT_SIZE, (row + 1) * QUADRANT_SIZE)
        columns = slice(column * QUADRANT_SIZE, (column + 1) * QUADRANT_SIZE)
        target = pixels[rows, columns].reshape(-1, 3)
        coefficients = inverses @ target  # [K, 4, 3]
        residuals = np.sqrt(((designs @ coefficients - target) ** 2).mean(axis=(1, 2)))
        best = int(residuals.argmin())
        contrast = float(np.linalg.norm(coefficients[best, 3]))
        if contrast < MIN_CONTRAST:
            best = 0
        fits.append((names[best], coefficients[best], float(residuals[best])))
    background_color = np.mean([coefficients[0] for _, coefficients, _ in fits], axis=0)
    background, style = min(
        ((b, s) for b in BACKGROUNDS for s in STYLE_FACTORS),
        key=lambda bs: np.abs(np.array(BACKGROUNDS[bs[0]]) / 255 * STYLE_FACTORS[bs[1]] - background_color).sum(),
    )
    factor, base = np.array(STYLE_FACTORS[style]), np.array(BACKGROUNDS[background]) / 255
    objects: list[tuple[str, str] | None | str] = []
    for name, coefficients, residual in fits:
        if residual > MAX_RESIDUAL:
            objects.append("unclear")
        elif name is None:
            objects.append(None)
        else:
            # the light adds the same to the background and to the object, so take it off before naming the colour
            light = (coefficients[0] / factor - base).mean()
            color = (coefficients[0] + coefficients[3]) / factor - light
            nearest = min(OBJECT_COLORS, key=lambda c: np.abs(np.array(OBJECT_COLORS[c]) / 255 * 0.975 - color).sum())
            objects.append((name[0], nearest))
    return Reading(background, style, tuple(objects))


def expected_reading(scene: Scene) -> Reading:
    """What a picture of the scene shows."""
    objects: list[tuple[str, str] | None] = [None] * len(PLACES)
    for scene_object in scene.all_objects:
        objects[scene_object.place] = (scene_object.shape, scene_object.color)
    return Reading(scene.background, scene.style, tuple(objects))


def caption_is_right(scene: Scene, image: np.ndarray) -> bool:
    """Whether the picture shows all that the scene's caption says, and no other object that a caption would name."""
    seen, said = read(image), expected_reading(dataclasses.replace(scene, bystander=None))
    if (seen.background, seen.style) != (said.background, said.style):
        return False
    for seen_object, said_object in zip(seen.objects, said.objects, strict=True):
        unnamed = seen_object is None or (seen_object != "unclear" and seen_object[0] in BYSTANDER_SHAPES)
        if seen_object != said_object and not (said_object is None and unnamed):
            return False
    return True


def kept_mask(edit: Edit) -> np.ndarray:
    """The pixels where nothing may change (against the true edited picture), bool `[32, 32]`."""
    kept = np.ones((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    if edit.edit_type == "background":
        inside = [object_mask(o.shape, o.size, o.place) == 1 for o in edit.source.all_objects]
        return np.any(inside, axis=0)
    if edit.edit_type == "style":
        return kept
    if edit.edit_type == "color":
        changed = next(o for o in edit.source.objects if o.place == edit.place)
        return object_mask(changed.shape, changed.size, changed.place) == 0
    # an object that is new, gone or of another shape may have had any size
    return object_mask("square", max(SIZES) + 1, edit.place) == 0


def worst_block(image: np.ndarray, reference: np.ndarray, kept: np.ndarray) -> float:
    """The largest mean absolute error of any 4x4 block that lies wholly in `kept`; 0 where there is none."""
    error = np.abs(_as_float(image) - reference).mean(axis=-1)
    shape = (IMAGE_SIZE // BLOCK, BLOCK, IMAGE_SIZE // BLOCK, BLOCK)
    blocks = error.reshape(shape).mean(axis=(1, 3))
    whole = kept.reshape(shape).all(axis=(1, 3))
    return float(blocks[whole].max()) if whole.any() else 0.0


def score(edit: Edit, image: np.ndarray) -> Score:
    """Scores a picture against what the edit should give."""
    seen, wanted = read(image), expected_reading(edit.target)
    if edit.edit_type == "background":
        success = seen.background == wanted.background
        rest = seen.style == wanted.style and seen.objects == wanted.objects
    elif edit.edit_type == "style":
        success = seen.style == wanted.style
        rest = seen.background == wanted.background and seen.objects == wanted.objects
    else:
        success = seen.objects[edit.place] == wanted.objects[edit.place]
        others = [place for place in range(len(PLACES)) if place != edit.place]
        rest = (seen.background, seen.style) == (wanted.background, wanted.style) and all(
            seen.objects[place] == wanted.objects[place] for place in others
        )
    block = worst_block(image, render_float(edit.target), kept_mask(edit))
    return Score(success, rest and block < MAX_BLOCK_ERROR, block)
