"""What an evolution caption must keep before a teacher reads it; each broken rule has a name.

A caption tells the process: it repeats no order, says what becomes of the thing that the instruction is about, and
says nothing of pictures or instructions. Polishing changes the wording alone. The rules look at words only.
"""

from __future__ import annotations

import re

from stages.caption.rule import Rule
from stages.caption.words import alike, content_words, count_missing, has_run, words

MIN_WORDS = 2
MAX_LENGTH = 600  # characters
WORDS_PER_POLISHED_WORD = 4  # polishing may change one word in so many, and always one

# what an instruction is made of besides the things that it is about
_ORDERS = frozenset(
    "add alter apply change convert draw edit erase give have insert let make modify place please put recolor remove "
    "replace set swap take transform turn".split()
)
# how a change goes on: polishing brings such words and takes them
_MANNER = frozenset(
    "gradually slowly smoothly steadily gently softly seamlessly naturally evenly fluidly coherently continuously "
    "smooth gradual steady gentle seamless coherent continuous then until finally over time through throughout".split()
)
_ASIDE = re.compile(
    r"\b(?:edit(?:s|ed|ing|or)?|instruct\w*|frames?|(?:first|second|last|source|target|final|original|input|output) "
    r"(?:image|picture|photo)s?)\b",
    re.IGNORECASE,
)


class ProcessRule(Rule):
    """What the caption of a process must keep, before and after it is polished."""

    INSTRUCTION_COPIED = "instruction_copied", "The instruction doesn't stand in the caption word for word."
    CHANGE_NOT_NAMED = "change_not_named", "The caption has a word of what the instruction is about."
    TELLS_OF_THE_REQUEST = (
        "tells_of_the_request",
        "Nothing is said of pictures, frames or instructions, unless the instruction has the word.",
    )
    TOO_SHORT = "too_short", f"The caption has {MIN_WORDS} words or more."
    TOO_LONG = "too_long", f"The caption has {MAX_LENGTH} characters or fewer."


class PolishRule(Rule):
    """What polishing must keep besides."""

    POLISH_LOST_WORDS = (
        "polish_lost_words",
        f"Polishing loses no more than one content word in {WORDS_PER_POLISHED_WORD}, always one.",
    )
    POLISH_ADDED_WORDS = (
        "polish_added_words",
        f"Polishing adds no more than one content word in {WORDS_PER_POLISHED_WORD}, always one.",
    )


def check_process(caption: str, instruction: str) -> list[str]:
    """The rules that the caption of a process breaks; an empty list for a good one."""
    reasons = []
    if has_run(words(instruction), words(caption)):
        reasons.append(ProcessRule.INSTRUCTION_COPIED)
    told = content_words(caption)
    about = content_words(instruction, _ORDERS)
    if about and not any(alike(wanted, word) for wanted in about for word in told):
        reasons.append(ProcessRule.CHANGE_NOT_NAMED)
    said = set(words(instruction))  # a picture's frame can be gilded
    if any(not said.issuperset(words(match[0])) for match in _ASIDE.finditer(caption)):
        reasons.append(ProcessRule.TELLS_OF_THE_REQUEST)
    return reasons + _length_reasons(caption)


def check_polish(polished: str, caption: str, instruction: str) -> list[str]:
    """The same for a polished caption, with PolishRule."""
    before, after = content_words(caption, _MANNER), content_words(polished, _MANNER)
    room = max(1, len(before) // WORDS_PER_POLISHED_WORD)
    reasons = check_process(polished, instruction)
    if count_missing(before, after) > room:
        reasons.append(PolishRule.POLISH_LOST_WORDS)
    if count_missing(after, before) > room:
        reasons.append(PolishRule.POLISH_ADDED_WORDS)
    return reasons


def _length_reasons(caption: str) -> list[str]:
    if len(words(caption)) < MIN_WORDS:
        return [ProcessRule.TOO_SHORT]
    return [ProcessRule.TOO_LONG] if len(caption) > MAX_LENGTH else []
