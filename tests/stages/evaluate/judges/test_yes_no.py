"""NP-Edit's questions as a judge: which are asked of an item, and how probable the right answer is."""

import math

import pytest

from cluster.chat import ChatReply
from stages.evaluate.judges.judge import EditToJudge
from stages.evaluate.judges.yes_no.judge import YesNo, p_yes
from stages.starter import vlm_questions


def asked(edit_type="color", **about):
    edit = EditToJudge("m/1", b"source", b"edited", "do {it}", edit_type, about)
    calls = YesNo().calls(edit)
    assert all((call.schema, call.max_tokens, call.logprobs) == (None, 1, 20) for call in calls)
    return {call.name: [part.get("image") or part["text"] for part in call.content] for call in calls}


def test_an_edit_is_asked_about_with_both_pictures_in_the_words_that_the_starters_model_knows():
    assert asked() == {
        "edit_done": [b"source", b"edited", vlm_questions.EDIT_DONE.format(instruction="do {it}")],
        "rest_same": [b"source", b"edited", vlm_questions.REST_SAME.format(instruction="do {it}")],
    }
    assert list(asked("remove")) == ["edit_done", "rest_same"]  # nothing says what goes


def test_a_removal_of_a_named_object_is_asked_about_in_the_edit_alone():
    questions = asked("remove", object="red cup")
    assert questions["has_object"] == [b"edited", vlm_questions.HAS_OBJECT.format(object="red cup")]
    assert list(questions) == ["has_object", "rest_same"]


@pytest.mark.parametrize("about", [{"object": "dog", "setting": "a forest"}, {"class": "dog", "prompt": "a forest"}])
def test_customization(about):
    assert asked("live", **about) == {
        "new_setting": [b"source", b"edited", vlm_questions.NEW_SETTING.format(object="dog", setting="a forest")],
        "same_object": [b"source", b"edited", vlm_questions.SAME_OBJECT.format(object="dog")],
    }


def logprobs(**shares):
    return {token.replace("_", " "): math.log(share) for token, share in shares.items()}


def test_probabilities_by_hand():
    assert p_yes(logprobs(Yes=0.6, No=0.2, Maybe=0.2)) == pytest.approx(0.75)
    assert p_yes(logprobs(Yes=0.3, yes=0.1, _Yes=0.2, NO=0.2)) == pytest.approx(0.75)
    assert p_yes(logprobs(Yes=0.6)) == 1 and p_yes(logprobs(No=0.6)) == 0
    assert p_yes(logprobs(Maybe=0.6)) is None and p_yes({}) is None


def test_columns():
    judge = YesNo()

    def said(yes):
        return ChatReply("", "Yes", "length", logprobs=logprobs(Yes=yes, No=1 - yes))

    assert judge.read("edit_done", said(0.75)) == {"judge_p_done": pytest.approx(0.75)}
    assert judge.read("has_object", said(0.75)) == {"judge_p_done": pytest.approx(0.25)}  # right is No
    assert judge.read("same_object", said(0.5)) == {"judge_p_kept": pytest.approx(0.5)}
    assert judge.score({"judge_p_done": 0.25}) == {}
    # NP-Edit's eq. 4: the loss is -log of each right answer's probability, summed
    loss = -math.log(0.75) - math.log(0.5)
    both = judge.score({"judge_p_done": 0.75, "judge_p_kept": 0.5})
    assert both == {"judge_p_right": pytest.approx(math.exp(-loss))}
    assert judge.read("edit_done", ChatReply("", "Well", logprobs=logprobs(Well=1.0))) == "neither_yes_nor_no"
    assert judge.read("edit_done", ChatReply("", "Yes")) == "no_logprobs"
