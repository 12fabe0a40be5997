"""The scene world: a deterministic renderer of 32x32 scenes, their captions, and edits with a known result.

A scene has a background colour, one or two objects (shape, colour, quadrant) and a style. No text says all of
it: each object's exact place, size and shade, and the *dappled light* (sixteen patches, half of them lit, half in
shade) are seen but never named. Whoever draws the scene anew from its caption loses them; only an editor that
looks at its source can keep them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence

import numpy as np

IMAGE_SIZE = 32
QUADRANT_SIZE = IMAGE_SIZE // 2
SAMPLES = 8  # a pixel and axis, of which a shape covers a share
PLACES = ("top left", "top right", "bottom left", "bottom right")
SHAPES = ("circle", "square", "triangle")
STYLES = ("day", "night")
SIZES = (6, 7)  # radius in pixels
OFFSETS = (-1, 0, 1)  # of an object from its quadrant's centre, in pixels
EDIT_TYPES = ("color", "replace", "background", "remove", "add", "style")
NUM_OBJECTS = {"add": 1, "remove": 2}  # where an edit type asks for it

BACKGROUNDS = {
    "gray": (130, 130, 130),
    "brown": (125, 80, 40),
    "teal": (30, 130, 130),
    "pink": (235, 160, 185),
    "beige": (225, 205, 160),
}
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (245, 220, 50),
    "purple": (140, 40, 180),
}
STYLE_FACTORS = {"day": (1.0, 1.0, 1.0), "night": (0.45, 0.45, 0.6)}
NUM_PATCHES = 4  # of the light, a side
PATCH_SIZE = IMAGE_SIZE // NUM_PATCHES
LIGHT = 0.07  # what the light adds to a lit patch and takes from one in shade, of the range


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object; `place` indexes PLACES, `offset` is (right, down) in pixels, `shade` scales its colour."""

    shape: str
    color: str
    place: int
    offset: tuple[int, int]
    size: int
    shade: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that a picture shows. `light` has +1 for each lit patch and -1 for each in shade, in reading order."""

    background: str
    objects: tuple[SceneObject, ...]
    light: tuple[int, ...]
    style: str = "day"

    @property
    def free_places(self) -> list[int]:
        taken = {scene_object.place for scene_object in self.objects}
        return [place for place in range(len(PLACES)) if place not in taken]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Scene:
        raw = json.loads(text)
        return Scene(
            background=raw["background"],
            objects=tuple(SceneObject(**{**o, "offset": tuple(o["offset"])}) for o in raw["objects"]),
            light=tuple(raw["light"]),
            style=raw["style"],
        )


@dataclasses.dataclass(frozen=True)
class Edit:
    """An instruction on a scene, its reverse, both captions, and the scene that it should give."""

    edit_type: str
    instruction: str
    reverse_instruction: str
    src_caption: str
    tgt_caption: str
    source: Scene
    target: Scene
    object: str  # what the edit is about: an object's name, or "background", or "style"
    place: int | None  # the quadrant it happens in; None: everywhere

    def to_json(self) -> str:
        raw = dataclasses.asdict(self)
        raw["source"], raw["target"] = self.source.to_json(), self.target.to_json()
        return json.dumps(raw, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Edit:
        """The edit; what else the text holds is passed over."""
        raw = json.loads(text)
        raw["source"], raw["target"] = Scene.from_json(raw["source"]), Scene.from_json(raw["target"])
        return Edit(**{field.name: raw[field.name] for field in dataclasses.fields(Edit)})


def center(place: int, offset: tuple[int, int] = (0, 0)) -> tuple[float, float]:
    """Where (x, y) the middle of an object at this offset from its quadrant's lies, in pixels."""
    row, column = divmod(place, 2)
    return (column + 0.5) * QUADRANT_SIZE + offset[0], (row + 0.5) * QUADRANT_SIZE + offset[1]


def level(shape: str, size: int, at: tuple[float, float]) -> np.ndarray:
    """At most 0 within the shape whose middle is `at`, above 0 outside; float64 `[256, 256]`, 8x8 samples a pixel."""
    grid = (np.arange(IMAGE_SIZE * SAMPLES) + 0.5) / SAMPLES
    x, y = grid[None, :] - at[0], grid[:, None] - at[1]
    if shape == "circle":
        return np.hypot(x, y) - size
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - size * 0.86
    if shape == "triangle":
        return np.maximum(y - size * 0.86, 2 * np.abs(x) - (y + size) * 1.07)
    raise ValueError(f"no such shape: {shape}")


def coverage(levels: np.ndarray) -> np.ndarray:
    """The share of each pixel where `levels` are at most 0, float64 `[32, 32]`."""
    return (levels <= 0).reshape(IMAGE_SIZE, SAMPLES, IMAGE_SIZE, SAMPLES).mean(axis=(1, 3))


@functools.cache
def object_mask(shape: str, size: int, place: int, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The share of each pixel that the object covers, float64 `[32, 32]`, by 8x8 samples a pixel."""
    return coverage(level(shape, size, center(place, offset)))


def mask_of(scene_object: SceneObject) -> np.ndarray:
    """The share of each pixel that it covers, `[32, 32]`."""
    return object_mask(scene_object.shape, scene_object.size, scene_object.place, scene_object.offset)


def light_map(light: Sequence[int]) -> np.ndarray:
    """What the light adds to every pixel, `[32, 32]`, in parts of the range."""
    return LIGHT * np.kron(np.reshape(light, (NUM_PATCHES, NUM_PATCHES)), np.ones((PATCH_SIZE, PATCH_SIZE)))


def render_float(scene: Scene) -> np.ndarray:
    """The picture as float64 `[32, 32, 3]` in [0, 1]."""
    image = np.broadcast_to(np.array(BACKGROUNDS[scene.background]) / 255, (IMAGE_SIZE, IMAGE_SIZE, 3)).copy()
    for scene_object in scene.objects:
        color = np.array(COLORS[scene_object.color]) / 255 * scene_object.shade
        mask = mask_of(scene_object)[..., None]
        image = image * (1 - mask) + color * mask
    image += light_map(scene.light)[..., None]
    return np.clip(image * np.array(STYLE_FACTORS[scene.style]), 0, 1)


def render(scene: Scene) -> np.ndarray:
    """The picture as uint8 `[32, 32, 3]`."""
    return np.round(render_float(scene) * 255).astype(np.uint8)


def caption(scene: Scene) -> str:
    """What the caption names: objects in reading order, background, and night where it is night."""
    objects = " and ".join(f"{o.name} {PLACES[o.place]}" for o in sorted(scene.objects, key=lambda o: o.place))
    return f"{objects} on {scene.background} background" + (" at night" if scene.style == "night" else "")


def _pick(generator: np.random.Generator, options: Sequence):
    return options[int(generator.integers(len(options)))]


def sample_look(generator: np.random.Generator) -> dict:
    """What no text says of an object: its offset, size and shade."""
    return {
        "offset": (_pick(generator, OFFSETS), _pick(generator, OFFSETS)),
        "size": _pick(generator, SIZES),
        "shade": float(generator.uniform(0.9, 1.05)),
    }


def sample_object(generator: np.random.Generator, place: int, taken: Sequence[SceneObject] = ()) -> SceneObject:
    """An object for a quadrant, unlike those `taken` in shape or colour."""
    names = {o.name for o in taken}
    free = [(shape, color) for shape in SHAPES for color in COLORS if f"{color} {shape}" not in names]
    shape, color = _pick(generator, free)
    return SceneObject(shape, color, place, **sample_look(generator))


def sample_light(generator: np.random.Generator) -> tuple[int, ...]:
    num_lit = NUM_PATCHES**2 // 2
    return tuple(int(lit) for lit in generator.permutation([1] * num_lit + [-1] * num_lit))


def sample_scene(generator: np.random.Generator, num_objects: int | None = None) -> Scene:
    """A scene with `num_objects` objects (one or two where it is not given)."""
    num_objects = num_objects or int(generator.integers(1, 3))
    places = [int(p) for p in generator.permutation(len(PLACES))]
    objects: list[SceneObject] = []
    for place in places[:num_objects]:
        objects.append(sample_object(generator, place, objects))
    return Scene(
        background=_pick(generator, tuple(BACKGROUNDS)),
        objects=tuple(objects),
        light=sample_light(generator),
        style="night" if generator.random() < 0.25 else "day",
    )


def possible_edit_types(scene: Scene) -> tuple[str, ...]:
    """The edits that a scene admits: one object can be added, of two one can go."""
    return tuple(
        edit_type
        for edit_type in EDIT_TYPES
        if not (edit_type == "add" and len(scene.objects) > 1)
        and not (edit_type == "remove" and len(scene.objects) < 2)
    )


def sample_edit(scene: Scene, generator: np.random.Generator, edit_types: Sequence[str] = EDIT_TYPES) -> Edit:
    """An edit of one of `edit_types`; what is not named by it stays as it is.

    Raises ValueError if the scene admits none of them.
    """
    options = [edit_type for edit_type in possible_edit_types(scene) if edit_type in edit_types]
    if not options:
        raise ValueError(f"a scene with {len(scene.objects)} objects admits none of {', '.join(edit_types)}")
    edit_type = _pick(generator, options)
    objects = list(scene.objects)
    index = int(generator.integers(len(objects)))
    chosen, others = objects[index], objects[:index] + objects[index + 1 :]
    subject, place = chosen.name, chosen.place
    if edit_type in ("color", "replace"):
        field, options = ("color", tuple(COLORS)) if edit_type == "color" else ("shape", SHAPES)
        free = [
            new
            for new in (dataclasses.replace(chosen, **{field: option}) for option in options)
            if new.name not in {o.name for o in objects}
        ]
        new = _pick(generator, free)
        target = dataclasses.replace(scene, objects=tuple([*objects[:index], new, *objects[index + 1 :]]))
        if edit_type == "color":
            instruction = f"make the {chosen.name} {new.color}"
            reverse = f"make the {new.name} {chosen.color}"
        else:
            instruction = f"replace the {chosen.name} with a {new.name}"
            reverse = f"replace the {new.name} with a {chosen.name}"
    elif edit_type == "background":
        new_background = _pick(generator, [b for b in BACKGROUNDS if b != scene.background])
        target = dataclasses.replace(scene, background=new_background)
        instruction = f"make the background {new_background}"
        reverse = f"make the background {scene.background}"
        subject, place = "background", None
    elif edit_type == "remove":
        target = dataclasses.replace(scene, objects=tuple(others))
        instruction = f"remove the {chosen.name}"
        reverse = f"add a {chosen.name} {PLACES[chosen.place]}"
    elif edit_type == "add":
        new = sample_object(generator, _pick(generator, scene.free_places), objects)
        target = dataclasses.replace(scene, objects=(*objects, new))
        instruction = f"add a {new.name} {PLACES[new.place]}"
        reverse = f"remove the {new.name}"
        subject, place = new.name, new.place
    else:
        new_style = "day" if scene.style == "night" else "night"
        target = dataclasses.replace(scene, style=new_style)
        instruction, reverse = f"turn it into a {new_style} scene", f"turn it into a {scene.style} scene"
        subject, place = "style", None
    return Edit(edit_type, instruction, reverse, caption(scene), caption(target), scene, target, subject, place)
