"""What the starter's vision-language model is taught for the engine that proposes edits and verifies them.

Proposals are edits of the scene world. A type that the scene does not admit is asked for all the same: then the only
object is to go, or a third one to come, and a verdict says that it can't be. Instructions to verify are true or off
in one way or another; verdicts, their reasons and the captions of edited scenes come from the scene.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

import numpy as np

from stages.caption.proposals import prompt
from stages.starter import vlm_questions as questions
from stages.starter.vlm_data import COMPACT, draw_edit, is_held_out
from stages.starter.world import (
    BACKGROUNDS,
    COLORS,
    EDIT_TYPES,
    PLACES,
    SHAPES,
    STYLES,
    Scene,
    SceneObject,
    caption,
    possible_edit_types,
    sample_object,
)

NUM_VERDICTS = 8  # of an image, half of them yes
FITS = "fits"
_NAME = r"(\w+) (circle|square|triangle)"
_FORMS = {
    "background": re.compile(r"make the background (\w+)"),
    "color": re.compile(rf"make the {_NAME} (\w+)"),
    "replace": re.compile(rf"replace the {_NAME} with a {_NAME}"),
    "remove": re.compile(rf"remove the {_NAME}"),
    "add": re.compile(rf"add a {_NAME} ({'|'.join(PLACES)})"),
    "style": re.compile(rf"turn it into a ({'|'.join(STYLES)}) scene"),
}


def offer_types(generator: np.random.Generator) -> list[str]:
    """As many types as edits are asked for, in random order."""
    return [EDIT_TYPES[i] for i in generator.permutation(len(EDIT_TYPES))[: prompt.NUM_PROPOSALS]]


def propose(scene: Scene, edit_type: str, generator: np.random.Generator, held_out: bool = False) -> dict[str, str]:
    """One edit of this type; of a type that the scene does not admit, one that a verdict must refuse."""
    if edit_type in possible_edit_types(scene):
        edit = draw_edit(scene, generator, (edit_type,), held_out)
        name, instruction = edit.object, edit.instruction
    elif edit_type == "remove":
        name = scene.objects[0].name
        instruction = f"remove the {name}"
    else:
        new = sample_object(generator, _pick(generator, scene.free_places), scene.objects)
        name, instruction = new.name, f"add a {new.name} {PLACES[new.place]}"
    return {"edit_type": edit_type, "object": name, "instruction": instruction}


def proposal_question(scene: Scene, generator: np.random.Generator) -> tuple[str, str]:
    """(question, answer); in one question of six without examples."""
    offered = offer_types(generator)
    examples = prompt.choose_examples(offered, int(generator.integers(1 << 31))) if generator.random() < 5 / 6 else None
    edits = [propose(scene, edit_type, generator) for edit_type in offered]
    return prompt.proposal_text(offered, examples), json.dumps({"edits": edits}, separators=COMPACT)


def judge(scene: Scene, edit_type: str, instruction: str) -> tuple[str, Scene | None]:
    """Why an instruction is valid or not (a key of `vlm_questions.VERIFY_REASONS`), and the edited scene."""
    found = {name: match for name, form in _FORMS.items() if (match := form.fullmatch(instruction))}
    if not found:
        return "vague", None
    if edit_type not in found:
        return "type", None
    words = found[edit_type].groups()
    if edit_type == "style":
        return _unless_same(scene, dataclasses.replace(scene, style=words[0]))
    if edit_type == "background":
        target = dataclasses.replace(scene, background=words[0])
        return _unless_same(scene, target) if words[0] in BACKGROUNDS else ("hard", None)
    if edit_type == "add":
        return _judge_addition(scene, *words)
    color, shape, *new = words
    index = next((i for i, o in enumerate(scene.objects) if (o.color, o.shape) == (color, shape)), None)
    if index is None:
        return "absent", None
    rest = scene.objects[:index] + scene.objects[index + 1 :]
    if edit_type == "remove":
        return (FITS, dataclasses.replace(scene, objects=rest)) if rest else ("last", None)
    new_color, new_shape = (new[0], shape) if edit_type == "color" else new
    if new_color not in COLORS:
        return "hard", None
    if edit_type == "replace" and new_color != color:
        return ("two" if new_shape != shape else "type"), None
    changed = dataclasses.replace(scene.objects[index], color=new_color, shape=new_shape)
    if changed.name in {o.name for o in rest}:
        return "alike", None
    return _unless_same(scene, dataclasses.replace(scene, objects=(*scene.objects[:index], changed, *rest[index:])))


def _unless_same(scene: Scene, target: Scene) -> tuple[str, Scene | None]:
    return ("same", None) if target == scene else (FITS, target)


def _judge_addition(scene: Scene, color: str, shape: str, place: str) -> tuple[str, Scene | None]:
    if len(scene.objects) > 1:
        return "third", None
    if color not in COLORS:
        return "hard", None
    if PLACES.index(place) not in scene.free_places:
        return "taken", None
    new = SceneObject(shape, color, PLACES.index(place), (0, 0), 6, 1.0)  # its look is in no caption
    if new.name in {o.name for o in scene.objects}:
        return "alike", None
    return FITS, dataclasses.replace(scene, objects=(*scene.objects, new))


def verify_question(scene: Scene, edit_type: str, instruction: str) -> tuple[str, str]:
    """(question, answer)."""
    reason, target = judge(scene, edit_type, instruction)
    answer = {
        "reason": questions.VERIFY_REASONS[reason],
        "is_valid": reason == FITS,
        "edited_caption": caption(target) if target else "",
    }
    return prompt.verify_text(edit_type, instruction), json.dumps(answer, separators=COMPACT)


def draw_instruction(
    scene: Scene, valid: bool, generator: np.random.Generator, held_out: bool = False
) -> tuple[str, str]:
    """An edit type and an instruction that is valid for the scene, or one that isn't."""
    types = possible_edit_types(scene) if valid else EDIT_TYPES
    edit_type = _pick(generator, types)  # before the first try, or types that are seldom right would stand out
    while True:
        if valid:
            instruction = propose(scene, edit_type, generator, held_out)["instruction"]
        else:
            instruction = _draw_any(scene, edit_type, generator)
        reason, target = judge(scene, edit_type, instruction)
        if (reason == FITS) == valid and (held_out or target is None or not is_held_out(caption(target))):
            return edit_type, instruction
        edit_type = _pick(generator, types) if valid else edit_type


def _draw_any(scene: Scene, edit_type: str, generator: np.random.Generator) -> str:
    """An instruction that is right or wrong: about what is there or not, vague, of another type, garbled."""
    kind = generator.random()
    if kind < 0.1:
        return questions.VAGUE_INSTRUCTIONS[edit_type]
    if kind < 0.16:
        return propose(scene, _pick(generator, EDIT_TYPES), generator)["instruction"]
    if kind < 0.19:
        return _garble(propose(scene, edit_type, generator)["instruction"], generator)
    name = _draw_name(scene, generator)
    if edit_type == "remove":
        return f"remove the {name}"
    if edit_type == "add":
        name = name if generator.random() < 0.3 else f"{_pick(generator, tuple(COLORS))} {_pick(generator, SHAPES)}"
        return f"add a {name} {_pick(generator, PLACES)}"
    if edit_type == "style":
        return f"turn it into a {_pick(generator, STYLES)} scene"
    if edit_type == "background":
        return f"make the background {_pick(generator, tuple(COLORS if generator.random() < 0.04 else BACKGROUNDS))}"
    if (alike := _instructions_to_be_alike(scene, edit_type)) and generator.random() < 0.25:
        return _pick(generator, alike)
    color, shape = name.split()
    kind, other = generator.random(), _pick(generator, tuple(COLORS))
    if edit_type == "color":
        known = _pick(generator, tuple(BACKGROUNDS)) if kind < 0.06 else color if kind < 0.3 else other
        return f"make the {name} {known}"
    new = name if kind < 0.2 else f"{color if kind < 0.6 else other} {_pick(generator, SHAPES)}"
    return f"replace the {name} with a {new}"


def _instructions_to_be_alike(scene: Scene, edit_type: str) -> list[str]:
    """Those that would give an object the other one's color or shape, where that is all in which they differ."""
    pairs = [(one, other) for one in scene.objects for other in scene.objects if one != other]
    if edit_type == "color":
        return [f"make the {one.name} {other.color}" for one, other in pairs if one.shape == other.shape]
    return [f"replace the {one.name} with a {other.name}" for one, other in pairs if one.color == other.color]


def _draw_name(scene: Scene, generator: np.random.Generator) -> str:
    """Of an object that is there, one that differs from it in a way, two that are mixed up, or any."""
    shown, kind = _pick(generator, scene.objects), generator.random()
    if kind < 0.4:
        return shown.name
    other = _pick(generator, scene.objects) if kind < 0.6 else None
    color = other.color if other else _pick(generator, tuple(COLORS)) if kind < 0.85 else shown.color
    shape = shown.shape if kind < 0.75 else _pick(generator, SHAPES)
    return f"{color} {shape}"


def _garble(instruction: str, generator: np.random.Generator) -> str:
    """With one word left out or said twice."""
    words = instruction.split()
    index = int(generator.integers(len(words)))
    times = 0 if generator.random() < 0.5 else 2
    return " ".join([*words[:index], *[words[index]] * times, *words[index + 1 :]])


def proposal_questions(scene: Scene, generator: np.random.Generator) -> list[tuple[str, str]]:
    """What the engine asks about one picture: its caption, twice for edits, and verdicts, half of them yes."""
    asked = [(prompt.caption_text(), caption(scene)), *(proposal_question(scene, generator) for _ in range(2))]
    for number in range(NUM_VERDICTS):
        asked.append(verify_question(scene, *draw_instruction(scene, number % 2 == 0, generator)))
    return asked


def _pick(generator: np.random.Generator, options: Sequence):
    return options[int(generator.integers(len(options)))]
