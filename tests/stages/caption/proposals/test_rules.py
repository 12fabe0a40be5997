"""What is asked of an edit that a model proposes, and of its verdict."""

import pytest

from stages.caption.proposals.rules import VerdictRule, check_edits, check_verdict
from tests.stages.caption.proposals.examples import EDITED, SOURCE, TYPES, edit_of


@pytest.mark.parametrize(
    ("edit", "reasons"),
    [
        *[(edit_of(edit_type), []) for edit_type in TYPES],
        (edit_of("text"), ["type_not_offered"]),
        (edit_of("color", instruction="blue"), ["too_short"]),
        (edit_of("style", instruction="turn it " * 13), ["too_long"]),
        (edit_of("color", instruction="make the red car blue and then wash it"), ["not_single"]),
        (edit_of("color", instruction="make the red car blue. Paint the wall green."), ["not_single"]),
        (edit_of("color", instruction="make the red car blue and remove the dog"), ["not_single"]),
        (edit_of("color", instruction='write "And then there; were none" on the red car'), []),
        (edit_of("background", object=""), ["object_empty"]),
        (edit_of("remove", object=" ."), ["object_empty"]),
        (edit_of("color", object="the big red car that stands there"), ["object_too_long"]),
        (edit_of("remove", object="gray dog"), ["object_not_in_instruction"]),
        (edit_of("color", object="vehicle"), []),
        (edit_of("add", instruction="add a kite"), ["not_placed"]),
        (edit_of("add", instruction="add a kite next to the tree"), ["placed_vaguely"]),
        (edit_of("add", instruction="add a kite near the top of the tree"), ["placed_vaguely"]),
        (edit_of("remove", instruction="remove the brown dog near the tree"), []),
        (edit_of("add", object="red circle", instruction="add a red circle top left"), []),
    ],
)
def test_edits(edit, reasons):
    assert check_edits([edit], TYPES) == [reasons]


def test_of_two_edits_of_one_type_the_second_is_bad():
    edits = [edit_of("color"), edit_of("add"), edit_of("color", instruction="make the red car green")]
    assert check_edits(edits, TYPES) == [[], [], ["type_repeated"]]


@pytest.mark.parametrize(
    ("edit_type", "caption", "reasons"),
    [
        *[(edit_type, EDITED[edit_type], []) for edit_type in TYPES],
        ("color", "Car.", ["edited_caption_too_short"]),
        ("color", "A blue car. " * 80, ["edited_caption_too_long"]),
        ("color", SOURCE.upper(), ["caption_unchanged"]),
        ("color", "A car that was changed to blue.", ["caption_tells_of_the_edit"]),
        ("color", "The car is now blue.", ["caption_tells_of_the_edit"]),
        ("remove", "A car from which the cat was removed.", ["caption_tells_of_the_edit"]),
        ("remove", "A car without company.", ["caption_tells_of_the_edit"]),
        ("color", 'A sign that reads "Do not remove" on a blue car.', []),
        ("remove", "A brown dog and a red car.", ["caption_names_removed_object"]),
        ("remove", "A dog and a red car.", ["caption_names_removed_object"]),
        ("add", "A brown dog and a red car.", ["caption_lacks_added_object"]),
    ],
)
def test_verdicts(edit_type, caption, reasons):
    assert check_verdict(True, caption, edit_of(edit_type), SOURCE) == reasons


def test_another_object_of_the_removed_ones_kind_may_stay():
    edit = edit_of("remove", "red circle", "remove the red circle")
    before = "red circle top left and blue circle top right on gray background"
    assert check_verdict(True, "blue circle top right on gray background", edit, before) == []
    assert check_verdict(True, before.replace("gray", "pink"), edit, before) == [VerdictRule.NAMES_REMOVED_OBJECT]
    assert check_verdict(False, "", edit, before) == ["not_valid"]
