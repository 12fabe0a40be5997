"""The examples that a request shows."""

import re

import pytest

from stages.caption.proposals import prompt
from stages.caption.proposals.rules import check_edits
from tests.stages.caption.proposals.examples import TYPES, edit_of


def test_examples_are_one_of_each_type_and_vary():
    assert all(len(found) > 2 for found in prompt.good_examples().values())
    shown = [prompt.choose_examples(TYPES[:4], seed) for seed in range(30)]
    assert {tuple(found) for found in shown} == {TYPES[:4]} and len({found["color"] for found in shown}) > 2
    text = prompt.proposal_text(TYPES[:4], shown[0])
    assert all(f"- {name}: {instruction}\n" in text for name, instruction in shown[0].items())
    assert "Examples of good" not in prompt.proposal_text(TYPES[:4])
    with pytest.raises(ValueError, match="not size"):
        prompt.proposal_text(["size"])


def test_all_good_examples_keep_the_rules():
    for edit_type, instructions in prompt.good_examples().items():
        for words in instructions:
            noun = re.sub(r"^(?:add a|remove the|take away the|replace the) ", "", words).split(" ")[0]
            edit = edit_of(edit_type, noun, words)
            assert check_edits([edit], tuple(prompt.good_examples())) == [[]], words
