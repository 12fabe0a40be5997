"""VIEScore's subject task: what is asked, and which columns its numbers fill."""

import json
import math

import pytest

from cluster.chat import ChatReply
from stages.evaluate.judges.judge import EditToJudge
from stages.evaluate.judges.viescore import prompt
from stages.evaluate.judges.viescore_subject.judge import SubjectVIEScore

EDIT = EditToJudge("m/1", b"reference", b"picture", "Show it {elsewhere}: a dog in a forest")


def test_sc_sees_reference_and_picture_and_pq_the_picture_alone():
    sc, pq = SubjectVIEScore().calls(EDIT)
    assert [part.get("image") for part in sc.content] == [b"reference", b"picture", None]
    assert sc.content[-1]["text"].endswith("Prompt: Show it {elsewhere}: a dog in a forest")
    assert '{"score": [prompt_following, identity]' in sc.content[-1]["text"]
    assert [part.get("image") for part in pq.content] == [b"picture", None]
    assert pq.content[-1]["text"] == prompt.pq_text()
    assert (sc.name, pq.name) == ("sc", "pq") and sc.schema == pq.schema == prompt.answer_schema()


def test_dreambooths_own_prompt_is_shown_where_there_is_one():
    edit = EditToJudge("m/1", b"", b"", "Show it elsewhere", about={"prompt": "a dog in a forest"})
    assert SubjectVIEScore().calls(edit)[0].content[-1]["text"].endswith("\nPrompt: a dog in a forest")


def test_columns():
    judge = SubjectVIEScore()
    columns = judge.read("sc", ChatReply("", json.dumps({"score": [9, 3]})))
    assert columns == {"judge_prompt_following": 9, "judge_identity": 3}
    assert judge.score(columns) == {}
    columns |= judge.read("pq", ChatReply("", '```json\n{"score": [6, 8], "reasoning": "x"}\n```'))
    assert columns == {
        "judge_prompt_following": 9, "judge_identity": 3, "judge_naturalness": 6, "judge_artifacts": 8,
    }  # fmt: skip
    assert judge.score(columns) == {"judge_overall": pytest.approx(math.sqrt(3 * 6))}


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ('{"score": [9, 3, 4]}', "stop", "score_not_two_numbers"),
        ('{"score": [9, 12]}', "stop", "score_out_of_range"),
        ('{"score": [9', "length", "truncated"),
    ],
)
def test_what_cannot_be_read(text, finish_reason, reason):
    assert SubjectVIEScore().read("sc", ChatReply("", text, finish_reason)) == reason
