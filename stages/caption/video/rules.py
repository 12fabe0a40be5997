"""What a caption must keep when its style is taken out: everything but the style; each broken rule has a name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from stages.caption.rule import Rule
from stages.caption.words import content_words, words

MIN_WORDS = 2
MAX_LENGTH = 2000  # characters
EXACT_WORDS = 20  # a caption of so many content words is kept word for word,
WORDS_PER_REPHRASED_WORD = 10  # a longer one may lose and gain one word in so many of the rest

# words that always tell of a style
STYLE_WORDS = frozenset(
    "3d 2d anime animated animation animator cartoon cartoonish cartoony cgi cinematic claymation comic "
    "hyperrealistic illustrated illustration lifelike manga photo photograph photographic photography photoreal "
    "photorealism photorealistic pixar realism render rendered rendering sketch stylised stylized watercolor".split()
)
# words that tell of a style or of something shown: they may go, and may stay
_SOMETIMES_STYLE = frozenset(
    "aesthetic art artistic artwork camera clip cinema color cool depict depicted detailed digital drawing drawn "
    "film filmed filter footage frame grain grainy high-quality high-resolution image inked lens light lighting look "
    "monochrome mood movie oil paint painted painting palette picture quality realistic recording scene show "
    "shot shown soft style tone video vintage visual vivid vibrant warm".split()
)
_BLACK_AND_WHITE = re.compile(r"\bblack[ -](?:and|&)[ -]white\b", re.IGNORECASE)


class CleanRule(Rule):
    """What a caption without its style must keep."""

    STYLE_LEFT = "style_left", "No word that tells of a style is left, nor one of the configured styles' names."
    WORDS_LOST = "words_lost", "All other content words are there in their order; a long caption has some room."
    WORDS_ADDED = "words_added", "No other content word is new; a long caption has some room."
    TOO_SHORT = "too_short", f"The caption has {MIN_WORDS} words or more."
    TOO_LONG = "too_long", f"The caption has {MAX_LENGTH} characters or fewer."


def _parts(text: str) -> list[str]:
    """The words of a text, those with a hyphen in parts too: "photo-realistic" is also "photo" and "realistic"."""
    return [part for word in words(text) for part in dict.fromkeys([word, *word.split("-")])]


def check_clean(clean: str, caption: str, style_names: Iterable[str]) -> list[str]:
    """The rules that a cleaned caption breaks; an empty list for a good one.

    Style words are STYLE_WORDS and those of the configured styles' names; a word at another place is lost and added.
    """
    style_words = STYLE_WORDS.union(*map(content_words, style_names))
    caption, clean = (_BLACK_AND_WHITE.sub("monochrome", text) for text in (caption, clean))
    reasons = [f"{CleanRule.STYLE_LEFT}:{word}" for word in dict.fromkeys(_parts(clean)) if word in style_words]
    free = style_words | _SOMETIMES_STYLE
    before, after = (
        [word for word in content_words(text, free) if not style_words.intersection(word.split("-"))]
        for text in (caption, clean)
    )
    room = max(0, len(before) - EXACT_WORDS) // WORDS_PER_REPHRASED_WORD
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    num_kept = sum(block.size for block in blocks)  # in their order: a swap of two colors is no small thing
    if len(before) - num_kept > room:
        reasons.append(CleanRule.WORDS_LOST)
    if len(after) - num_kept > room:
        reasons.append(CleanRule.WORDS_ADDED)
    if len(words(clean)) < MIN_WORDS:
        reasons.append(CleanRule.TOO_SHORT)
    if len(clean) > MAX_LENGTH:
        reasons.append(CleanRule.TOO_LONG)
    return reasons
