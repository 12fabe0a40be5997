"""Measures the starter's vision-language model in what the caption engines ask besides edit tuples."""

from __future__ import annotations

import collections
import io
import json
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from stages.caption.customization import prompt as customization_prompt
from stages.caption.evolution import prompt as evolution_prompt
from stages.caption.video import prompt as video_prompt
from stages.starter import clips
from stages.starter import vlm_caption_data as captioning
from stages.starter import vlm_data as data
from stages.starter.customization import parse_setting
from stages.starter.world import Edit, render

Chat = tuple[list[dict], dict | None]  # messages, and the answer's schema where it has one
Ask = Callable[[Sequence[Chat], float], list[str]]  # chats and a temperature -> answers


def to_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def share(values: Sequence[bool]) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None


def _json(text: str) -> dict:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _measure_evolution(ask: Ask, generator: np.random.Generator, num_items: int) -> dict:
    chats, edits = [], []
    for _ in range(num_items):
        edit: Edit = data.draw_edit(data.draw_scene(generator, held_out=True), generator, held_out=True)
        pair = (to_png(data.jitter(render(scene), generator)) for scene in (edit.source, edit.target))
        chats.append(evolution_prompt.build_chat(*pair, edit.instruction, edit.edit_type))
        edits.append(edit)
    right = collections.defaultdict(list)
    for edit, text in zip(edits, ask(chats, 0), strict=True):
        right[edit.edit_type].append(_json(text).get("evolution_caption") == clips.evolution_caption(edit))
    return {"exact": share(sum(right.values(), [])), "by_type": {name: share(v) for name, v in sorted(right.items())}}


def _measure_clean(ask: Ask, generator: np.random.Generator, num_items: int) -> float:
    pairs = [captioning.draw_captions(generator, held_out=True) for _ in range(num_items)]
    answers = ask([video_prompt.build_clean_chat(caption) for caption, _ in pairs], 0)
    return share([_json(text).get("caption") == content for text, (_, content) in zip(answers, pairs, strict=True)])


def _measure_styles(ask: Ask, generator: np.random.Generator, num_items: int) -> dict:
    chats, truths = [], []
    for _ in range(num_items):
        frames, in_style = captioning.draw_frames(generator, held_out=True)
        pngs = [to_png(frame) for frame in frames]
        chats += [(video_prompt.build_verify_chat(pngs, style), None) for style in in_style]
        truths += in_style.values()
    return _verdicts(ask(chats, 0), truths)


def _verdicts(answers: Sequence[str], truths: Sequence[bool]) -> dict:
    """Shares right of all Yes/No answers, and of those whose truth is Yes and No."""
    right = [answer == ("Yes" if truth else "No") for answer, truth in zip(answers, truths, strict=True)]
    of = {truth: [r for r, t in zip(right, truths, strict=True) if t == truth] for truth in (True, False)}
    return {"right": share(right), "right_of_yes": share(of[True]), "right_of_no": share(of[False])}


def _measure_objects(ask: Ask, generator: np.random.Generator, num_items: int) -> float:
    scenes = [data.draw_scene(generator, held_out=True) for _ in range(num_items)]
    pngs = [to_png(data.jitter(render(scene), generator)) for scene in scenes]
    answers = ask([customization_prompt.build_object_chat(png) for png in pngs], 0)
    truths = [json.loads(captioning.object_question(scene)[1]) for scene in scenes]
    return share([_json(text) == truth for text, truth in zip(answers, truths, strict=True)])


def _measure_backgrounds(ask: Ask, generator: np.random.Generator, num_items: int) -> dict:
    """Sampled at temperature 1, as what should be diverse is."""
    names = [data.draw_scene(generator, held_out=True).objects[0].name for _ in range(num_items)]
    well_formed, diverse, seen = [], [], set()
    for text in ask([customization_prompt.build_backgrounds_chat(name) for name in names], 1.0):
        try:
            settings = [parse_setting(phrase) for phrase in _json(text).get("backgrounds", [])]
        except ValueError:
            settings = []
        num = customization_prompt.NUM_BACKGROUNDS
        well_formed.append(len(settings) == num)
        diverse.append(len({s.place for s in settings}) == len({s.background for s in settings}) == num)
        seen |= {setting.text for setting in settings}
    return {"well_formed": share(well_formed), "diverse": share(diverse), "num_settings": len(seen)}


def _measure_customization(ask: Ask, generator: np.random.Generator, num_items: int) -> dict:
    asked: dict[str, list] = {"new_setting": [], "same_object": []}
    for _ in range(num_items):
        scene, setting = captioning.draw_customization(generator, held_out=True)
        image = captioning.draw_customized(scene, setting, generator)
        pngs = [to_png(data.jitter(render(scene), generator)), to_png(image)]
        questions = captioning.customization_questions(scene, setting, image)
        for found, (question, answer) in zip(asked.values(), questions, strict=True):
            content = [*({"type": "image", "image": png} for png in pngs), {"type": "text", "text": question}]
            found.append((([{"role": "user", "content": content}], None), answer == "Yes"))
    return {
        name: _verdicts(ask([chat for chat, _ in found], 0), [truth for _, truth in found])
        for name, found in asked.items()
    }


def measure_captioners(ask: Ask, num_items: int) -> dict:
    """Shares right of `num_items` held-out scenes or clips each; greedy, but for settings thought up."""
    generator = np.random.default_rng(9)
    return {
        "evolution": _measure_evolution(ask, generator, num_items),
        "clean_exact": _measure_clean(ask, generator, num_items),
        "style": _measure_styles(ask, generator, num_items),
        "object": _measure_objects(ask, generator, num_items),
        "backgrounds_at_1": _measure_backgrounds(ask, generator, num_items),
        **_measure_customization(ask, generator, num_items),
    }
