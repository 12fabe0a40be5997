"""What is read from answers besides the edit tuple, which test_prompt.py reads."""

import json

import pytest

from stages.caption.answers import read_fields, read_yes_or_no

FIELDS = {"reason": str, "is_unique": bool, "backgrounds": list}
ANSWER = {"reason": " one\n dog ", "is_unique": True, "backgrounds": ["on a  hill"]}


def test_fields_of_every_kind_are_read_and_texts_lose_their_line_breaks():
    assert read_fields(f"```json\n{json.dumps(ANSWER)}\n```", FIELDS) == ANSWER | {"reason": "one dog"}
    assert read_fields(json.dumps(ANSWER | {"reason": " "}), FIELDS, may_be_empty=("reason",))["reason"] == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reason": ""}, "empty_field:reason"),
        ({"reason": 3}, "not_text:reason"),
        ({"is_unique": "true"}, "not_true_or_false:is_unique"),
        ({"is_unique": 1}, "not_true_or_false:is_unique"),
        ({"backgrounds": "on a hill"}, "not_a_list:backgrounds"),
        ({"object": "dog"}, "extra_field:object"),
    ],
)
def test_a_wrong_field_is_named(change, reason):
    assert read_fields(json.dumps(ANSWER | change), FIELDS) == reason


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", True),
        ("  **No**, it is drawn.", False),
        ("yes.", True),
        ("<think>No? The frames are drawn. No.</think>\nYes", True),
        ("<think>Yes, it is", None),
        ("Yesterday", None),
        ("The answer is Yes", None),
        ("", None),
    ],
)
def test_yes_and_no(text, answer):
    assert read_yes_or_no(text) is answer
