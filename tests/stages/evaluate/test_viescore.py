"""VIEScore's two calls: what is asked, how answers are read, how scores combine."""

import json

import pytest

from cluster.chat import ChatReply
from stages.evaluate.judges.viescore import prompt
from stages.evaluate.judges.viescore.judge import VIEScore

TEXT = json.dumps({"score": [8, 3], "reasoning": "Done, but the cup is gone."})


def test_sc_shows_source_then_edited_then_instruction():
    messages, schema = prompt.build_sc_chat(b"source", b"edited", 'write "{x}" on it')
    first, second, text = messages[0]["content"]
    assert (first["image"], second["image"]) == (b"source", b"edited")
    assert text["text"].endswith('Instruction: write "{x}" on it')
    assert '{"score": [success, over_editing]' in text["text"]
    assert schema["properties"]["score"]["maxItems"] == 2


def test_pq_shows_the_edited_image_alone():
    content = prompt.build_pq_chat(b"edited")[0][0]["content"]
    assert [part["type"] for part in content] == ["image", "text"] and content[0]["image"] == b"edited"


@pytest.mark.parametrize(
    "answer",
    [TEXT, f"```json\n{TEXT}\n```", f'<think>maybe {{"score": [0, 0]}}</think> {TEXT}', f"So: {TEXT}."],
)
def test_parse_reads_scores(answer):
    assert prompt.parse(answer) == prompt.Scores(8.0, 3.0, "Done, but the cup is gone.")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no_json"),
        ("8 out of 10", "no_json"),
        ("<think>" + TEXT, "no_json"),
        ('{"reasoning": "fine"}', "no_score"),
        ('{"score": 8}', "score_not_two_numbers"),
        ('{"score": [8]}', "score_not_two_numbers"),
        ('{"score": ["8", 3]}', "score_not_two_numbers"),
        ('{"score": [true, 3]}', "score_not_two_numbers"),
        ('{"score": [11, 3]}', "score_out_of_range"),
        ('{"score": [NaN, 3]}', "score_out_of_range"),
        ('{"score": [Infinity, 3]}', "score_out_of_range"),
        # a judge that repeats itself
        ('{"score": [1%s, 3]}' % ("0" * 400), "score_out_of_range"),  # no float has so many digits
        ('{"score": [1%s, 3]}' % ("0" * 5000), "no_json"),  # Python reads no such number
        ('{"score": %s}' % ("[" * 5000), "no_json"),
    ],
)
def test_unreadable_answers_stay_unscored(answer, reason):
    assert prompt.parse(answer) == reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (f"Perhaps {TEXT}, but", "truncated"),  # thoughts whose <think> stands in the prompt: a draft is no answer
        (f"<think>Perhaps {TEXT}", "truncated while thinking"),
        ('<think>So.</think>{"score": [8', "truncated"),
        ("", "truncated"),  # a server keeps thoughts apart
    ],
)
def test_what_was_cut_off_is_no_answer(answer, reason):
    assert VIEScore().read("sc", ChatReply("", answer, "length")) == reason


def test_an_answer_after_thoughts_is_read():
    reply = ChatReply("", f'Perhaps {{"score": [1, 1]}}.\n</think>\n\n{TEXT}', "stop")
    assert VIEScore().read("sc", reply) == {"judge_success": 8, "judge_over_editing": 3}


def test_overall_is_the_root_of_the_lower_scores():
    semantic, quality = prompt.Scores(8, 4, ""), prompt.Scores(9, 10, "")
    assert prompt.overall(semantic, quality) == pytest.approx(6.0)
    assert prompt.overall(prompt.Scores(10, 0, ""), quality) == 0
