"""Replies as rows, passes as means, and the judge's own noise."""

import json
import math

import pyarrow as pa
import pytest

from cluster.chat import ChatReply
from stages.evaluate.judge_calls import judge_edits
from stages.evaluate.judge_replies import (
    NOISE_SCHEMA,
    REPLIES_SCHEMA,
    JudgeReply,
    columns_of,
    grouped,
    judge_noise,
)
from stages.evaluate.judges.imgedit.judge import ImgEdit
from stages.evaluate.judges.judge import EditToJudge
from stages.evaluate.judges.viescore.judge import VIEScore
from stages.evaluate.judges.yes_no.judge import YesNo
from tests.stages.evaluate.test_judge_calls import ScriptedEngine, answer, edits, good, reply_with


def lines(*numbers):
    return "Reason: so.\n" + "\n".join(f"{name}: {n}" for name, n in zip("abcdef", numbers, strict=False))


def said(text, num_pass=0, attempt=0, call="imgedit", **kwargs):
    return JudgeReply(call, num_pass, attempt, ChatReply("", text, **kwargs), "hash")


def test_a_score_is_the_mean_over_the_passes_that_can_be_read():
    replies = [said(lines(5, 5, 5)), said(lines(4, 4, 2), 1), said("?", 2, 0), said(lines(1, 2, 2), 2, 1)]
    columns = columns_of(ImgEdit(), replies)
    assert columns["judge_imgedit_first"] == pytest.approx((5 + 4 + 1) / 3)
    assert columns["judge_imgedit"] == pytest.approx((5 + 3.33 + 1.67) / 3)
    assert columns["unscored"] is None
    assert columns_of(ImgEdit(), [*replies[:2], said("?", 2)])["judge_imgedit"] == pytest.approx((5 + 3.33) / 2)
    assert columns_of(ImgEdit(), [said("?"), said("", 1, error="image: bad")]) == {
        "unscored": "judge imgedit: image: bad; judge imgedit: no_score"
    }


def test_both_calls_of_a_pass_belong_together():
    """Pass 0 lacks PQ and pass 1 lacks SC: the parts are known, their overall is not."""
    replies = [
        said(answer(9, 4), 0, call="sc"),
        said("?", 0, call="pq"),
        said("?", 1, call="sc"),
        said(answer(7, 8), 1, call="pq"),
    ]
    columns = columns_of(VIEScore(), replies)
    assert (columns["judge_success"], columns["judge_artifacts"]) == (9, 8) and "judge_overall" not in columns
    assert columns["unscored"] == "judge pq: no_json; judge sc: no_json"
    assert (columns["judge_sc_text"], columns["judge_pq_text"]) == (answer(9, 4), "?")  # of the first pass


def test_rows_and_back():
    reply = said("Yes", 1, 2, "edit_done", finish_reason="length", logprobs={"Yes": -0.25, " é": -3.0})
    table = pa.Table.from_pylist([{"item_id": "1", "method": "m"} | reply.row()], REPLIES_SCHEMA)
    assert grouped(table) == {("m", "1"): [reply]}


def test_noise_by_hand():
    """Items a: 2, 4 and b: 3, 5 (ours); c: 1, 1 and d, which has one pass alone (theirs)."""
    scores = {("ours", "a"): (2, 4), ("ours", "b"): (3, 5), ("theirs", "c"): (1, 1), ("theirs", "d"): (1, None)}
    rows = [
        {"method": method, "item_id": item} | said("?" if n is None else lines(n, n, n), index).row()
        for (method, item), passes in scores.items()
        for index, n in enumerate(passes)
    ]
    noise = judge_noise(ImgEdit(), pa.Table.from_pylist(rows, REPLIES_SCHEMA))
    assert noise.schema == NOISE_SCHEMA
    found = {(row["method"], row["metric"]): row for row in noise.to_pylist()}
    ours = found["ours", "judge_imgedit"]
    assert (ours["num_passes"], ours["num_items"]) == (2, 2)
    assert ours["std_of_items"] == pytest.approx(math.sqrt(2))  # each item's variance is (1 + 1) / (2 - 1)
    assert ours["std_of_means"] == pytest.approx(math.sqrt(2))  # of the means 2.5 and 4.5
    theirs = found["theirs", "judge_imgedit"]
    assert (theirs["num_items"], theirs["std_of_items"], theirs["std_of_means"]) == (1, 0, 0)
    one = pa.Table.from_pylist([row for row in rows if row["pass"] == 0], REPLIES_SCHEMA)
    assert judge_noise(ImgEdit(), one).num_rows == 0


def test_passes_are_asked_for_greedily_once_and_then_with_seeds():
    def script(request, attempt):
        if request.key == "pq#2:byg/0" and not attempt:
            return reply_with(request, "?")
        number = {"sc": 4, "sc#1": 6, "sc#2": 8}.get(request.key.split(":")[0], 9)
        return reply_with(request, answer(number, 10))

    engine = ScriptedEngine(script)
    (judged,) = judge_edits(engine, VIEScore(), edits(1), max_attempts=2, num_passes=3)
    asked = {(request.key, request.temperature, request.seed is None) for request in engine.asked}
    assert asked == {
        *((f"{call}:byg/0", 0.0, True) for call in ("sc", "pq")),
        *((f"{call}#{index}:byg/0", 0.7, False) for call in ("sc", "pq") for index in (1, 2)),
    }
    assert len(engine.asked) == 7  # one of them twice
    assert len({request.seed for request in engine.asked}) == 6  # five warm requests, and None
    assert judged.columns["judge_success"] == pytest.approx(6)
    assert judged.columns["judge_overall"] == pytest.approx((36**0.5 + 54**0.5 + 72**0.5) / 3)
    assert [(r.num_pass, r.attempt) for r in judged.replies if r.call == "pq" and r.num_pass == 2] == [(2, 0), (2, 1)]


def test_known_answers_are_not_asked_for_again():
    """Equal pictures, words, model and sampling: another model, instruction or picture is another request."""
    engine = ScriptedEngine(lambda r, a: reply_with(r, "?") if r.key == "sc:byg/1" and not a else good(r, a))
    first = list(judge_edits(engine, VIEScore(), edits(3), max_attempts=2, model="m"))
    known = {reply.request_hash: reply.reply for judged in first for reply in judged.replies}
    assert len(engine.asked) == 7 and len(known) == 5  # three edits show the same picture to PQ

    def again(model="m", edit=None):
        other = ScriptedEngine(good)
        given = [edit] if edit else edits(3)
        found = judge_edits(other, VIEScore(), given, max_attempts=2, known=known, model=model)
        return {judged.key: judged.columns for judged in found}, len(other.asked)

    columns, num_asked = again()
    assert num_asked == 0 and columns == {judged.key: judged.columns for judged in first}
    assert again("another")[1] == 6
    assert (
        again(edit=EditToJudge("other/0", b"source", b"edited", "make it 0"))[1] == 0
    )  # another method's very picture
    assert again(edit=EditToJudge("byg/0", b"source", b"edited", "make it new"))[1] == 1  # PQ sees no instruction
    assert again(edit=EditToJudge("byg/0", b"source", b"other", "make it 0"))[1] == 2


def test_probabilities_are_asked_for_once():
    engine = ScriptedEngine(lambda r, a: ChatReply(r.key, "Well", "length", logprobs={"Well": -0.1}))
    (judged,) = judge_edits(engine, YesNo(), edits(1), max_attempts=3)
    assert len(engine.asked) == 2 and [request.logprobs for request in engine.asked] == [20, 20]
    assert judged.columns["unscored"] == "judge edit_done: neither_yes_nor_no; judge rest_same: neither_yes_nor_no"


def test_a_type_without_a_rubric_is_unscored():
    given = [EditToJudge("m/1", b"s", b"e", "do", "add"), EditToJudge("m/2", b"s", b"e", "do", "color")]
    engine = ScriptedEngine(lambda r, a: reply_with(r, lines(3, 3, 3)))
    found = {judged.key: judged.columns for judged in judge_edits(engine, ImgEdit(), given, max_attempts=1)}
    assert found["m/1"]["judge_imgedit"] == 3
    assert found["m/2"]["unscored"] == "judge: imgedit has no question for edits of type 'color'"
    assert found["m/2"]["judge_prompt_version"] == "v1" and len(engine.asked) == 1


def test_out_of_range_is_asked_for_again():
    engine = ScriptedEngine(lambda r, a: reply_with(r, json.dumps({"score": [8, 11 - a]})))
    (judged,) = judge_edits(engine, VIEScore(), edits(1), max_attempts=3)
    assert len(engine.asked) == 4 and judged.columns["judge_over_editing"] == 10
