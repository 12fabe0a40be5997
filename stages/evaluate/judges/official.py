"""The official words of a benchmark's judge, read from the user's own checkout: read, never imported and never run."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence

from cluster.errors import UserError
from cluster.folder import Folder
from stages.evaluate.judges.imgedit.judge import EDIT_TYPES
from stages.evaluate.judges.judge import Prompts, sha256

# TIGER-AI-Lab/VIEScore, and the copy in the GEdit-Bench folder of stepfun-ai/Step1X-Edit
VIESCORE_PLACES = ("vie_prompts.py", "viescore/vie_prompts.py", "GEdit-Bench/viescore/vie_prompts.py")
IMGEDIT_PLACES = ("prompts.json", "Basic/prompts.json", "Benchmark/Basic/prompts.json")  # PKU-YuanGroup/ImgEdit
CONTEXT, QUALITY_RULE = "_context_no_delimit", "_prompts_0shot_rule_PQ"
EDIT_RULES = ("_prompts_0shot_two_image_edit_rule", "_prompts_0shot_tie_rule_SC")
SUBJECT_RULES = ("_prompts_0shot_subject_image_gen_rule", "_prompts_0shot_sdig_rule_SC")
MAX_BYTES = 4 << 20


def viescore_prompts(checkout: str, *, subject: bool = False) -> Prompts:
    """VIEScore's words for edits (`tie`), or with `subject` for DreamBooth (`sdig`), put together as its script does.

    Raises:
        UserError: names the file or the constant that is missing or no plain string.
    """
    place, text = _read(checkout, VIESCORE_PLACES, "VIEScore's", "TIGER-AI-Lab/VIEScore")
    rules, slot = (SUBJECT_RULES, "<prompt>") if subject else (EDIT_RULES, "<instruction>")
    found = _constants(text, place, (CONTEXT, *rules, QUALITY_RULE))
    if slot not in found[rules[1]]:
        raise UserError(f"{place}: {rules[1]} has no {slot}, so an edit's words have no place in it.")
    texts = {
        "sc": "\n".join(found[name] for name in (CONTEXT, *rules)),
        "pq": "\n".join(found[name] for name in (CONTEXT, QUALITY_RULE)),
    }
    return _prompts(texts, place)


def imgedit_prompts(checkout: str) -> Prompts:
    """ImgEdit-Bench's rubric for each of the nine types of edit.

    Raises:
        UserError: names the file, or the type whose rubric is missing or no text.
    """
    place, text = _read(checkout, IMGEDIT_PLACES, "ImgEdit's", "PKU-YuanGroup/ImgEdit")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} isn't JSON: {error}. Check the repository out anew.") from None
    for name in EDIT_TYPES:
        value = found.get(name) if isinstance(found, dict) else None
        if not isinstance(value, str):
            raise UserError(f"{place} has no text {name!r}; it should be an object with one for each type of edit.")
        if "<edit_prompt>" not in value:
            raise UserError(f"{place}: {name!r} has no <edit_prompt>, so an edit's instruction has no place in it.")
    return _prompts({name: found[name] for name in EDIT_TYPES}, place)


def _prompts(texts: Mapping[str, str], place: str) -> Prompts:
    return Prompts(texts, f"official:{sha256(texts)[:12]}", (place,), official=True)


def _read(checkout: str, places: Sequence[str], whose: str, repository: str) -> tuple[str, str]:
    folder = Folder(checkout)
    name = next((name for name in places if folder.exists(name)), None)
    if name is None:
        raise UserError(
            f"judge_prompts = {checkout}: there is none of {', '.join(places)} in it. Name {whose} checkout "
            f"(git clone {repository}), or leave judge_prompts out for the words that come with the project."
        )
    place = folder.path(name)
    try:
        with folder.open(name) as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"over {MAX_BYTES} bytes")
        return place, data.decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{place} can't be read ({error}). Check {repository} out anew.") from None


def _constants(text: str, place: str, names: Sequence[str]) -> dict[str, str]:
    """The strings that a module assigns to these names at its top level; nothing of it is run."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{place} isn't Python that can be read ({error}). Check the repository out anew.") from None
    values = {
        target.id: node.value
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = {}
    for name in names:
        if name not in values:
            raise UserError(
                f"{place} has no {name}, which the judge's words are made of. Check the repository out anew."
            )
        value = values[name]
        if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
            raise UserError(
                f"{place}: {name} isn't a plain string; it is read, not run. Check the repository out anew."
            )
        found[name] = value.value
    return found
