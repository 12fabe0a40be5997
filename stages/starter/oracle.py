"""The oracle: reads a *picture* of the scene world and says what it shows, by least squares, without any learning.

Every quadrant is explained as a background under its four patches of light plus one of the known shapes in one
colour; the explanation with the smallest residual wins. An edit is scored against the scene that it should give:
`edit_success` is the attribute that was asked for, `preservation` is everything else (attributes, and pixels where
nothing may change).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from stages.starter.world import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    NUM_PATCHES,
    OFFSETS,
    PATCH_SIZE,
    PLACES,
    QUADRANT_SIZE,
    SHAPES,
    SIZES,
    STYLE_FACTORS,
    Edit,
    Scene,
    mask_of,
    object_mask,
    render_float,
)

MAX_BLOCK_ERROR = 0.1  # mean absolute error, of the range, that a 4x4 block which must stay may show
MAX_RESIDUAL = 0.1  # root mean square, of the range, that the explanation of a quadrant may leave
MIN_CONTRAST = 0.09  # length of the colour difference, of the range, from which on an object is an object
BLOCK = 4


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a picture shows. `objects[place]` is (shape, colour), None (nothing there) or "unclear"."""

    background: str
    style: str
    objects: tuple[tuple[str, str] | None | str, ...]
    light: tuple[int, ...]


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
def _templates() -> tuple[list[str | None], np.ndarray, np.ndarray]:
    """All explanations of a quadrant: their shapes, design matrices `[K, 256, 5]` and pseudo-inverses."""
    side = NUM_PATCHES // 2
    patches = np.kron(np.eye(side**2).reshape(-1, side, side), np.ones((PATCH_SIZE, PATCH_SIZE)))
    shapes: list[str | None] = [None]
    masks = [np.zeros((QUADRANT_SIZE, QUADRANT_SIZE))]
    for shape, size, offset in itertools.product(SHAPES, SIZES, itertools.product(OFFSETS, OFFSETS)):
        shapes.append(shape)
        masks.append(object_mask(shape, size, 0, offset)[:QUADRANT_SIZE, :QUADRANT_SIZE])
    designs = np.stack([np.stack([*patches, m], axis=-1).reshape(-1, side**2 + 1) for m in masks])
    return shapes, designs, np.linalg.pinv(designs)


def _as_float(image: np.ndarray) -> np.ndarray:
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"the oracle reads {IMAGE_SIZE}x{IMAGE_SIZE} RGB pictures, not {image.shape}")
    return image.astype(np.float64) / 255 if image.dtype == np.uint8 else image.astype(np.float64)


def read(image: np.ndarray) -> Reading:
    """What the picture (uint8 or float in [0, 1], `[32, 32, 3]`) shows."""
    pixels = _as_float(image)
    shapes, designs, inverses = _templates()
    fits = []
    for place in range(len(PLACES)):
        row, column = divmod(place, 2)
        rows = slice(row * QUADRANT_SIZE, (row + 1) * QUADRANT_SIZE)
        columns = slice(column * QUADRANT_SIZE, (column + 1) * QUADRANT_SIZE)
        target = pixels[rows, columns].reshape(-1, 3)
        coefficients = inverses @ target  # [K, 5, 3]: the four patches' colours, and how the object's differs
        residuals = np.sqrt(((designs @ coefficients - target) ** 2).mean(axis=(1, 2)))
        best = int(residuals.argmin())
        contrast = float(np.linalg.norm(coefficients[best, -1]))
        if contrast < MIN_CONTRAST:
            best = 0
        fits.append((shapes[best], coefficients[best], float(residuals[best])))
    patch_colors = np.stack([coefficients[:-1] for _, coefficients, _ in fits])  # [4, 4, 3]
    background_color = patch_colors.mean(axis=(0, 1))  # half of the patches are lit: the light is zero on average
    background, style = min(
        ((b, s) for b in BACKGROUNDS for s in STYLE_FACTORS),
        key=lambda bs: np.abs(np.array(BACKGROUNDS[bs[0]]) / 255 * STYLE_FACTORS[bs[1]] - background_color).sum(),
    )
    factor = np.array(STYLE_FACTORS[style])
    objects: list[tuple[str, str] | None | str] = []
    for shape, coefficients, residual in fits:
        if residual > MAX_RESIDUAL:
            objects.append("unclear")
        elif shape is None:
            objects.append(None)
        else:
            color = (background_color + coefficients[-1]) / factor
            nearest = min(COLORS, key=lambda c: np.abs(np.array(COLORS[c]) / 255 * 0.975 - color).sum())
            objects.append((shape, nearest))
    brightness = (patch_colors - background_color).mean(axis=-1).reshape(2, 2, 2, 2)
    light = np.where(brightness > 0, 1, -1).transpose(0, 2, 1, 3).ravel()  # quadrants to rows
    return Reading(background, style, tuple(objects), tuple(int(lit) for lit in light))


def expected_reading(scene: Scene) -> Reading:
    """What a picture of the scene shows."""
    objects: list[tuple[str, str] | None] = [None] * len(PLACES)
    for scene_object in scene.objects:
        objects[scene_object.place] = (scene_object.shape, scene_object.color)
    return Reading(scene.background, scene.style, tuple(objects), scene.light)


def caption_is_right(scene: Scene, image: np.ndarray) -> bool:
    """Whether the picture shows all that the scene's caption says and no other object; its light is free."""
    return dataclasses.replace(read(image), light=scene.light) == expected_reading(scene)


def kept_mask(edit: Edit) -> np.ndarray:
    """The pixels where nothing may change (against the true edited picture), bool `[32, 32]`."""
    kept = np.ones((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    if edit.edit_type == "style":
        return kept
    if edit.edit_type == "background":
        return np.any([mask_of(o) == 1 for o in edit.source.objects], axis=0)
    if edit.edit_type == "color":
        return mask_of(next(o for o in edit.source.objects if o.place == edit.place)) == 0
    # an object that is new, gone or of another shape may have stood anywhere in its quadrant
    row, column = divmod(edit.place, 2)
    rows = slice(row * QUADRANT_SIZE, (row + 1) * QUADRANT_SIZE)
    kept[rows, column * QUADRANT_SIZE : (column + 1) * QUADRANT_SIZE] = False
    return kept


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
    if edit.place is None:
        success = getattr(seen, edit.object) == getattr(wanted, edit.object)
        rest = dataclasses.replace(seen, **{edit.object: getattr(wanted, edit.object)}) == wanted
    else:
        success = seen.objects[edit.place] == wanted.objects[edit.place]
        objects = list(seen.objects)
        objects[edit.place] = wanted.objects[edit.place]
        rest = dataclasses.replace(seen, objects=tuple(objects)) == wanted
    block = worst_block(image, render_float(edit.target), kept_mask(edit))
    return Score(success, rest and block < MAX_BLOCK_ERROR, block)
