"""The rules of edit tuples: every rule fires on the row that breaks it, and on nothing else."""

import dataclasses

import numpy as np
import pytest

from stages.caption.edits import rules
from stages.starter import world

REMOVE = {
    "edit_type": "remove",
    "src_caption": "A brown dog lies beside a red sofa in a living room with two tall windows.",
    "instruction": "Remove the brown dog beside the sofa.",
    "tgt_caption": "A red sofa in a living room with two tall windows.",
    "reverse_instruction": "Add a brown dog that lies beside the red sofa.",
}
COLOR = {
    "edit_type": "color",
    "src_caption": "A woman in a red coat waits at a stop in light snow with bare trees behind.",
    "instruction": "Change the color of the woman's coat to dark green.",
    "tgt_caption": "A woman in a dark green coat waits at a stop in light snow with bare trees behind.",
    "reverse_instruction": "Make the woman's dark green coat red.",
}
REPLACE = {
    "edit_type": "replace",
    "src_caption": "red circle top left and blue square bottom right on gray background",
    "instruction": "replace the red circle with a red triangle",
    "tgt_caption": "red triangle top left and blue square bottom right on gray background",
    "reverse_instruction": "replace the red triangle with a red circle",
}
TWO = {
    "edit_type": "replace",
    "src_caption": "blue circle top left and red circle bottom right on gray background",
    "instruction": "replace the red circle with a red triangle",
    "tgt_caption": "blue circle top left and red triangle bottom right on gray background",
    "reverse_instruction": "replace the red triangle with a red circle",
}
TWIN = {
    "edit_type": "color",
    "src_caption": "a red car and a blue car at a curb",
    "instruction": "make the blue car red",
    "tgt_caption": "a red car and a red car at a curb",
    "reverse_instruction": "make the red car blue",
}
ADD = {
    "edit_type": "add",
    "src_caption": "red circle top left on gray background",
    "instruction": "add a blue square bottom right",
    "tgt_caption": "red circle top left and blue square bottom right on gray background",
    "reverse_instruction": "remove the blue square",
}
STYLE = {
    "edit_type": "style",
    "src_caption": "A photorealistic view of a harbor with boats, houses and a lighthouse under a clear sky.",
    "instruction": "Turn the image into an oil painting.",
    "tgt_caption": "An oil painting of a harbor with boats, houses and a lighthouse under a clear sky.",
    "reverse_instruction": "Turn the oil painting into a photorealistic photo.",
}
GOOD = (REMOVE, COLOR, REPLACE, TWO, ADD, STYLE)
OFFERED = ("remove", "color", "replace", "add", "style")


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row["edit_type"])
def test_good_row_breaks_no_rule(row):
    assert rules.check(row, OFFERED) == []


@pytest.mark.parametrize(
    ("row", "change", "reason"),
    [
        (REMOVE, {"instruction": "  "}, "empty_field:instruction"),
        (REMOVE, {"edit_type": "shape"}, "edit_type_not_offered"),
        (REMOVE, {"tgt_caption": REMOVE["src_caption"]}, "captions_equal"),
        (COLOR, {"reverse_instruction": COLOR["instruction"]}, "instructions_equal"),
        (COLOR, {"tgt_caption": COLOR["tgt_caption"] * 12}, "too_long"),
        (COLOR, {"instruction": "Green"}, "too_short"),
        (
            COLOR,
            {
                "tgt_caption": "A woman in a coat that is now dark green waits at a stop in light snow, with "
                "parked cars and bare trees behind."
            },
            "target_tells_of_the_edit",
        ),
        (
            COLOR,
            {"tgt_caption": COLOR["tgt_caption"].replace("in a dark", "in a coat changed to dark")},
            "target_tells_of_the_edit",
        ),
        (REMOVE, {"tgt_caption": REMOVE["tgt_caption"][:-1] + " without a dog."}, "target_tells_of_the_edit"),
        (
            REMOVE,
            {"reverse_instruction": "Restore the brown dog beside the red sofa."},
            "reverse_not_self_contained",
        ),
        (REMOVE, {"reverse_instruction": "Undo the removal of the brown dog."}, "reverse_not_self_contained"),
        (
            COLOR,
            {"reverse_instruction": "Give the coat its original red color."},
            "reverse_not_self_contained",
        ),
        (COLOR, {"reverse_instruction": "Revert the green coat to red."}, "reverse_not_self_contained"),
        (REMOVE, {"instruction": "Make the room emptier."}, "object_not_found"),
        (REMOVE, {"instruction": "Remove the white cat."}, "object_not_in_source"),
        (
            REMOVE,
            {"tgt_caption": "A brown dog and a red sofa in a living room with two tall windows."},
            "old_object_in_target",
        ),
        (
            ADD,
            {"tgt_caption": "red circle top left and blue triangle bottom right on gray background"},
            "added_object_not_in_target",
        ),
        (ADD, {"reverse_instruction": "remove the green square"}, "reverse_names_another_object"),
        (
            REPLACE,
            {"reverse_instruction": "replace the red square with a red circle"},
            "reverse_names_another_object",
        ),
        (
            REPLACE,
            {"tgt_caption": "red triangle top left and green square bottom right on gray background"},
            "target_has_unexplained_words",
        ),
        (
            REPLACE,
            {"tgt_caption": "red triangle top left and square bottom right on gray background"},
            "source_words_lost",
        ),
        (
            TWO,
            {"tgt_caption": "blue triangle top left and red triangle bottom right on gray background"},
            "target_has_unexplained_words",
        ),
        (TWO, {"src_caption": TWO["src_caption"].replace("blue", "red")}, "object_ambiguous"),
        (TWIN, {}, "target_has_twins"),
        (
            ADD,
            {
                "src_caption": ADD["tgt_caption"].replace("red circle", "blue square"),
                "tgt_caption": "blue square top left and blue square bottom right on gray background",
            },
            "reverse_ambiguous",
        ),
        (COLOR, {"instruction": "Change the coat of the woman."}, "instruction_does_not_lead_to_target"),
        (
            COLOR,
            {"reverse_instruction": "Make the coat of the woman yellow."},
            "reverse_does_not_lead_to_source",
        ),
    ],
)
def test_rule_fires(row, change, reason):
    assert reason in rules.check({**row, **change}, OFFERED)


@pytest.mark.parametrize(
    ("instruction", "names"),
    [
        ("Turn it into a watercolour painting", True),
        ("Make it look like a photograph", True),
        ("Rebuild the scene from LEGO", True),
        ("Give it the look of film noir", False),
        ("Turn it into an oil painting", False),  # one of all, but not of those on offer
    ],
)
def test_a_style_edit_names_a_style_on_offer(instruction, names):
    row = {
        "edit_type": "style", "src_caption": "a dog on a hill", "instruction": instruction,
        "tgt_caption": "a dog on a hill, in another style", "reverse_instruction": "Turn it into a photo",
    }  # fmt: skip
    broken = rules.check(row, ["style"], ("watercolor", "photorealistic", "Lego bricks"))
    assert ("style_not_offered" in broken) != names
    assert "style_not_offered" not in rules.check(row, ["style"])
    assert rules.names_style("paint it", ("painting",)) and "style_not_offered" not in rules.check(COLOR, OFFERED, ())


def test_what_a_rule_is_not_about_is_not_applicable():
    """A rule that is not applicable never fires; all others can."""
    assert {"object_not_found", "reverse_ambiguous", "style_not_offered"} < rules.not_applicable("material", [])
    assert "target_has_twins" not in rules.not_applicable("color", [])
    assert rules.not_applicable("remove", []) == {
        "style_not_offered", "added_object_not_in_target", "reverse_ambiguous", "target_has_twins"
    }  # fmt: skip
    unnamed = rules.check({**REMOVE, "instruction": "Make it empty."}, OFFERED)
    assert {"object_not_in_source", "object_ambiguous"} < rules.not_applicable("remove", unnamed)
    for row in GOOD:
        for change in GOOD:
            reasons = rules.check({**row, "edit_type": change["edit_type"]}, OFFERED, ("anime",))
            assert rules.not_applicable(change["edit_type"], reasons).isdisjoint(reasons)


def test_words_that_only_look_forbidden_pass():
    row = {**COLOR, "src_caption": COLOR["src_caption"].replace("light snow", "knowing snowfall")}
    row["tgt_caption"] = COLOR["tgt_caption"].replace("light snow", "knowing snowfall")
    assert rules.check(row, OFFERED) == []


@pytest.mark.parametrize(
    ("edit_type", "instruction", "name"),
    [
        ("remove", "Remove the brown dog beside the sofa.", "brown dog"),
        ("remove", "Please take out all of the parked cars, please", "parked cars"),
        ("add", "Add a small red boat to the lake.", "small red boat"),
        ("replace", "Replace the two cats with a fox", "cats"),
        ("replace", "turn the car into a bus", "car"),
        ("color", "make the red circle blue", ""),
        ("remove", "make it empty", ""),
    ],
)
def test_find_object(edit_type, instruction, name):
    assert rules.find_object(edit_type, instruction) == name


def test_another_object_of_the_kind_may_stay():
    row = {
        "edit_type": "remove",
        "src_caption": "red circle top left and blue circle top right on teal background",
        "instruction": "remove the red circle",
        "tgt_caption": "blue circle top right on teal background",
        "reverse_instruction": "add a red circle top left",
    }
    assert rules.check(row, ["remove"]) == []


def test_true_edits_of_the_scene_world_pass_and_wrong_targets_do_not():
    generator = np.random.default_rng(0)
    caught, wrong = 0, 0
    for _ in range(400):
        edit = world.sample_edit(world.sample_scene(generator), generator)
        row = {f.name: getattr(edit, f.name) for f in dataclasses.fields(edit) if f.name in rules.FIELDS}
        assert rules.check(row, world.EDIT_TYPES) == [], row
        assert rules.find_object(edit.edit_type, edit.instruction) in (edit.object, "")
        other = world.sample_edit(edit.source, generator)
        if other.tgt_caption != edit.tgt_caption:
            wrong += 1
            caught += rules.check({**row, "tgt_caption": other.tgt_caption}, world.EDIT_TYPES) != []
    assert caught / wrong > 0.9
