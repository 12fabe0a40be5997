"""What the starter's vision-language model is taught: scenes, pairs of scenes, questions and true answers.

Answers come from the scene world, verdicts on pairs from the oracle. Scenes whose caption is held out are
never drawn for training.
"""

from __future__ import annotations

import dataclasses
import json
import zlib

import numpy as np
import scipy.ndimage
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stages.caption.edits import prompt as edits_prompt
from stages.evaluate.judges.viescore import prompt as viescore_prompt
from stages.starter import oracle
from stages.starter import vlm_questions as questions
from stages.starter.vlm_tokenizer import IMAGE_SIZE, NUM_IMAGE_TOKENS, PATCH_SIZE
from stages.starter.world import (
    BACKGROUNDS,
    COLORS,
    EDIT_TYPES,
    SHAPES,
    Edit,
    Scene,
    caption,
    possible_edit_types,
    render,
    sample_edit,
    sample_light,
    sample_look,
    sample_object,
    sample_scene,
)

SCORES = (0, 3, 7, 10)
HELD_OUT_SHARE = 16  # one caption in so many is never trained on
COMPACT = (",", ":")  # the only JSON that vLLM's grammar admits with `disable_any_whitespace`


def is_held_out(text: str) -> bool:
    """Whether scenes of this caption are kept for measuring."""
    return zlib.crc32(text.encode()) % HELD_OUT_SHARE == 0


def draw_scene(generator: np.random.Generator, held_out: bool = False) -> Scene:
    """A scene of the training part, or of the held-out part."""
    while True:
        scene = sample_scene(generator)
        if is_held_out(caption(scene)) == held_out:
            return scene


def draw_edit(scene: Scene, generator: np.random.Generator, edit_types=EDIT_TYPES, held_out: bool = False) -> Edit:
    """An edit of the scene; in training, one whose result isn't held out."""
    for _ in range(20):
        edit = sample_edit(scene, generator, edit_types)
        if held_out or not is_held_out(edit.tgt_caption):
            return edit
    return edit


def draw_offer(scene: Scene, generator: np.random.Generator) -> list[str]:
    """A random subset of the edit types, in random order, one of which the scene admits."""
    possible = possible_edit_types(scene)
    while True:
        num_types = int(generator.integers(1, 5))
        offered = [EDIT_TYPES[i] for i in generator.permutation(len(EDIT_TYPES))[:num_types]]
        if set(offered) & set(possible):
            return offered


def to_uint8(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def jitter(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """What an autoencoder may do to a picture: in one of two pictures faint noise or a touch of blur."""
    kind = generator.integers(4)
    if kind < 2:
        return image
    pixels = image / 255
    if kind == 2:
        pixels = scipy.ndimage.gaussian_filter(pixels, (generator.uniform(0.2, 0.45),) * 2 + (0,))
    return to_uint8(pixels + generator.normal(0, generator.uniform(0, 0.02), image.shape))


def to_patches(images: np.ndarray) -> torch.Tensor:
    """uint8 `[B, H, W, 3]` -> `[B, 16, 1536]`, equal to the processor's `pixel_values`."""
    batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    batch = tv.resize(batch, [IMAGE_SIZE, IMAGE_SIZE], interpolation=InterpolationMode.BICUBIC, antialias=True)
    batch = (batch.float() / 255 - 0.5) / 0.5
    grid = IMAGE_SIZE // PATCH_SIZE
    patches = batch.reshape(-1, 3, grid, PATCH_SIZE, grid, PATCH_SIZE).permute(0, 2, 4, 1, 3, 5)
    patches = patches.unsqueeze(4).expand(-1, -1, -1, -1, 2, -1, -1)
    return patches.reshape(-1, NUM_IMAGE_TOKENS, 3 * 2 * PATCH_SIZE * PATCH_SIZE)


def disturb_rest(edit: Edit, generator: np.random.Generator) -> Scene:
    """The edited scene with one thing changed that the instruction does not mention, or several."""
    scene = edit.target
    for _ in range(1 + int(generator.random() < 0.3)):
        kind = generator.integers(7)
        objects = list(scene.objects)
        index = int(generator.integers(len(objects)))
        if kind == 0:  # an object comes, or one goes
            if len(objects) > 1:
                del objects[index]
            else:
                place = scene.free_places[int(generator.integers(len(scene.free_places)))]
                objects.append(sample_object(generator, place, objects))
        elif kind == 1:  # one becomes another one
            objects[index] = sample_object(generator, objects[index].place, objects)
        elif kind == 2:  # one moves
            place = scene.free_places[int(generator.integers(len(scene.free_places)))]
            objects[index] = dataclasses.replace(objects[index], place=place)
        scene = dataclasses.replace(scene, objects=tuple(objects))
        if kind == 3:
            background = list(BACKGROUNDS)[int(generator.integers(len(BACKGROUNDS)))]
            scene = dataclasses.replace(scene, background=background)
        elif kind == 4:
            scene = dataclasses.replace(scene, style="day" if scene.style == "night" else "night")
        elif kind == 5:
            scene = dataclasses.replace(scene, light=sample_light(generator))
        elif kind == 6:  # a few patches of the light change places
            scene = dataclasses.replace(scene, light=_swap_patches(scene.light, generator))
    return scene


def _swap_patches(light: tuple[int, ...], generator: np.random.Generator) -> tuple[int, ...]:
    """The light with one to three lit patches gone into shade and as many out of it."""
    swapped, num_swaps = np.array(light), int(generator.integers(1, 4))
    for state in (1, -1):
        swapped[generator.permutation(np.flatnonzero(np.equal(light, state)))[:num_swaps]] = -state
    return tuple(swapped.tolist())


def redraw(scene: Scene, generator: np.random.Generator) -> Scene:
    """Another scene with the same caption: what drawing anew from the caption gives."""
    objects = tuple(dataclasses.replace(o, **sample_look(generator)) for o in scene.objects)
    return dataclasses.replace(scene, objects=objects, light=sample_light(generator))


def draw_result(edit: Edit, generator: np.random.Generator) -> np.ndarray:
    """A picture that an editor might give for the edit: right, a copy, a wrong one, with a side effect ..."""
    kind = generator.random()
    if kind < 0.34:
        image = render(edit.target)
    elif kind < 0.44:
        image = render(edit.source)
    elif kind < 0.58:
        same_type = (edit.edit_type,) if generator.random() < 0.5 else EDIT_TYPES
        image = render(sample_edit(edit.source, generator, same_type).target)
    elif kind < 0.80:
        image = render(disturb_rest(edit, generator))
    elif kind < 0.86:
        image = render(disturb_rest(dataclasses.replace(edit, target=edit.source), generator))
    elif kind < 0.95:
        image = render(redraw(edit.target, generator))
    else:
        share = generator.uniform(0.1, 0.9)
        image = to_uint8((render(edit.target) * share + render(edit.source) * (1 - share)) / 255)
    return jitter(image, generator)


def draw_quality(scene: Scene, generator: np.random.Generator) -> tuple[np.ndarray, int, int]:
    """A picture, good or spoilt, with its naturalness and artifacts scores."""
    image, naturalness, artifacts = render(scene) / 255, 10, 10
    if generator.random() < 0.4:
        other = render(sample_scene(generator)) / 255
        if generator.random() < 0.5:
            share = generator.uniform(0.3, 0.5)
            image, naturalness = image * (1 - share) + other * share, 0
        else:
            top, left = (int(16 * generator.integers(2)) for _ in range(2))
            image[top : top + 16, left : left + 16] = other[top : top + 16, left : left + 16]
            changed = np.abs(image - render(scene) / 255).mean()
            naturalness = 3 if changed > 0.015 and _is_cut(image, top, left) else 10
    if generator.random() < 0.45:
        kind, level = generator.integers(3), int(generator.integers(3))
        artifacts = (7, 3, 0)[level]
        if kind == 0:
            image = image + generator.normal(0, (0.04, 0.1, 0.25)[level], image.shape)
        elif kind == 1:
            image = scipy.ndimage.gaussian_filter(image, ((0.8,) * 2, (1.5,) * 2, (3.0,) * 2)[level] + (0,))
        else:
            image = image + (0.05, 0.12, 0.3)[level] * np.sign(np.sin(np.arange(32) * np.pi / 2 + 0.1))[:, None, None]
    image = to_uint8(image)
    return (jitter(image, generator) if artifacts == 10 else image), naturalness, artifacts


def _is_cut(image: np.ndarray, top: int, left: int) -> bool:
    """Whether the quadrant pasted at (top, left) has edges that can be seen against its neighbours."""
    inner, outer = (15, 16) if top == 0 else (16, 15)
    across = np.abs(image[inner, left : left + 16] - image[outer, left : left + 16]).mean()
    inner, outer = (15, 16) if left == 0 else (16, 15)
    along = np.abs(image[top : top + 16, inner] - image[top : top + 16, outer]).mean()
    return (across + along) / 2 > 0.05


def tuple_answer(edit: Edit) -> str:
    return json.dumps({name: getattr(edit, name) for name in edits_prompt.FIELDS}, separators=COMPACT)


def score_answer(first: int, second: int, reasoning: str) -> str:
    return json.dumps({"score": [first, second], "reasoning": reasoning}, separators=COMPACT)


def edit_scores(edit: Edit, image: np.ndarray) -> tuple[int, int]:
    """Success and over-editing of a picture, 0 to 10, from the oracle's verdict: 7 and up means yes."""
    verdict = oracle.score(edit, image)
    seen, before = oracle.read(image), oracle.expected_reading(edit.source)
    wanted = oracle.expected_reading(edit.target)
    if edit.place is None:
        same = getattr(seen, edit.object) == getattr(before, edit.object)
    else:
        same = seen.objects[edit.place] == before.objects[edit.place]
    success = 10 if verdict.edit_success else 0 if same else 3
    if verdict.preservation:
        return success, 10 if verdict.worst_block < 0.06 else 7
    changed = sum(
        seen.objects[place] != wanted.objects[place] for place in range(len(seen.objects)) if place != edit.place
    )
    changed += edit.object != "background" and seen.background != wanted.background
    changed += edit.object != "style" and seen.style != wanted.style
    return success, 3 if changed < 2 else 0


def one_image_questions(scene: Scene, generator: np.random.Generator) -> list[tuple[str, str]]:
    """Caption, two edit tuples and three has-object questions about a scene: (question, answer)."""
    asked = [(questions.CAPTION, caption(scene))]
    for _ in range(2):
        offered = draw_offer(scene, generator)
        edit = draw_edit(scene, generator, offered)
        asked.append((edits_prompt.prompt_text(offered), tuple_answer(edit)))
    present = {o.name for o in scene.objects}
    for index in range(2):
        chosen = scene.objects[int(generator.integers(len(scene.objects)))]
        color, shape = chosen.color, chosen.shape
        if index:
            color = list(COLORS)[int(generator.integers(len(COLORS)))] if generator.random() < 0.6 else color
            shape = SHAPES[int(generator.integers(len(SHAPES)))] if generator.random() < 0.6 else shape
        name = f"{color} {shape}"
        asked.append((questions.HAS_OBJECT.format(object=name), "Yes" if name in present else "No"))
    return asked


def quality_question(naturalness: int, artifacts: int) -> tuple[str, str]:
    reasoning = questions.NATURALNESS_REASONS[naturalness] + questions.ARTIFACTS_REASONS[artifacts]
    return viescore_prompt.pq_text(), score_answer(naturalness, artifacts, reasoning)


def pair_questions(edit: Edit, image: np.ndarray, generator: np.random.Generator) -> list[tuple[str, str]]:
    """The judge's call and its two halves as Yes/No, for the edit and for another one of the same scene."""
    asked = []
    other = sample_edit(edit.source, generator)
    for instructed in (edit, other):
        success, over_editing = edit_scores(instructed, image)
        reasoning = questions.SUCCESS_REASONS[success] + questions.OVER_EDITING_REASONS[over_editing]
        asked.append((viescore_prompt.sc_text(instructed.instruction), score_answer(success, over_editing, reasoning)))
        for template, score in ((questions.EDIT_DONE, success), (questions.REST_SAME, over_editing)):
            answer = "Yes" if score >= 5 else "No"
            asked.append((template.format(instruction=instructed.instruction), answer))
    return asked
