"""What models really answer: thinking, prose and fences around a JSON object, or a Yes or No."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from stages.caption.rule import Rule


class ReadingRule(Rule):
    """What makes an answer readable."""

    CUT_OFF = "cut_off", "The answer ends before max_tokens."
    NO_JSON = "no_json", "The answer holds a JSON object."
    MISSING_FIELD = "missing_field", "The object has every field that was asked for."
    EXTRA_FIELD = "extra_field", "The object has no other field."
    EMPTY_FIELD = "empty_field", "No field that must say something is empty."
    NOT_TEXT = "not_text", "What must be a text is one."
    NOT_TRUE_OR_FALSE = "not_true_or_false", "What must be true or false is."
    NOT_A_LIST = "not_a_list", "What must be a list is one."
    NEITHER_YES_NOR_NO = "neither_yes_nor_no", "The answer begins with Yes or with No."


_FENCE = re.compile(r"```[a-zA-Z]*\s*\n?(.*?)```", re.DOTALL)
_YES_OR_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_WRONG_KIND = {
    str: ReadingRule.NOT_TEXT,
    bool: ReadingRule.NOT_TRUE_OR_FALSE,
    list: ReadingRule.NOT_A_LIST,
}


def without_thinking(text: str) -> str:
    """The answer after a model's thinking; empty where the thinking was cut off."""
    text = text.rsplit("</think>", 1)[-1]
    return text.split("<think>", 1)[0]


def is_whole(text: str) -> bool:
    """Whether an answer is one JSON object and nothing else."""
    try:
        return isinstance(json.loads(text, strict=False), dict)
    except (ValueError, RecursionError):
        return False


def json_objects(text: str) -> list[dict]:
    """All JSON objects that stand in a model's answer outside its thinking, at the top level, in their order.

    Fenced blocks are looked at first, so that an object that the prose quotes does not hide the answer.
    """
    text = without_thinking(text)
    found: list[dict] = []
    decoder = json.JSONDecoder(strict=False)
    for part in [*_FENCE.findall(text), _FENCE.sub(" ", text)]:
        start = part.find("{")
        while start >= 0:
            try:
                value, end = decoder.raw_decode(part, start)
            except (ValueError, RecursionError):
                end = start + 1
            else:
                if isinstance(value, dict):
                    found.append(value)
            start = part.find("{", end)
    return found


def field_rules(*kinds: type) -> tuple[Rule, ...]:
    """The rules that an answer with fields of these kinds is read by: `read_fields`, and before it CUT_OFF."""
    always = (ReadingRule.CUT_OFF, ReadingRule.NO_JSON, ReadingRule.MISSING_FIELD, ReadingRule.EXTRA_FIELD)
    empty = (ReadingRule.EMPTY_FIELD,) if str in kinds else ()
    return (*always, *empty, *(_WRONG_KIND[kind] for kind in kinds))


def read_fields(text: str, fields: Mapping[str, type], may_be_empty: tuple[str, ...] = ()) -> dict[str, Any] | str:
    """The fields of the JSON object that answers, each of its kind (str, bool or list), or why there are none.

    Runs of white space in a text become one space. Reasons are `field_rules`, all but `no_json` with a field's name.
    """
    objects = json_objects(text)
    if not objects:
        return ReadingRule.NO_JSON
    answer = next((o for o in reversed(objects) if set(fields) <= set(o)), objects[-1])
    return checked_fields(answer, fields, may_be_empty)


def checked_fields(
    answer: Mapping[str, Any], fields: Mapping[str, type], may_be_empty: tuple[str, ...] = ()
) -> dict[str, Any] | str:
    """The same for an object that was read already."""
    for name, kind in fields.items():
        if name not in answer:
            return f"{ReadingRule.MISSING_FIELD}:{name}"
        if not isinstance(answer[name], kind):
            return f"{_WRONG_KIND[kind]}:{name}"
        if kind is str and name not in may_be_empty and not answer[name].strip():
            return f"{ReadingRule.EMPTY_FIELD}:{name}"
    if extra := sorted(set(answer) - set(fields)):
        return f"{ReadingRule.EXTRA_FIELD}:{extra[0][:40]}"
    return {name: " ".join(answer[name].split()) if kind is str else answer[name] for name, kind in fields.items()}


def read_yes_or_no(text: str) -> bool | None:
    """Whether the answer begins with Yes or with No; None where it does neither."""
    match = _YES_OR_NO.match(without_thinking(text))
    return match[1].lower() == "yes" if match else None
