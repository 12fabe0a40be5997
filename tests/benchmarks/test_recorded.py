"""The recorded engine: what it says, and when."""

import json
import time
from types import SimpleNamespace

import pytest

from benchmarks.recorded import RecordedEngine, Recording, record
from cluster.chat import ChatReply, ChatRequest

REPLIES = [
    (json.dumps({"edit_type": kind, "instruction": f"{kind} {number}"}), "stop", tokens)
    for number, (kind, tokens) in enumerate([("add", 3), ("remove", 5), ("add", 2), ("remove", 4)])
]


@pytest.fixture
def recording():
    return Recording(7, 0.001, 0.0001, REPLIES[:2], REPLIES[2:])


def params(kinds, seed=None):
    schema = {"properties": {"edit_type": {"enum": kinds}}}
    noise = {} if seed is None else {"gumbel_noise": (seed, 0.6)}
    return SimpleNamespace(structured_outputs=SimpleNamespace(json=schema), extra_args=noise)


def test_a_reply_is_of_an_offered_type_and_the_same_for_a_seed(recording, tmp_path):
    assert recording.reply({"properties": {"edit_type": {"enum": ["add"]}}}, 1, False) == REPLIES[0]
    assert {recording.reply(None, seed, True) for seed in range(4)} == set(REPLIES[2:])
    recording.write(tmp_path / "r.json")
    assert Recording.read(tmp_path / "r.json").faster(2).seconds_per_step == 0.0005


def test_requests_are_batched_and_each_takes_as_many_steps_as_its_reply_has_tokens(recording):
    engine = RecordedEngine(recording, max_num_seqs=2)
    _, (prompt,) = engine.renderer.render_chat([[{"role": "user", "content": "what?"}]], None)
    for name, kind in (("a", "add"), ("b", "remove"), ("c", "add")):
        engine.add_request(name, prompt, params([kind]))
    ended, started = {}, time.perf_counter()
    for number in range(1, 7):
        ended |= {output.request_id: (number, output.outputs[0].text) for output in engine.step()}
    # the third waits until the first has left the batch of two
    assert ended == {"a": (3, REPLIES[0][0]), "b": (5, REPLIES[1][0]), "c": (6, REPLIES[0][0])}
    assert time.perf_counter() - started >= 6 * 0.001 + (3 * 7 + 8) * 0.0001
    engine.add_request("d", prompt, params(["remove"], seed=9))
    outputs = [output for _ in range(4) for output in engine.step()]
    assert [output.outputs[0].text for output in outputs] == [REPLIES[3][0]]


def test_a_recording_has_the_pace_of_the_steps_and_the_replies_of_each_attempt():
    steps = [(tokens, tokens, 0.01 + 0.002 * tokens) for tokens in range(1, 60)]
    pairs = [
        (ChatRequest("x", [], temperature=0.6 * number), ChatReply("x", f"text {number}", "stop", 10 + number, 4))
        for number in range(2)
    ]
    found = record(pairs, [*steps, (1, 1, 9.0)])
    assert (found.seconds_per_step, found.seconds_per_token) == pytest.approx((0.01, 0.002))
    assert (found.greedy, found.sampled) == ([("text 0", "stop", 4)], [("text 1", "stop", 4)])
