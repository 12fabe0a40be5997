"""What an object's name and its settings must keep (NP-Edit, appendix D); each broken rule has a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stages.caption.words import content_words, words

MAX_NAME_WORDS = 5
MIN_SETTING_WORDS = 2
MAX_SETTING_LENGTH = 240  # characters
NOT_UNIQUE = "not_unique"

_ARTICLE = re.compile(r"^(?:a|an|the|one)\s+", re.IGNORECASE)


def plain_name(object: str) -> str:
    """An object's name without article and full stop."""
    return _ARTICLE.sub("", object.strip()).rstrip(" .")


def check_object(is_unique: bool, name: str) -> list[str]:
    """The names of the rules that a picture's one thing breaks; `not_unique` means that there is none."""
    if not is_unique:
        return [NOT_UNIQUE]
    if not words(name):
        return ["object_empty"]
    return ["object_too_long"] if len(words(name)) > MAX_NAME_WORDS else []


def check_settings(settings: Sequence[Any], name: str, num: int) -> list[str]:
    """The names of the rules that the settings of the thing called `name` break.

    `wrong_number`, `not_text`, `too_short`, `too_long`, `setting_names_object` (by its noun, the name's last word),
    `settings_alike` (two with the same words but for function words).
    """
    if len(settings) != num:
        return ["wrong_number"]
    if not all(isinstance(setting, str) for setting in settings):
        return ["not_text"]
    reasons = []
    if min(len(words(setting)) for setting in settings) < MIN_SETTING_WORDS:
        reasons.append("too_short")
    if max(map(len, settings)) > MAX_SETTING_LENGTH:
        reasons.append("too_long")
    noun = words(name)[-1]
    if any(noun in words(setting) for setting in settings):
        reasons.append("setting_names_object")
    if len({tuple(sorted(content_words(setting))) for setting in settings}) < num:
        reasons.append("settings_alike")
    return reasons
