"""What a parsed edit tuple must keep before it becomes training data; each broken rule has a name.

The rules are the paper's (ByG, data engine) and those that follow from them: the reverse instruction
stands alone, the target caption describes the edited picture alone, a removed object is named in the source
caption and gone from the target's, and the two captions differ by what the instructions say. They look at
words only, so they hold for any model's answers; a short caption must differ in exactly the instructed
words, a long one has room for rephrasing.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence

from stages.caption.answers import ReadingRule
from stages.caption.edits.prompt import FIELDS, MAX_CAPTION_LENGTH, MAX_INSTRUCTION_LENGTH
from stages.caption.rule import Rule
from stages.caption.words import FUNCTION_WORDS, alike, content_words, words

MIN_WORDS = 2
INVERSE_TYPES = {"remove": "add", "add": "remove", "replace": "replace"}
EXACT_CAPTION_WORDS = 15  # a caption of so many words has no room for rephrasing,
WORDS_PER_REPHRASED_WORD = 3  # a longer one has room for one word in so many of the rest

_TARGET_FORBIDDEN = re.compile(r"\b(?:now|chang(?:ed|es|ing) (?:in)?to|turned into|without|no longer)\b", re.IGNORECASE)
_REVERSE_FORBIDDEN = re.compile(r"\b(?:restor|revert|undo|undid|undone|original)\w*", re.IGNORECASE)
_REMOVAL = re.compile(r"\b(?:remove|erase|delete|eliminate|get rid of|take away|take out|cut out)\b", re.IGNORECASE)
_ADDITION = re.compile(r"\b(?:add|insert|place|put|draw|include|introduce)\b", re.IGNORECASE)
_REPLACEMENT = re.compile(
    r"\b(?:replace|swap|exchange|substitute|turn|change|transform)\b\s*(?P<old>.+?)\s*\b(?:with|for|by|into|to)\b",
    re.IGNORECASE,
)
# a preposition ends the name of an object: "the dog | on the left", "a boat to the lake"
_NAME_END = re.compile(
    r"[,.;:!]|\b(?:from|in|on|at|to|into|onto|near|next|beside|behind|above|below|under|over|by|between|inside|"
    r"that|which|who|so|and|top|bottom|left|right|while|with)\b",
    re.IGNORECASE,
)
_DETERMINER = re.compile(r"^(?:the|a|an|one|some|its|his|her|their|this|that|all|of|both|two|three)\s+", re.IGNORECASE)
# words that may come and go: they tell nothing, or name the medium (a photo becomes a painting)
_FREE_WORDS = FUNCTION_WORDS.union(
    "photo photograph picture image view scene painting drawing illustration rendering shot style".split()
)


class EditRule(Rule):
    """What an edit tuple must keep."""

    EDIT_TYPE_NOT_OFFERED = "edit_type_not_offered", "The edit type is one of those that were offered."
    STYLE_NOT_OFFERED = "style_not_offered", "Style: the instruction names one of the styles that were offered."
    CAPTIONS_EQUAL = "captions_equal", "The two captions differ."
    INSTRUCTIONS_EQUAL = "instructions_equal", "The two instructions differ."
    TOO_LONG = (
        "too_long",
        f"No caption and no instruction is over {MAX_CAPTION_LENGTH} and {MAX_INSTRUCTION_LENGTH} characters.",
    )
    TOO_SHORT = "too_short", f"Captions and instructions have {MIN_WORDS} words or more."
    TARGET_TELLS_OF_THE_EDIT = (
        "target_tells_of_the_edit",
        "The target's caption describes the final picture: no 'now', 'changed to', 'without'.",
    )
    REVERSE_NOT_SELF_CONTAINED = (
        "reverse_not_self_contained",
        "The reverse instruction says the change itself: no 'restore', 'undo', 'original'.",
    )
    OBJECT_NOT_FOUND = "object_not_found", "Remove, add, replace: the instruction names an object."
    ADDED_OBJECT_NOT_IN_TARGET = (
        "added_object_not_in_target",
        "Add: the target's caption has the object oftener than the source's.",
    )
    OBJECT_NOT_IN_SOURCE = "object_not_in_source", "Remove, replace: the source's caption names the object."
    OLD_OBJECT_IN_TARGET = (
        "old_object_in_target",
        "Remove, replace: the target's caption has the object less often than the source's.",
    )
    OBJECT_AMBIGUOUS = "object_ambiguous", "Remove, replace: the source's caption names no second object like it."
    REVERSE_NAMES_ANOTHER_OBJECT = (
        "reverse_names_another_object",
        "Remove, add, replace: the reverse instruction is about the same object.",
    )
    REVERSE_AMBIGUOUS = (
        "reverse_ambiguous",
        "Add, replace: the target's caption names no second object like the one to go back from.",
    )
    TARGET_HAS_TWINS = "target_has_twins", "Color, material, replace: no object gets the name that another one has."
    TARGET_HAS_UNEXPLAINED_WORDS = (
        "target_has_unexplained_words",
        "What the target's caption has more, the instruction says.",
    )
    SOURCE_WORDS_LOST = "source_words_lost", "What the source's caption has more, the reverse instruction says."
    INSTRUCTION_DOES_NOT_LEAD_TO_TARGET = (
        "instruction_does_not_lead_to_target",
        "The instruction has a word of what is new in the target's caption.",
    )
    REVERSE_DOES_NOT_LEAD_TO_SOURCE = (
        "reverse_does_not_lead_to_source",
        "The reverse instruction has a word of what only the source's caption has.",
    )


# the edit types that a rule is about, where it isn't about all
_ONLY_FOR = {
    EditRule.STYLE_NOT_OFFERED: ("style",),
    EditRule.OBJECT_NOT_FOUND: ("remove", "add", "replace"),
    EditRule.ADDED_OBJECT_NOT_IN_TARGET: ("add",),
    EditRule.OBJECT_NOT_IN_SOURCE: ("remove", "replace"),
    EditRule.OLD_OBJECT_IN_TARGET: ("remove", "replace"),
    EditRule.OBJECT_AMBIGUOUS: ("remove", "replace"),
    EditRule.REVERSE_NAMES_ANOTHER_OBJECT: ("remove", "add", "replace"),
    EditRule.REVERSE_AMBIGUOUS: ("add", "replace"),
    EditRule.TARGET_HAS_TWINS: ("color", "material", "replace"),
}
# what can't be judged any more where a rule is broken
_ENDS = {
    EditRule.OBJECT_NOT_FOUND: (
        EditRule.ADDED_OBJECT_NOT_IN_TARGET,
        EditRule.OBJECT_NOT_IN_SOURCE,
        EditRule.OLD_OBJECT_IN_TARGET,
        EditRule.OBJECT_AMBIGUOUS,
        EditRule.REVERSE_NAMES_ANOTHER_OBJECT,
        EditRule.REVERSE_AMBIGUOUS,
    ),
    EditRule.OBJECT_NOT_IN_SOURCE: (EditRule.OLD_OBJECT_IN_TARGET, EditRule.OBJECT_AMBIGUOUS),
    EditRule.OLD_OBJECT_IN_TARGET: (EditRule.OBJECT_AMBIGUOUS,),
    EditRule.REVERSE_NAMES_ANOTHER_OBJECT: (EditRule.REVERSE_AMBIGUOUS,),
}


def not_applicable(edit_type: str, reasons: Sequence[str]) -> frozenset[EditRule]:
    """The rules that `check` left out for a row of this type that broke these."""
    others = {rule for rule, types in _ONLY_FOR.items() if edit_type not in types}
    return frozenset(others.union(*(later for rule, later in _ENDS.items() if rule in reasons)))


def find_object(edit_type: str, instruction: str) -> str:
    """The object that an instruction removes, adds or replaces, without its article; "" if none is found."""
    if edit_type == "replace":
        match = _REPLACEMENT.search(instruction)
        name = match["old"] if match else ""
    else:
        verb = {"remove": _REMOVAL, "add": _ADDITION}.get(edit_type)
        match = verb.search(instruction) if verb else None
        name = instruction[match.end() :].strip() if match else ""
    while (shorter := _DETERMINER.sub("", name)) != name:
        name = shorter
    end = _NAME_END.search(name)
    return (name[: end.start()] if end else name).strip().lower()


def _count(name: str, text: str) -> int:
    """How often the text has the words of the name, one after the other."""
    wanted, found = words(name), words(text)
    return sum(found[i : i + len(wanted)] == wanted for i in range(len(found) - len(wanted) + 1))


def _names_more(name: str, here: str, there: str) -> bool:
    """Whether `here` names the object oftener than `there`, by its whole name or its noun (the last word)."""
    noun = words(name)[-1]
    return _count(name, here) > _count(name, there) or _count(noun, here) > _count(noun, there)


def _knows(name: str, caption: str) -> bool:
    """Whether the caption names the object: its noun, and near it two in three of its other words or more."""
    wanted, found = words(name), words(caption)
    if not wanted:
        return False
    reach = len(wanted) + 2
    for place in (place for place, word in enumerate(found) if word == wanted[-1]):
        near = found[max(0, place - reach) : place + reach + 1]
        if sum(word not in near for word in wanted) <= len(wanted) // 3:
            return True
    return False


def _room(caption: str) -> int:
    return max(0, len(words(caption)) - EXACT_CAPTION_WORDS) // WORDS_PER_REPHRASED_WORD


def _unexplained(here: str, there: str, instruction: str) -> int:
    """How many words `here` has beyond `there` that the instruction doesn't say, or not so often."""
    extra = collections.Counter(words(here)) - collections.Counter(words(there))
    extra -= collections.Counter(words(instruction))
    return sum(count for word, count in extra.items() if word not in _FREE_WORDS)


def _makes_a_twin(row: Mapping[str, str]) -> bool:
    """Whether the edit gives an object the name that another one has, so that no reverse can tell them apart."""
    said = set(words(row["instruction"])) - _FREE_WORDS
    found = [words(row[name]) for name in ("src_caption", "tgt_caption")]
    before, after = (collections.Counter(zip(w, w[1:], strict=False)) for w in found)
    return any(count > max(1, before[pair]) and set(pair) <= said for pair, count in after.items())


def _object_reasons(row: Mapping[str, str]) -> list[str]:
    edit_type, source, target = row["edit_type"], row["src_caption"], row["tgt_caption"]
    name = find_object(edit_type, row["instruction"])
    if not words(name):
        return [EditRule.OBJECT_NOT_FOUND]
    reasons = []
    if edit_type == "add":
        if not _names_more(name, target, source):
            reasons.append(EditRule.ADDED_OBJECT_NOT_IN_TARGET)
    elif not _knows(name, source):
        reasons.append(EditRule.OBJECT_NOT_IN_SOURCE)
    elif not _names_more(name, source, target):
        reasons.append(EditRule.OLD_OBJECT_IN_TARGET)
    elif _count(name, source) > 1:
        reasons.append(EditRule.OBJECT_AMBIGUOUS)
    inverse = find_object(INVERSE_TYPES[edit_type], row["reverse_instruction"])
    if not _knows(inverse, source if edit_type == "remove" else target):
        reasons.append(EditRule.REVERSE_NAMES_ANOTHER_OBJECT)
    elif edit_type != "remove" and _count(inverse, target) > 1:
        reasons.append(EditRule.REVERSE_AMBIGUOUS)
    return reasons


def names_style(instruction: str, styles: Sequence[str]) -> bool:
    """Whether an instruction has a word of one of the styles, or a form of it: "a watercolour" of "watercolor"."""
    said = content_words(instruction)
    wanted = [word for style in styles for word in content_words(style, _FREE_WORDS) or content_words(style)]
    return any(alike(one, other) for one in wanted for other in said)


def check(row: Mapping[str, str], offered_types: Sequence[str], styles: Sequence[str] | None = None) -> list[str]:
    """The rules that a row of the five fields breaks; an empty list for a good row. `styles`: those on offer; None
    leaves their rule out.
    """
    if empty := [f"{ReadingRule.EMPTY_FIELD}:{name}" for name in FIELDS if not str(row.get(name) or "").strip()]:
        return empty
    reasons = []
    if row["edit_type"] not in offered_types:
        reasons.append(EditRule.EDIT_TYPE_NOT_OFFERED)
    if row["edit_type"] == "style" and styles is not None and not names_style(row["instruction"], styles):
        reasons.append(EditRule.STYLE_NOT_OFFERED)
    source, target = row["src_caption"], row["tgt_caption"]
    forward, reverse = row["instruction"], row["reverse_instruction"]
    if words(source) == words(target):
        reasons.append(EditRule.CAPTIONS_EQUAL)
    if words(forward) == words(reverse):
        reasons.append(EditRule.INSTRUCTIONS_EQUAL)
    if max(len(source), len(target)) > MAX_CAPTION_LENGTH or max(len(forward), len(reverse)) > MAX_INSTRUCTION_LENGTH:
        reasons.append(EditRule.TOO_LONG)
    if min(len(words(row[name])) for name in FIELDS[1:]) < MIN_WORDS:
        reasons.append(EditRule.TOO_SHORT)
    if _TARGET_FORBIDDEN.search(target):
        reasons.append(EditRule.TARGET_TELLS_OF_THE_EDIT)
    if _REVERSE_FORBIDDEN.search(reverse):
        reasons.append(EditRule.REVERSE_NOT_SELF_CONTAINED)
    if row["edit_type"] in INVERSE_TYPES:
        reasons += _object_reasons(row)
    if row["edit_type"] in ("color", "material", "replace") and _makes_a_twin(row):
        reasons.append(EditRule.TARGET_HAS_TWINS)
    if _unexplained(target, source, forward) > _room(target):
        reasons.append(EditRule.TARGET_HAS_UNEXPLAINED_WORDS)
    if _unexplained(source, target, reverse) > _room(source):
        reasons.append(EditRule.SOURCE_WORDS_LOST)
    new = set(words(target)) - set(words(source)) - _FREE_WORDS
    if new and not new & set(words(forward)):
        reasons.append(EditRule.INSTRUCTION_DOES_NOT_LEAD_TO_TARGET)
    old = set(words(source)) - set(words(target)) - _FREE_WORDS
    if old and not old & set(words(reverse)):
        reasons.append(EditRule.REVERSE_DOES_NOT_LEAD_TO_SOURCE)
    return reasons
