"""What an evolution caption must keep before a teacher reads it; each broken rule has a name.

A caption tells the process: it repeats no order, says what becomes of the thing that the instruction is about, and
says nothing of pictures or instructions. Polishing changes the wording alone. The rules look at words only.
"""

from __future__ import annotations

import re

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


def check_process(caption: str, instruction: str) -> list[str]:
    """The names of the rules that the caption of a process breaks; an empty list for a good one.

    `instruction_copied`, `change_not_named` (no word that the instruction is about appears), `tells_of_the_request`
    (unless the instruction has the word itself: a picture's frame can be gilded), `too_short`, `too_long`.
    """
    reasons = []
    if has_run(words(instruction), words(caption)):
        reasons.append("instruction_copied")
    told = content_words(caption)
    about = content_words(instruction, _ORDERS)
    if about and not any(alike(wanted, word) for wanted in about for word in told):
        reasons.append("change_not_named")
    said = set(words(instruction))
    if any(not said.issuperset(words(match[0])) for match in _ASIDE.finditer(caption)):
        reasons.append("tells_of_the_request")
    return reasons + _length_reasons(caption)


def check_polish(polished: str, caption: str, instruction: str) -> list[str]:
    """The same for a polished caption, with `polish_lost_words` and `polish_added_words`."""
    before, after = content_words(caption, _MANNER), content_words(polished, _MANNER)
    room = max(1, len(before) // WORDS_PER_POLISHED_WORD)
    reasons = check_process(polished, instruction)
    if count_missing(before, after) > room:
        reasons.append("polish_lost_words")
    if count_missing(after, before) > room:
        reasons.append("polish_added_words")
    return reasons


def _length_reasons(caption: str) -> list[str]:
    if len(words(caption)) < MIN_WORDS:
        return ["too_short"]
    return ["too_long"] if len(caption) > MAX_LENGTH else []
