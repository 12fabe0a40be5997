"""The words of a text, as all rules count them."""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Iterable, Sequence

FUNCTION_WORDS = frozenset(
    "a an the of in on at by to with and or is are was were be been being it its this that there which while "
    "as into onto from for near some one two his her their has have".split()
)
STEM_LENGTH = 4  # letters that two forms of one word share

_ARTICLE = re.compile(r"^(?:a|an|the|one)\s+", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text in lower case, a plural's s taken off, so that "dogs" is "dog"."""
    return list(_words(text))


@functools.lru_cache(maxsize=256)  # every rule asks for the words of the same few texts
def _words(text: str) -> tuple[str, ...]:
    found = [word.lower() for word in _WORD.findall(text)]
    return tuple(
        word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in found
    )


def plain_name(object: str) -> str:
    """An object's name without article and full stop."""
    return _ARTICLE.sub("", object.strip()).rstrip(" .")


def content_words(text: str, free: Iterable[str] = ()) -> list[str]:
    """The words of a text but for function words and those that are `free`."""
    out = FUNCTION_WORDS.union(free)
    return [word for word in words(text) if word not in out]


def has_run(wanted: Sequence[str], found: Sequence[str]) -> bool:
    """Whether the wanted words, at least one, stand in `found` one after the other."""
    size = len(wanted)
    return size > 0 and any(list(found[i : i + size]) == list(wanted) for i in range(len(found) - size + 1))


def alike(first: str, second: str) -> bool:
    """Whether two words are the same or seem to be forms of one: "smile" and "smiling"."""
    return first == second or (
        min(len(first), len(second)) >= STEM_LENGTH and first[:STEM_LENGTH] == second[:STEM_LENGTH]
    )


def count_missing(here: Sequence[str], there: Sequence[str]) -> int:
    """How many of the words `here` have no word of their own, the same or alike, `there`."""
    left = collections.Counter(here) - collections.Counter(there)
    spare = list((collections.Counter(there) - collections.Counter(here)).elements())
    num_missing = 0
    for word in left.elements():
        match = next((other for other in spare if alike(word, other)), None)
        if match is None:
            num_missing += 1
        else:
            spare.remove(match)
    return num_missing
