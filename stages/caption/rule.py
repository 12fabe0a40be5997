"""Rules that an answer must keep, each with a name, which is the reason where it is broken, and a line that says what
it asks for.
"""

from __future__ import annotations

import enum


class Rule(enum.StrEnum):
    """Base of every engine's rules. A reason is a rule's name, or `NAME:WORD` where it is about one word or field."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Rule:
        member = str.__new__(cls, name)
        member._value_, member.meaning = name, meaning
        return member


def rule_name(reason: str) -> str:
    """The name of the rule that a reason tells of."""
    return reason.partition(":")[0]
