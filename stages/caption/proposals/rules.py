"""What proposed edits and the verdicts on them must keep (NP-Edit, appendix D); each broken rule has a name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from stages.caption.proposals.prompt import NUM_PROPOSALS
from stages.caption.rule import Rule
from stages.caption.words import alike, content_words, has_run, words

MIN_WORDS = 2
MAX_INSTRUCTION_WORDS = 25
MAX_NAME_WORDS = 6
MAX_CAPTION_LENGTH = 800  # characters
OBJECT_TYPES = ("remove", "add", "replace")

_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')
_IMPERATIVE = (
    "add|insert|place|put|draw|remove|erase|delete|take|replace|swap|change|turn|make|give|paint|color|recolor|set|move"
)
_SECOND_EDIT = re.compile(
    rf"\b(?:then|afterwards?|after that|additionally|as well as|followed by)\b|\b(?:and|also|while) (?:also )?"
    rf"(?:{_IMPERATIVE})\b|;|\w{{3,}}[.!?]\s+\w",
    re.IGNORECASE,
)
_VAGUE_PLACE = re.compile(
    r"\b(?:near|nearby|next to|beside|besides|close to|around|alongside|under|underneath|somewhere|by (?:the|a|an))\b",
    re.IGNORECASE,
)
_PLACE = re.compile(
    r"\b(?:in|on|at|onto|into|inside|within|over|above|across|between|among|against|behind|below|beneath|from|along|"
    r"top|bottom|left|right|center|centre|middle|corner|foreground|background|to)\b",
    re.IGNORECASE,
)
_TELLS_OF_THE_EDIT = re.compile(
    r"\b(?:remov(?:e|es|ed|ing)|add(?:ed|ing)|replac(?:e|es|ed|ing)|chang(?:e|es|ed|ing) (?:in)?to|"
    r"modif(?:y|ied|ies|ying)|edited|turned into|instead of|now|without|no longer)\b",
    re.IGNORECASE,
)


class ProposalRule(Rule):
    """What the edits of one answer must keep."""

    WRONG_NUMBER = "wrong_number", f"There are {NUM_PROPOSALS} edits."
    TYPE_NOT_OFFERED = "type_not_offered", "Each is of a type that was asked for."
    TYPE_REPEATED = "type_repeated", "No two are of one type."
    TOO_SHORT = "too_short", f"Each instruction has {MIN_WORDS} words or more."
    TOO_LONG = "too_long", f"Each instruction has {MAX_INSTRUCTION_WORDS} words or fewer."
    NOT_SINGLE = "not_single", "Each asks for one change: no 'and then', no second sentence or imperative."
    OBJECT_EMPTY = "object_empty", "Each names what it is about."
    OBJECT_TOO_LONG = "object_too_long", f"The name has {MAX_NAME_WORDS} words or fewer."
    OBJECT_NOT_IN_INSTRUCTION = (
        "object_not_in_instruction",
        "Remove, add, replace: the instruction has the name's words.",
    )
    NOT_PLACED = "not_placed", "Add: the instruction says where."
    PLACED_VAGUELY = "placed_vaguely", "Add: it says so exactly: no 'near', 'next to', 'beside', 'around', 'under'."


class CaptionRule(Rule):
    """What the caption of the picture as it is must keep."""

    NO_CAPTION = "no_caption", "The sample's metadata has a caption, where that is to be taken."
    TOO_SHORT = "caption_too_short", f"The caption has {MIN_WORDS} words or more."
    TOO_LONG = "caption_too_long", f"The caption has {MAX_CAPTION_LENGTH} characters or fewer."


class VerdictRule(Rule):
    """What the verdict on an instruction must keep; an instruction that isn't valid is no error."""

    NOT_VALID = "not_valid", "The model calls the instruction valid for the picture."
    TOO_SHORT = "edited_caption_too_short", f"Valid: the edited picture's caption has {MIN_WORDS} words or more."
    TOO_LONG = "edited_caption_too_long", f"It has {MAX_CAPTION_LENGTH} characters or fewer."
    TELLS_OF_THE_EDIT = (
        "caption_tells_of_the_edit",
        "It describes one picture: no 'removed', 'changed to', 'now', 'without'.",
    )
    UNCHANGED = "caption_unchanged", "It differs from the caption of the picture as it is."
    NAMES_REMOVED_OBJECT = (
        "caption_names_removed_object",
        "Remove: it does not name the object, and its noun less often than the picture's own caption, if at all.",
    )
    LACKS_ADDED_OBJECT = "caption_lacks_added_object", "Add: it names what is added."


def check_edits(edits: Sequence[Mapping[str, str]], asked_for: Sequence[str]) -> list[list[str]]:
    """The rules that each edit (`prompt.EDIT_FIELDS`) of an answer breaks; of two of one type the second is bad."""
    seen: set[str] = set()
    found = []
    for edit in edits:
        reasons = _edit_reasons(edit)
        if edit["edit_type"] not in asked_for:
            reasons.insert(0, ProposalRule.TYPE_NOT_OFFERED)
        elif edit["edit_type"] in seen:
            reasons.insert(0, ProposalRule.TYPE_REPEATED)
        seen.add(edit["edit_type"])
        found.append(reasons)
    return found


def _edit_reasons(edit: Mapping[str, str]) -> list[str]:
    edit_type, name, instruction = edit["edit_type"], edit["object"], edit["instruction"]
    said, plain = words(instruction), _QUOTED.sub(" ", instruction)
    reasons = []
    if len(said) < MIN_WORDS:
        reasons.append(ProposalRule.TOO_SHORT)
    if len(said) > MAX_INSTRUCTION_WORDS:
        reasons.append(ProposalRule.TOO_LONG)
    if _SECOND_EDIT.search(plain):
        reasons.append(ProposalRule.NOT_SINGLE)
    if not words(name):
        reasons.append(ProposalRule.OBJECT_EMPTY)
    elif len(words(name)) > MAX_NAME_WORDS:
        reasons.append(ProposalRule.OBJECT_TOO_LONG)
    elif edit_type in OBJECT_TYPES and not all(
        any(alike(word, other) for other in said) for word in content_words(name)
    ):
        reasons.append(ProposalRule.OBJECT_NOT_IN_INSTRUCTION)
    if edit_type == "add":
        if _VAGUE_PLACE.search(plain):
            reasons.append(ProposalRule.PLACED_VAGUELY)
        elif not _PLACE.search(plain):
            reasons.append(ProposalRule.NOT_PLACED)
    return reasons


def check_caption(caption: str) -> list[str]:
    """The rules that the caption of the picture as it is breaks."""
    if len(words(caption)) < MIN_WORDS:
        return [CaptionRule.TOO_SHORT]
    return [CaptionRule.TOO_LONG] if len(caption) > MAX_CAPTION_LENGTH else []


def check_verdict(is_valid: bool, edited_caption: str, edit: Mapping[str, str], src_caption: str) -> list[str]:
    """The rules that a verdict on an edit breaks; `not_valid` alone where the model calls it so."""
    if not is_valid:
        return [VerdictRule.NOT_VALID]
    name, before, after = words(edit["object"]), words(src_caption), words(edited_caption)
    reasons = []
    if len(after) < MIN_WORDS:
        reasons.append(VerdictRule.TOO_SHORT)
    if len(edited_caption) > MAX_CAPTION_LENGTH:
        reasons.append(VerdictRule.TOO_LONG)
    if _TELLS_OF_THE_EDIT.search(_QUOTED.sub(" ", edited_caption)):
        reasons.append(VerdictRule.TELLS_OF_THE_EDIT)
    if before == after:
        reasons.append(VerdictRule.UNCHANGED)
    if edit["edit_type"] == "remove":
        noun = name[-1]
        if has_run(name, after) or after.count(noun) > max(0, before.count(noun) - 1):
            reasons.append(VerdictRule.NAMES_REMOVED_OBJECT)
    if edit["edit_type"] == "add" and not any(alike(name[-1], word) for word in after):
        reasons.append(VerdictRule.LACKS_ADDED_OBJECT)
    return reasons
