import json

import pytest

from cluster.chat import ChatReply
from cluster.errors import UserError
from stages.evaluate.perception import tifa_prompt
from stages.evaluate.perception.settings import TifaSettings
from stages.evaluate.perception.tifa import (
    PictureToAsk,
    Question,
    ask_pictures,
    own_questions,
    read_question_file,
    write_questions,
)
from tests.stages.evaluate.test_judge_calls import ScriptedEngine

CAT, MAT, DOG = Question("Is there a cat?"), Question("Is there a mat?"), Question("Is there a dog?", "No")


def text_of(request):
    return request.messages[0]["content"][-1]["text"]


def ask(script, *pictures, max_attempts=3):
    engine = ScriptedEngine(lambda request, attempt: ChatReply(request.key, script(request, attempt), "stop"))
    return dict(ask_pictures(engine, pictures, max_attempts=max_attempts)), engine


def test_the_share_of_right_answers():
    says = {"cat": "Yes", "mat": "no, it is a rug.", "dog": " No"}
    found, engine = ask(
        lambda request, _: next(reply for word, reply in says.items() if f"a {word}?" in text_of(request)),
        PictureToAsk("byg/1", b"png", (CAT, MAT, DOG)),
        PictureToAsk("byg/2", b"other", (DOG,)),
    )
    assert found["byg/1"]["tifa"] == pytest.approx(2 / 3) and found["byg/1"]["unscored"] is None
    assert json.loads(found["byg/1"]["tifa_answers"])[1] == ["Is there a mat?", "Yes", "no, it is a rug."]
    assert found["byg/2"]["tifa"] == 1
    assert len(engine.asked) == 4 and all(request.temperature == 0 for request in engine.asked)
    assert {request.messages[0]["content"][0]["image"] for request in engine.asked} == {b"png", b"other"}


def test_a_reply_that_cannot_be_read_is_asked_for_again_then_unscored():
    found, engine = ask(lambda request, attempt: "Perhaps" if attempt < 2 else "Yes", PictureToAsk("a", b"", (CAT,)))
    assert found["a"]["tifa"] == 1
    assert [request.temperature for request in engine.asked] == pytest.approx([0, 0.3, 0.6])
    found, engine = ask(
        lambda request, _: "Perhaps" if "mat" in text_of(request) else "Yes", PictureToAsk("a", b"", (CAT, MAT))
    )
    assert "tifa" not in found["a"] and found["a"]["unscored"] == "tifa: neither Yes nor No: 'Perhaps'"
    assert len(engine.asked) == 4


def test_a_requests_own_error_is_final():
    engine = ScriptedEngine(lambda request, attempt: ChatReply(request.key, error="image: broken"))
    found = dict(ask_pictures(engine, [PictureToAsk("a", b"", (CAT,))], max_attempts=3))
    assert len(engine.asked) == 1 and "image: broken" in found["a"]["unscored"]


def test_questions_are_written_from_the_caption():
    def script(request, attempt):
        if "snow" in text_of(request):
            return ChatReply(request.key, "no JSON", "stop")
        return ChatReply(request.key, json.dumps({"questions": ["Is it red?", "Is it red?", " A cat? "]}), "stop")

    engine = ScriptedEngine(script)
    captions = {"1": "a red {cat}", "2": "snow"}
    found = write_questions(engine, captions, num_questions=5, max_attempts=2)
    assert found == {"1": (Question("Is it red?"), Question("A cat?")), "2": ()}
    first = next(request for request in engine.asked if request.key == "1")
    assert "a red {cat}" in text_of(first) and "at most 5" in text_of(first)
    assert first.schema["properties"]["questions"]["maxItems"] == 5
    assert sum(request.key == "2" for request in engine.asked) == 2


def test_a_file_of_questions(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"1": ["Is there a cat?", {"question": "Is there a dog?", "answer": "no"}], "2": []}))
    assert read_question_file(str(path), "evaluate") == {"1": (CAT, DOG), "2": ()}
    for content, message in (
        ("[1]", "evaluate.perception.tifa.questions = .*no object"),
        ('{"1": [{"question": "How many?", "answer": "two"}]}', "'1': it has a question with the answer 'two'"),
        ('{"1": [""]}', "'1': it has .* is no question"),
        ('{"1": 5}', "'1': it has '5' for questions, which is no list"),
        ('{"1": "Is there a cat?"}', "'1': it has 'Is there a cat.' for questions, which is no list"),
        ("{", "can't be read"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_question_file(str(path), "evaluate")
    with pytest.raises(UserError, match="can't be read"):
        read_question_file(str(tmp_path / "none.json"), "evaluate")


def test_an_items_own_questions():
    asked = ["Is there a cat?", {"question": " Is there a dog? ", "answer": "no"}]
    assert own_questions(json.dumps({"questions": asked, "class": "cat"})) == (CAT, DOG)
    assert own_questions('{"questions": []}') == ()
    for metadata in (None, "", "{", "[1]", "{}", '{"questions": null}'):
        assert own_questions(metadata) is None
    for questions, message in (
        ("Is there a cat?", "'Is there a cat\\?' for questions, which is no list"),
        ([{"text": "a cat?"}], "which is no question"),
        ([{"question": "How many?", "answer": "two"}], "the answer 'two'"),
        ([" "], "which is no question"),
    ):
        with pytest.raises(ValueError, match=message):
            own_questions(json.dumps({"questions": questions}))


def test_the_words_of_the_question_may_be_given():
    seen = []
    engine = ScriptedEngine(lambda request, _: seen.append(text_of(request)) or ChatReply(request.key, "Yes", "stop"))
    pictures = [PictureToAsk("a", b"", (Question("Is {x} there?"),))]
    for words in ("", "{question}", "Say: {question}"):
        list(ask_pictures(engine, pictures, max_attempts=1, answer_prompt=words))
    assert "Look at the picture" in seen[0] and "Is {x} there?" in seen[0]
    assert seen[1:] == ["Is {x} there?", "Say: Is {x} there?"]
    assert len({tifa_prompt.prompt_hash(words) for words in ("", "{question}")}) == 2
    with pytest.raises(ValueError, match="no {question}"):
        TifaSettings(engine={"model": "some/vlm"}, answer_prompt="Is it?")


@pytest.mark.parametrize(
    "text, answer",
    [("Yes", "Yes"), ('"no"', "No"), (" yes, it is", "Yes"), ("NO.", "No"), ("Nothing", None), ("", None)],
)
def test_an_answer_is_its_first_word(text, answer):
    assert tifa_prompt.read_answer(text) == answer


def test_replies_that_are_no_questions():
    for text in ("", "[]", '{"questions": []}', '{"questions": [1]}', '{"questions": "a"}', '{"questions": [" "]}'):
        assert tifa_prompt.read_questions(text, 3) is None
    assert tifa_prompt.read_questions('{"questions": ["a", "b", "c", "d"]}', 3) == ["a", "b", "c"]
