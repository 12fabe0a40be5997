"""What the vision-language model is asked about an edit, and the right answers (NP-Edit, section 4.2, appendix E).

Two questions per edit: was it done, and did the rest stay as it was? A removal is judged by the edited image alone:
does it still have the object? Imports no torch: the templates are part of a stage's configuration.
"""

from __future__ import annotations

import dataclasses
import string
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.errors import UserError

_FIELDS = {
    "edit_done": {"instruction"},
    "rest_same": {"instruction"},
    "has_object": {"object"},
    "new_setting": {"object"},
    "same_object": {"object"},
}
_OPTIONAL_FIELDS = {"new_setting": {"instruction"}}
CUSTOMIZATION = "customization"  # the edit type whose rows ask for the main object in another setting
_PAIR = (
    "You look at edited pictures with the trained eye of an artist and retoucher. "
    "The first image is the original, the second one is what an editor made of it.\n"
)
_ANSWER = "\nAnswer with one word, Yes or No."


class QuestionTemplates(BaseModel):
    """The words of the questions, each with the one field that it needs; the defaults are for general models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    edit_done: str = Field(
        _PAIR + "The editor was told: {instruction}\nDoes the second image show this change?"
        "\nAn edit can fail and leave both images alike: the answer is No then." + _ANSWER,
        description="was the edit done? right: Yes; {instruction}",
    )
    rest_same: str = Field(
        _PAIR + "Disregard every difference that this edit brings about: {instruction}"
        "\nApart from it, has nothing else changed from the first image to the second?" + _ANSWER,
        description="is all the rest identical? right: Yes; {instruction}",
    )
    has_object: str = Field(
        "You describe pictures with the trained eye of an artist. You see one image."
        "\nCan this be seen in it: {object}?" + _ANSWER,
        description="asked of the edited image alone after a removal; right: No; {object}",
    )
    new_setting: str = Field(
        _PAIR + "Is the {object} of the first image seen in the second one in another place and another pose?"
        "\nThe second image may have lost it: the answer is No then." + _ANSWER,
        description="customization, was it put elsewhere? right: Yes; {object}, and {instruction} if wanted",
    )
    same_object: str = Field(
        _PAIR + "Is the {object} in the second image the very one of the first image, alike in shape, color, "
        "material and every mark?" + _ANSWER,
        description="customization, is it the same thing? right: Yes; {object}",
    )

    @field_validator(*_FIELDS)
    @classmethod
    def _has_its_field(cls, text: str, info) -> str:
        needed, optional = _FIELDS[info.field_name], _OPTIONAL_FIELDS.get(info.field_name, set())
        found = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        if not needed <= found <= needed | optional:
            names = ", ".join(f"{{{name}}}" for name in sorted(needed))
            rest = "".join(f", and if wanted {{{name}}}," for name in sorted(optional))
            raise ValueError(f"the template must hold {names}{rest} and no other field")
        return text


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about (source, edited) or about the edited image alone; `right` is True where Yes is right."""

    text: str
    images: Literal["pair", "edited"]
    right: bool


def local_questions(
    edit_type: str, instruction: str, object: str | None = None, templates: QuestionTemplates = QuestionTemplates()
) -> tuple[Question, ...]:
    """Edit verification and identity preservation for a local edit (appendix E.1); a removal needs its `object`."""
    if edit_type == "remove":
        if not object:
            raise UserError(
                f'The removal "{instruction}" does not say which object goes, and the question about a removal asks '
                "for that object; give the row an object, or leave removals out of the edit types."
            )
        done = Question(templates.has_object.format(object=object), "edited", right=False)
    else:
        done = Question(templates.edit_done.format(instruction=instruction), "pair", right=True)
    return done, Question(templates.rest_same.format(instruction=instruction), "pair", right=True)


def customization_questions(
    instruction: str, object: str | None, templates: QuestionTemplates = QuestionTemplates()
) -> tuple[Question, ...]:
    """Is the object of the source seen elsewhere in the edit, and is it the same one (appendix E.2)?"""
    if not object:
        raise UserError(
            f'The customization "{instruction}" does not say which object is shown anew, and its questions ask for '
            "that object; give the row an object."
        )
    moved = templates.new_setting.format(object=object, instruction=instruction)
    return Question(moved, "pair", right=True), Question(
        templates.same_object.format(object=object), "pair", right=True
    )


def edit_questions(
    edit_type: str, instruction: str, object: str | None = None, templates: QuestionTemplates = QuestionTemplates()
) -> tuple[Question, ...]:
    """What is asked about a row: was the edit done, and is the rest, or of a customization the object, the same?"""
    if edit_type == CUSTOMIZATION:
        return customization_questions(instruction, object, templates)
    return local_questions(edit_type, instruction, object, templates)
