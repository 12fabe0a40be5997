"""ImgEdit-Bench's judge: a rubric for each type of edit, and three whole numbers."""

import pytest

from cluster.chat import ChatReply
from stages.evaluate.imgedit_scores import item_score
from stages.evaluate.judges.imgedit.judge import EDIT_TYPES, ImgEdit, parse
from stages.evaluate.judges.judge import EditToJudge
from stages.ingest.benchmarks.listing import published

GOOD = "Reason: the hat sits well.\nFirst: 5\nSecond: 4\nThird: 4"


def asked(edit_type):
    (call,) = ImgEdit().calls(EditToJudge("m/1", b"source", b"edited", "add a {red} hat", edit_type))
    return call


def test_one_call_with_both_pictures_and_then_the_words():
    call = asked("add")
    assert call.name == "imgedit" and call.schema is None and call.logprobs is None
    assert [part.get("image") for part in call.content] == [b"source", b"edited", None]
    text = call.content[-1]["text"]
    assert text.endswith("Instruction: add a {red} hat") and "Something is to be added." in text
    assert "{rubric}" not in text and "{instruction}" not in text


def test_every_type_of_the_benchmark_has_a_rubric_of_its_own():
    assert set(EDIT_TYPES) == set(published("imgedit").by_type) == ImgEdit().edit_types
    texts = {asked(name).content[-1]["text"] for name in EDIT_TYPES}
    assert len(texts) == 9
    for text in texts:
        assert all(f"\n{place}, " in text for place in ("First", "Second", "Third"))
        assert all(text.count(f" {number}: ") == 3 for number in range(1, 6))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (GOOD, [5, 4, 4]),
        (f"```\n{GOOD}\n```", [5, 4, 4]),
        (f"<think>First: 1\nSecond: 1</think>\n{GOOD}", [5, 4, 4]),
        ("Brief reasoning: no: 3 hats.\nPrompt Compliance: 1\nVisual Naturalness: 2\nPhysical & Detail: 3", [1, 2, 3]),
        ("First: 5\nSecond: 4", "not_three_scores"),
        (GOOD + "\nFourth: 4", "not_three_scores"),
        ("Reason: 3\nFirst: 5\nSecond: 4\nThird: 4", "not_three_scores"),
        ("First: 0\nSecond: 4\nThird: 4", "score_out_of_range"),
        ("First: 6\nSecond: 4\nThird: 4", "score_out_of_range"),
        (f"First: {'5' * 5000}\nSecond: 4\nThird: 4", "score_out_of_range"),
        ("First: 4.5\nSecond: 4/5\nThird: -4", "no_score"),
        ("five, four and four", "no_score"),
        ("", "no_score"),
    ],
)
def test_parse(text, numbers):
    assert parse(text) == numbers


def test_the_score_is_the_mean_of_three_to_two_decimals():
    judge = ImgEdit()
    columns = judge.read("imgedit", ChatReply("", GOOD))
    assert columns == {"judge_imgedit_first": 5, "judge_imgedit_second": 4, "judge_imgedit_third": 4}
    assert judge.score(columns) == {"judge_imgedit": 4.33}  # 13 / 3
    assert judge.score(columns)["judge_imgedit"] == item_score(GOOD)  # as the official script has it
    assert judge.score({"judge_imgedit_first": 5.0}) == {}
    assert judge.read("imgedit", ChatReply("", "First: 5\nSec", "length")) == "truncated"
    assert judge.read("imgedit", ChatReply("", f"{GOOD}\nOr rather", "length")) == "truncated"
