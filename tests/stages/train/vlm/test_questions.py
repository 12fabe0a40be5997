import pytest
from pydantic import ValidationError

from cluster.errors import UserError
from stages.train.vlm.questions import QuestionTemplates, edit_questions, local_questions


def test_an_edit_is_asked_for_on_the_pair_and_so_is_the_rest():
    done, rest = local_questions("color", "make the car {red}")
    assert (done.images, done.right, rest.images, rest.right) == ("pair", True, "pair", True)
    assert "make the car {red}" in done.text and "make the car {red}" in rest.text and done.text != rest.text


def test_a_removal_asks_the_edited_image_alone_whether_it_has_the_object():
    gone, rest = local_questions("remove", "take the lamp away", "the lamp")
    assert (gone.images, gone.right) == ("edited", False) and "the lamp" in gone.text
    assert "take the lamp away" not in gone.text and (rest.images, rest.right) == ("pair", True)
    with pytest.raises(UserError, match='"take the lamp away" does not say which object'):
        local_questions("remove", "take the lamp away")


def test_a_customization_asks_whether_the_object_is_elsewhere_and_still_the_same():
    moved, same = edit_questions("customization", "show it on a beach", "red kite")
    assert (moved.images, moved.right, same.images, same.right) == ("pair", True, "pair", True)
    assert "red kite" in moved.text and "red kite" in same.text and moved.text != same.text
    assert "show it on a beach" not in moved.text  # unless the template asks for it
    templates = QuestionTemplates(new_setting="{object}: {instruction}?")
    assert (
        edit_questions("customization", "show it on a beach", "kite", templates)[0].text == "kite: show it on a beach?"
    )
    with pytest.raises(UserError, match='"show it on a beach" does not say which object'):
        edit_questions("customization", "show it on a beach")
    assert edit_questions("remove", "take it away", "kite") == local_questions("remove", "take it away", "kite")


def test_templates_are_checked_when_they_are_set():
    templates = QuestionTemplates(edit_done="Done: {instruction}?")
    assert local_questions("add", "add a hat", templates=templates)[0].text == "Done: add a hat?"
    for wrong in ("Done?", "{object}", "{instruction} {object}", "{}"):
        with pytest.raises(ValidationError, match="must hold {instruction} and no other field"):
            QuestionTemplates(edit_done=wrong)
    with pytest.raises(ValidationError):
        QuestionTemplates(edit_was_done="{instruction}")
