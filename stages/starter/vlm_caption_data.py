"""What the starter's vision-language model is taught for the caption engines besides edit tuples.

Evolution captions of a pair, captions without their style, the style of a clip's frames, a picture's one object and
settings for it, and whether a second picture shows it there. Answers come from the scene world.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import scipy.ndimage

from stages.caption.customization import prompt as customization_prompt
from stages.caption.evolution import prompt as evolution_prompt
from stages.caption.video import prompt as video_prompt
from stages.starter import clips, world
from stages.starter import customization as custom
from stages.starter import vlm_questions as questions
from stages.starter.vlm_data import COMPACT, disturb_rest, draw_scene, is_held_out, jitter, redraw, to_uint8
from stages.starter.world import STYLE_FACTORS, STYLES, Edit, Scene, render

CLEANED_KINDS = tuple(kind for kind in clips.CLIP_KINDS if kind != "style")  # a style edit's words are its content


def evolution_question(edit: Edit) -> tuple[str, str]:
    """About a pair of pictures: (question, answer)."""
    answer = {"evolution_caption": clips.evolution_caption(edit)}
    return evolution_prompt.prompt_text(edit.instruction, edit.edit_type), json.dumps(answer, separators=COMPACT)


def draw_clip(generator: np.random.Generator, kinds: Sequence[str], held_out: bool = False) -> clips.Clip:
    """A clip whose first scene belongs to the training part, or to the held-out part."""
    while True:
        clip = clips.sample_clip(generator, kinds)
        if is_held_out(clip.first_caption) == held_out:
            return clip


def draw_captions(generator: np.random.Generator, held_out: bool = False) -> tuple[str, str]:
    """The caption of a clip, or of one scene, and the same without its style."""
    if generator.random() < 0.75:
        clip = draw_clip(generator, CLEANED_KINDS, held_out)
        return clip.caption, clip.content
    scene = draw_scene(generator, held_out)
    return world.caption(scene), world.caption(dataclasses.replace(scene, style="day"))


def clean_question(caption: str, content: str) -> tuple[str, str]:
    """About no picture: the content of a caption."""
    return video_prompt.clean_text(caption), json.dumps({"caption": content}, separators=COMPACT)


def _spoil(frame: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """What a small video model may do to a frame (floats in [0, 1]): in one of two frames blur and noise."""
    if generator.random() < 0.5:
        return jitter(to_uint8(frame), generator)
    blurred = scipy.ndimage.gaussian_filter(frame, (generator.uniform(0.3, 0.9),) * 2 + (0,))
    return to_uint8(blurred + generator.normal(0, generator.uniform(0, 0.04), frame.shape))


def draw_frames(generator: np.random.Generator, held_out: bool = False) -> tuple[tuple[np.ndarray, np.ndarray], dict]:
    """Two frames of one clip, and for each style whether both are plainly in it.

    In one clip of four the style itself changes, and in one of ten the frames are half-way between the styles.
    """
    kind = generator.random()
    if kind < 0.25:
        clip = draw_clip(generator, ("style",), held_out)
        # two quarters apart at least: then one frame is half-way or further from the other's style
        first, last = ((0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (2, 4))[int(generator.integers(6))]
        style, lean = None, 0.0
    else:
        clip = draw_clip(generator, CLEANED_KINDS, held_out)
        style = STYLES[int(generator.integers(2))]
        source, target = (dataclasses.replace(scene, style=style) for scene in (clip.source, clip.target))
        clip = dataclasses.replace(clip, source=source, target=target)
        first, last = sorted(generator.permutation(clips.NUM_FRAMES)[:2].tolist())
        lean = generator.uniform(0.35, 0.65) if kind < 0.35 else max(0, generator.uniform(-0.1, 0.1))
    # how far the brightness of the whole clip lies on the way to the other style
    other = next(name for name in STYLES if name != clip.source.style)
    dimmed = 1 + lean * (np.array(STYLE_FACTORS[other]) / np.array(STYLE_FACTORS[clip.source.style]) - 1)
    frames = (clips.render_between(clip.source, clip.target, at / (clips.NUM_FRAMES - 1)) for at in (first, last))
    spoilt = tuple(_spoil(np.clip(frame * dimmed, 0, 1), generator) for frame in frames)
    return spoilt, {name: name == style and lean < 0.2 for name in STYLES}


def style_questions(in_style: dict[str, bool]) -> list[tuple[str, str]]:
    """About two frames, for each style."""
    return [(video_prompt.verify_text(style), "Yes" if right else "No") for style, right in in_style.items()]


def object_question(scene: Scene) -> tuple[str, str]:
    """About one picture: what it shows can be learned if nothing else is there."""
    unique = len(scene.objects) == 1
    answer = {
        "reason": questions.UNIQUE_REASONS[unique],
        "is_unique": unique,
        "object": scene.objects[0].name if unique else "",
    }
    return customization_prompt.object_text(), json.dumps(answer, separators=COMPACT)


def backgrounds_question(object: str, generator: np.random.Generator) -> tuple[str, str]:
    """About no picture: three settings for an object, no two alike in place or background."""
    num = customization_prompt.NUM_BACKGROUNDS
    places = generator.permutation(len(world.PLACES))[:num]
    backgrounds = generator.permutation(list(world.BACKGROUNDS))[:num]
    styles = ["night" if generator.random() < 0.25 else "day" for _ in range(num)]
    settings = [custom.Setting(int(p), str(b), s).text for p, b, s in zip(places, backgrounds, styles, strict=True)]
    return customization_prompt.backgrounds_text(object), json.dumps({"backgrounds": settings}, separators=COMPACT)


def draw_setting(object: str, generator: np.random.Generator, held_out: bool = False) -> custom.Setting:
    """A setting for an object; in training, one that gives no held-out caption."""
    while True:
        setting = custom.sample_setting(generator)
        if held_out or not is_held_out(f"{object} {setting.text}"):
            return setting


def draw_setting_near(setting: custom.Setting, generator: np.random.Generator) -> custom.Setting:
    """One that differs in place, background or style alone, if at all."""
    field = ("place", "background", "style")[int(generator.integers(3))]
    return dataclasses.replace(setting, **{field: getattr(custom.sample_setting(generator), field)})


def draw_customized(source: Scene, setting: custom.Setting, generator: np.random.Generator) -> np.ndarray:
    """A picture that an editor might give: right, elsewhere, another object, a copy, with a side effect ..."""
    (shown,) = source.objects
    right = custom.put_into(shown, setting, generator)
    kind = generator.random()
    if kind < 0.36:
        image = render(right)
    elif kind < 0.48:
        image = render(custom.put_into(shown, draw_setting(shown.name, generator), generator))
    elif kind < 0.54:
        image = render(custom.put_into(shown, draw_setting_near(setting, generator), generator))
    elif kind < 0.76:
        other = world.sample_object(generator, shown.place, (shown,))
        if generator.random() < 0.6:  # another one in one way only
            field = ("shape", "color")[int(generator.integers(2))]
            other = dataclasses.replace(shown, **{field: getattr(other, field)})
        image = render(custom.put_into(other, setting, generator))
    elif kind < 0.84:
        image = render(redraw(source, generator) if generator.random() < 0.5 else source)
    elif kind < 0.92:
        place = right.free_places[int(generator.integers(len(right.free_places)))]
        others = (world.sample_object(generator, place, right.objects),)
        image = render(dataclasses.replace(right, objects=right.objects + others))
    elif kind < 0.96:
        edit = world.sample_edit(source, generator)
        image = render(disturb_rest(dataclasses.replace(edit, target=right), generator))
    else:
        share = generator.uniform(0.1, 0.9)
        image = to_uint8((render(right) * share + render(source) * (1 - share)) / 255)
    return jitter(image, generator)


def customization_questions(source: Scene, setting: custom.Setting, image: np.ndarray) -> list[tuple[str, str]]:
    """About the source and a second picture: the object in its setting, and whether it is the same."""
    (shown,) = source.objects
    score = custom.score_customization(shown.name, setting.text, image)
    return [
        (
            questions.NEW_SETTING.format(object=shown.name, setting=setting.text),
            "Yes" if score.customized else "No",
        ),
        (questions.SAME_OBJECT.format(object=shown.name), "Yes" if score.same_object else "No"),
    ]


def draw_customization(generator: np.random.Generator, held_out: bool = False) -> tuple[Scene, custom.Setting]:
    """A scene of one object, and a setting for it."""
    while True:
        scene = draw_scene(generator, held_out)
        if len(scene.objects) == 1:
            return scene, draw_setting(scene.objects[0].name, generator, held_out)
