import pytest
from pydantic import ValidationError

from cluster.errors import UserError
from stages.train.vlm.questions import QuestionTemplates, local_questions


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


def test_templates_are_checked_when_they_are_set():
    templates = QuestionTemplates(edit_done="Done: {instruction}?")
    assert local_questions("add", "add a hat", templates=templates)[0].text == "Done: add a hat?"
    for wrong in ("Done?", "{object}", "{instruction} {object}", "{}"):
        with pytest.raises(ValidationError, match="must hold {instruction} and no other field"):
            QuestionTemplates(edit_done=wrong)
    with pytest.raises(ValidationError):
        QuestionTemplates(edit_was_done="{instruction}")
