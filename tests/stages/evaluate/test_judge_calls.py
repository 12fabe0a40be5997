import collections
import hashlib
import json
import math

import pytest

from cluster.chat import ChatReply
from cluster.vllm import Engine
from stages.evaluate.judge_calls import judge_edits
from stages.evaluate.judges.judge import EditToJudge
from stages.evaluate.judges.viescore.judge import VIEScore


def answer(first, second):
    return json.dumps({"score": [first, second], "reasoning": "because"})


class ScriptedEngine(Engine):
    """Answers as its script says, last come first served, as a batching engine may; counts what is on its
    way.
    """

    def __init__(self, script, num_in_flight=4):
        self.script, self.num_in_flight = script, num_in_flight
        self.asked = []
        self.most_in_flight = 0

    def generate(self, requests):
        source, flying, exhausted = iter(requests), [], False
        while True:
            while not exhausted and len(flying) < self.num_in_flight:
                request = next(source, "end")
                exhausted = request == "end"
                if exhausted or request is None:
                    break
                flying.append(request)
            self.most_in_flight = max(self.most_in_flight, len(flying))
            if not flying:
                assert exhausted, "waits for a reply, but none is on its way"
                return
            request = flying.pop()
            self.asked.append(request)
            attempt = sum(other.key == request.key for other in self.asked) - 1
            yield self.script(request, attempt)


def reply_with(request, text, finish_reason="stop"):
    return ChatReply(request.key, text, finish_reason)


def good(request, attempt):
    return reply_with(request, answer(9, 4) if request.key.startswith("sc:") else answer(7, 8))


def edits(num):
    return [EditToJudge(f"byg/{i}", b"source", b"edited", f"make it {i}") for i in range(num)]


def judged(engine, num=3, max_attempts=3):
    return {
        result.key: result.columns for result in judge_edits(engine, VIEScore(), edits(num), max_attempts=max_attempts)
    }


def test_overall_is_the_geometric_mean_of_the_smaller_scores():
    columns = judged(ScriptedEngine(good), 1)["byg/0"]
    assert (columns["judge_success"], columns["judge_over_editing"]) == (9, 4)
    assert (columns["judge_naturalness"], columns["judge_artifacts"]) == (7, 8)
    assert columns["judge_overall"] == pytest.approx(math.sqrt(4 * 7))
    assert columns["unscored"] is None
    assert json.loads(columns["judge_sc_text"])["reasoning"] == "because"


def test_sc_sees_both_pictures_and_the_instruction_and_pq_the_edited_one_alone():
    engine = ScriptedEngine(good)
    judged(engine, 1)
    requests = {request.key: request for request in engine.asked}
    sc, pq = (requests[f"{call}:byg/0"].messages[0]["content"] for call in ("sc", "pq"))
    assert [part.get("image") for part in sc] == [b"source", b"edited", None]
    assert "make it 0" in sc[-1]["text"] and "make it 0" not in pq[-1]["text"]
    assert [part.get("image") for part in pq] == [b"edited", None]


def test_every_edit_is_judged_once_and_few_are_held_at_a_time():
    engine = ScriptedEngine(good, num_in_flight=4)
    results = [result.key for result in judge_edits(engine, VIEScore(), edits(25), max_attempts=3)]
    assert sorted(results) == sorted(edit.key for edit in edits(25))
    assert len(engine.asked) == 50 and engine.most_in_flight <= 4


def test_an_unreadable_answer_is_asked_for_again_more_warmly():
    def script(request, attempt):
        unreadable = request.key == "pq:byg/1" and attempt < 2
        return reply_with(request, "ten out of ten") if unreadable else good(request, attempt)

    engine = ScriptedEngine(script)
    columns = judged(engine)
    assert all(row["unscored"] is None for row in columns.values())
    again = [request for request in engine.asked if request.key == "pq:byg/1"]
    assert [request.temperature for request in again] == [0.0, 0.3, 0.6]
    assert again[0].seed is None and len({request.seed for request in again}) == 3
    assert len(engine.asked) == 8


def test_after_the_last_attempt_it_is_unscored_and_never_zero():
    def script(request, attempt):
        return reply_with(request, "?") if request.key.startswith("pq:") else good(request, attempt)

    engine = ScriptedEngine(script)
    columns = judged(engine, 1, max_attempts=2)["byg/0"]
    assert columns["unscored"] == "judge pq: no_json"
    assert "judge_overall" not in columns and "judge_naturalness" not in columns
    assert columns["judge_success"] == 9  # the other call's scores stand
    assert collections.Counter(request.key for request in engine.asked)["pq:byg/0"] == 2


def test_an_error_of_the_request_is_final():
    def script(request, attempt):
        return ChatReply(request.key, error="image: corrupt") if request.key.startswith("sc:") else good(request, 0)

    engine = ScriptedEngine(script)
    assert judged(engine, 1)["byg/0"]["unscored"] == "judge sc: image: corrupt"
    assert len(engine.asked) == 2


def test_a_cut_off_answer_says_so():
    columns = judged(ScriptedEngine(lambda r, a: reply_with(r, '{"score": [1', "length")), 1, max_attempts=1)["byg/0"]
    assert columns["unscored"] == "judge pq: truncated; judge sc: truncated"


def test_viescore_is_asked_and_read_as_ever():
    """Digests of requests and columns as they were before there were other judges: a run's scores stay its scores."""

    def script(request, attempt):
        call, _, key = request.key.partition(":")
        number = int(key.split("/")[1])
        if number == 1 and attempt < 2:
            return reply_with(request, "ten")
        if number == 2 and call == "pq":
            return reply_with(request, '{"score": [1', "length")
        if number == 3 and call == "sc":
            return ChatReply(request.key, error="image: corrupt")
        return reply_with(request, answer(number % 11, (3 * number + len(call)) % 11))

    engine = ScriptedEngine(script)
    given = [EditToJudge(f"byg/{i}", b"source%d" % i, b"edited%d" % i, f"make {{it}} {i}") for i in range(6)]
    columns = {result.key: result.columns for result in judge_edits(engine, VIEScore(), given, max_attempts=3)}
    shown = [
        [[part.get("text") or part["image"].decode() for part in m["content"]] for m in r.messages]
        for r in engine.asked
    ]
    asked = [
        [r.key, content, r.schema, r.max_tokens, r.temperature, r.seed, r.logprobs]
        for r, content in zip(engine.asked, shown, strict=True)
    ]
    digests = [hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest() for value in (asked, columns)]
    assert digests == [
        "03876674e390a06c1509aafe889e62483cc8a442b7564f85db1768aff8726013",
        "5fa1c64945168a350ad9e7c09e929795c820f41a1e334d8714511a52f40f4b9c",
    ]
