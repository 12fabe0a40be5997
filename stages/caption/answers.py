"""What models really answer: thinking, prose and fences around a JSON object, or a Yes or No."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n?(.*?)```", re.DOTALL)
_YES_OR_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_WRONG_KIND = {str: "not_text", bool: "not_true_or_false", list: "not_a_list"}


def without_thinking(text: str) -> str:
    """The answer after a model's thinking; empty where the thinking was cut off."""
    text = text.rsplit("</think>", 1)[-1]
    return text.split("<think>", 1)[0]


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


def read_fields(text: str, fields: Mapping[str, type], may_be_empty: tuple[str, ...] = ()) -> dict[str, Any] | str:
    """The fields of the JSON object that answers, each of its kind (str, bool or list), or why there are none.

    Runs of white space in a text become one space. Reasons: `no_json`, `missing_field:NAME`, `extra_field:NAME`,
    `not_text:NAME`, `not_true_or_false:NAME`, `not_a_list:NAME`, `empty_field:NAME`.
    """
    objects = json_objects(text)
    if not objects:
        return "no_json"
    answer = next((o for o in reversed(objects) if set(fields) <= set(o)), objects[-1])
    for name, kind in fields.items():
        if name not in answer:
            return f"missing_field:{name}"
        if not isinstance(answer[name], kind):
            return f"{_WRONG_KIND[kind]}:{name}"
        if kind is str and name not in may_be_empty and not answer[name].strip():
            return f"empty_field:{name}"
    if extra := sorted(set(answer) - set(fields)):
        return f"extra_field:{extra[0][:40]}"
    return {name: " ".join(answer[name].split()) if kind is str else answer[name] for name, kind in fields.items()}


def read_yes_or_no(text: str) -> bool | None:
    """Whether the answer begins with Yes or with No; None where it does neither."""
    match = _YES_OR_NO.match(without_thinking(text))
    return match[1].lower() == "yes" if match else None
