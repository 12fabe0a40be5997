"""What an object's name and its settings must keep (NP-Edit, appendix D); each broken rule has a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.caption.answers import ReadingRule
from stages.caption.rule import Rule
from stages.caption.words import content_words, words

MAX_NAME_WORDS = 5
MIN_SETTING_WORDS = 2
MAX_SETTING_LENGTH = 240  # characters


class ObjectRule(Rule):
    """What an answer about a picture's one thing must keep."""

    NOT_UNIQUE = "not_unique", "There is one thing that can be told from others."
    OBJECT_EMPTY = "object_empty", "The thing has a name."
    OBJECT_TOO_LONG = "object_too_long", f"The name has {MAX_NAME_WORDS} words or fewer."


class SettingRule(Rule):
    """What the settings of an object must keep."""

    WRONG_NUMBER = "wrong_number", "There are as many settings as were asked for."
    TOO_SHORT = "too_short", f"Each has {MIN_SETTING_WORDS} words or more."
    TOO_LONG = "too_long", f"Each has {MAX_SETTING_LENGTH} characters or fewer."
    SETTING_NAMES_OBJECT = "setting_names_object", "None names the object, by the last word of its name."
    SETTINGS_ALIKE = "settings_alike", "No two have the same words, but for function words."


_ENDS = {
    ObjectRule.NOT_UNIQUE: (ObjectRule.OBJECT_EMPTY, ObjectRule.OBJECT_TOO_LONG),
    ObjectRule.OBJECT_EMPTY: (ObjectRule.OBJECT_TOO_LONG,),
    SettingRule.WRONG_NUMBER: (ReadingRule.NOT_TEXT, *SettingRule),
    ReadingRule.NOT_TEXT: tuple(SettingRule),
}


def not_applicable(reasons: Sequence[str]) -> frozenset[Rule]:
    """The rules that weren't checked any more where these were broken."""
    later = [rule for reason in reasons for rule in _ENDS.get(reason, ())]
    return frozenset(later).difference(reasons)


def check_object(is_unique: bool, name: str) -> list[str]:
    """The rules that a picture's one thing breaks; `not_unique` means that there is none."""
    if not is_unique:
        return [ObjectRule.NOT_UNIQUE]
    if not words(name):
        return [ObjectRule.OBJECT_EMPTY]
    return [ObjectRule.OBJECT_TOO_LONG] if len(words(name)) > MAX_NAME_WORDS else []


def check_settings(settings: Sequence[Any], name: str, num: int) -> list[str]:
    """The rules that the settings of the thing called `name` break."""
    if len(settings) != num:
        return [SettingRule.WRONG_NUMBER]
    if not all(isinstance(setting, str) for setting in settings):
        return [ReadingRule.NOT_TEXT]
    reasons = []
    if min(len(words(setting)) for setting in settings) < MIN_SETTING_WORDS:
        reasons.append(SettingRule.TOO_SHORT)
    if max(map(len, settings)) > MAX_SETTING_LENGTH:
        reasons.append(SettingRule.TOO_LONG)
    noun = words(name)[-1]
    if any(noun in words(setting) for setting in settings):
        reasons.append(SettingRule.SETTING_NAMES_OBJECT)
    if len({tuple(sorted(content_words(setting))) for setting in settings}) < num:
        reasons.append(SettingRule.SETTINGS_ALIKE)
    return reasons
