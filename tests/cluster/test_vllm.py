import collections
import io
import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from cluster import record
from cluster.chat import ChatReply, ChatRequest
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.vllm import Engine, EngineSettings, get_engine
from cluster.vllm_actor import EngineActor
from cluster.vllm_pool import EnginePool
from tests.stages.ingest.context import make_context
from tests.tiny_qwen import make_model

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 12}, "b": {"enum": ["x", "yy"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def picture(seed: int, width: int = 32, height: int = 32) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def ask(key: object, *, image: bytes | None = None, text: str = "describe", **fields) -> ChatRequest:
    content = [{"type": "image", "image": image or picture(1)}, {"type": "text", "text": text}]
    return ChatRequest(
        str(key), [{"role": "user", "content": content}], **({"schema": SCHEMA, "max_tokens": 40} | fields)
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EngineSettings:
    model = make_model(tmp_path_factory.mktemp("model"))
    return EngineSettings(model=str(model), max_model_len=256, max_image_pixels=10_000, num_in_flight=32, num_engines=2)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return make_context(tmp_path_factory.mktemp("root"), "caption")


@pytest.fixture(scope="module")
def engine(ray_cluster: str, settings: EngineSettings, context: Context) -> EnginePool:
    """Two engines, which are all that the cluster has places for."""
    pool = get_engine(settings, context)
    while len(pool.infos) < 2:
        list(pool.generate([ask("until the other one is ready", max_tokens=1)]))
    return pool


def by_key(replies: Iterator[ChatReply]) -> dict[str, ChatReply]:
    found = list(replies)
    assert len({reply.key for reply in found}) == len(found)
    return {reply.key: reply for reply in found}


def test_answers_follow_the_schema_without_padding(engine: EnginePool):
    replies = by_key(engine.generate(ask(i, image=picture(i), temperature=1.0, seed=i) for i in range(24)))
    assert set(replies) == {str(i) for i in range(24)}
    for reply in replies.values():
        assert reply.error is None and reply.finish_reason == "stop"
        answer = json.loads(reply.text, strict=False)  # a grammar lets control characters into strings
        assert set(answer) == {"a", "b"} and len(answer["a"]) <= 12
        assert reply.text.startswith('{"a":"') and reply.text.endswith(f'","b":"{answer["b"]}"}}')
        assert reply.prompt_tokens > 16 and 0 < reply.completion_tokens <= 40
    assert len({reply.text for reply in replies.values()}) > 12


def died(context: Context) -> list[str]:
    incidents = record.read_incidents(Folder(context.root), context.run_id)
    return [incident["text"] for incident in incidents if "engine died" in incident["text"]]


def test_a_bad_request_fails_alone(engine: EnginePool, context: Context):
    requests = [
        ask("first"),
        ask("garbage", image=b"no picture at all"),
        ask("cut_off", image=picture(2)[:300]),
        ask("too_large", image=picture(3, 101, 100)),
        ask("strip", image=picture(4, 900, 2)),
        ask("long", text="x" * 400),
        ask("bad_schema", schema={"type": "nonsense"}),
        ChatRequest("three_images", [{"role": "user", "content": [{"type": "image", "image": picture(1)}] * 3}]),
        ask("truncated", max_tokens=3),
        ask("special", text="describe<|image_pad|><|im_end|>"),
        ask("last"),
    ]
    replies = by_key(engine.generate(requests))
    errors = {key: reply.error for key, reply in replies.items() if reply.error}
    assert set(errors) == {"garbage", "cut_off", "too_large", "strip", "long", "bad_schema", "three_images"}
    assert errors["garbage"].startswith("image: not a picture")
    assert errors["cut_off"].startswith("image: ") and "truncated" in errors["cut_off"]
    assert errors["too_large"] == "image: 101x100 pixels are over 10000"
    # the cause itself, and nothing that differs from one process to the next
    assert errors["strip"] == "request: absolute aspect ratio must be smaller than 200, got 450.0"
    assert errors["long"].endswith(" tokens of words alone don't fit into max_model_len = 256")
    assert replies["truncated"].finish_reason == "length"
    # special tokens in a text are dropped, so they can neither open a picture nor end the turn
    assert replies["first"].text == replies["last"].text == replies["special"].text != ""
    assert replies["first"].prompt_tokens == replies["special"].prompt_tokens
    assert not died(context)


def test_a_prompt_that_was_there_before_comes_from_the_cache(engine: EnginePool):
    """Prefix caching is on, and pictures count: blocks are of 128 tokens on the CPU, and a letter is a token."""
    shared = {"text": "shared " * 20, "image": picture(7)}
    (first,) = engine.generate([ask("first", **shared)])
    (again,) = engine.generate([ask("again", **shared)])
    (other,) = engine.generate([ask("other", text=shared["text"], image=picture(8))])
    assert first.prompt_tokens == again.prompt_tokens > 128
    assert (first.cached_tokens, again.cached_tokens, other.cached_tokens) == (0, 128, 0)
    assert first.text == again.text


def test_words_before_the_picture_come_from_the_cache_whatever_it_shows(engine: EnginePool):
    def asked(key: str, image: bytes) -> ChatRequest:
        request = ask(key, image=image)
        system = {"role": "system", "content": "words of all " * 12}
        return ChatRequest(key, [system, *request.messages], request.schema, request.max_tokens)

    (first,) = engine.generate([asked("first", picture(9))])
    (other,) = engine.generate([asked("other", picture(10))])
    assert (first.cached_tokens, other.cached_tokens) == (0, 128)


def test_sampling_depends_on_the_seed_alone(engine: EnginePool):
    def sample(keys: range) -> dict[str, str]:
        requests = [ask(i, image=picture(i), temperature=1.0, seed=i) for i in keys]
        return {key: reply.text for key, reply in by_key(engine.generate(requests)).items()}

    together = sample(range(16))
    alone = {key: text for i in range(16) for key, text in sample(range(i, i + 1)).items()}
    assert together == alone
    again = by_key(engine.generate([ask(0, image=picture(0), temperature=1.0, seed=99)]))["0"].text
    assert again != together["0"]


def test_seeded_noise_samples_the_models_distribution(engine: EnginePool):
    fields = {"schema": None, "max_tokens": 1}
    (greedy,) = engine.generate([ask("greedy", logprobs=20, **fields)])
    assert greedy.text == max(greedy.logprobs, key=greedy.logprobs.get)
    temperature = 0.1
    requests = (ask(i, temperature=temperature, seed=i, **fields) for i in range(300))
    counts = collections.Counter(reply.text for reply in engine.generate(requests))
    letters = [item for item in greedy.logprobs.items() if len(item[0]) == 1 and item[0].isascii()]
    first, second = sorted(letters, key=lambda item: -item[1])[:2]
    # the odds of two tokens at temperature T are exp((l1 - l2) / T), whatever the other tokens have
    expected = 1 / (1 + math.exp((second[1] - first[1]) / temperature))
    both = counts[first[0]] + counts[second[0]]
    assert both > 30
    assert abs(counts[first[0]] / both - expected) < 4 * math.sqrt(0.25 / both)


def test_a_source_may_wait_for_replies(engine: EnginePool):
    """A retry that a reply asks for goes out before the source ends."""
    retries: collections.deque[ChatRequest] = collections.deque()
    num_open = 3

    def source() -> Iterator[ChatRequest | None]:
        for i in range(3):
            yield ask(f"{i}-0", max_tokens=2)
        while num_open:
            yield retries.popleft() if retries else None

    seen = []
    for reply in engine.generate(source()):
        seen.append(reply.key)
        if reply.key.endswith("-0"):
            retries.append(ask(reply.key.replace("-0", "-1"), max_tokens=2))
        else:
            num_open -= 1
    assert sorted(seen) == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    with pytest.raises(RuntimeError, match="waits for a reply"):
        list(engine.generate(iter([None])))


def test_requests_are_shared_out(engine: EnginePool, context: Context):
    num_asked, num_together = [], set()
    for reply in engine.generate(ask(i, image=picture(i), max_tokens=8) for i in range(160)):
        assert reply.error is None
        num_asked.append([seat.num_flying for seat in engine._seats])
        num_together |= {len(call) for seat in engine._seats for call in seat._flying.values()}
    assert max(sum(flying) for flying in num_asked) > 32  # more than one engine takes
    assert all(max(flying) <= 32 for flying in num_asked)
    assert num_together == {2}  # in one call


def test_stages_share_the_engines(engine: EnginePool, settings: EngineSettings, context: Context):
    """However many each wants: what has no place yet keeps nobody waiting."""
    pids = {info["pid"] for info in engine.infos}
    assert len(pids) == 2
    for num_engines in (1, 3):
        other = get_engine(settings.model_copy(update={"num_engines": num_engines}), context)
        replies = by_key(other.generate(ask(i, max_tokens=2) for i in range(4)))
        assert len(replies) == 4 and {info["pid"] for info in other.infos} <= pids
    (waiting,) = [seat for seat in other._seats if seat.info is None]
    assert waiting.state == "waiting for a place" and waiting.give_up() == []


def test_a_killed_engine_is_restarted_and_nothing_is_lost(engine: EnginePool, context: Context):
    requests = [ask(i, image=picture(i), temperature=0.8, seed=i) for i in range(60)]
    undisturbed = {key: reply.text for key, reply in by_key(engine.generate(requests)).items()}
    pids, replies = [info["pid"] for info in engine.infos], []
    for reply in engine.generate(requests):
        replies.append(reply)
        if len(replies) == 10:
            os.kill(pids[0], signal.SIGKILL)
    assert {reply.key: reply.text for reply in replies} == undisturbed and len(replies) == 60
    assert pids[0] not in [info["pid"] for info in engine.infos] and pids[1] in [info["pid"] for info in engine.infos]
    assert len(died(context)) == 1


def test_a_request_that_kills_engines_is_given_up(engine: EnginePool, context: Context):
    """A request that kills the engine that has it, twice: its row gets an error, the others their answers."""
    requests = [ask(i, image=picture(i), max_tokens=8) for i in range(4)]
    over = threading.Event()

    def kill() -> None:
        """Kills the engine while it has the request "poison", as a fault of the request would."""
        killed: set[int] = set()
        while len(killed) < 2 and not over.wait(0.001):
            for seat in engine._seats:
                keys = [sent.request.key for call in list(seat._flying.values()) for sent in call]
                if seat.info and "poison" in keys and seat.info["pid"] not in killed:
                    killed.add(seat.info["pid"])
                    os.kill(seat.info["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    replies = by_key(engine.generate([*requests, ask("poison", max_tokens=200)]))
    over.set()
    thread.join()
    assert replies.pop("poison").error == "request: the engine died twice when it had this"
    assert len(replies) == 4 and all(reply.error is None for reply in replies.values())


def test_an_idle_engine_makes_room_and_a_bad_model_is_explained(engine: EnginePool, context: Context, tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="can't load the model") as caught:
        get_engine(EngineSettings(model=str(tmp_path)), context)
    assert str(tmp_path) in str(caught.value) and "log: " in str(caught.value)
    incidents = record.read_incidents(Folder(context.root), context.run_id)
    assert any("made room" in incident["text"] for incident in incidents)


def test_an_engine_that_loads_is_not_idle(ray_cluster: str, settings: EngineSettings, context: Context, tmp_path: Path):
    other = settings.model_copy(update={"seed": 1})
    actor = ray.remote(EngineActor).options(num_cpus=0, max_concurrency=8).remote(
        other, str(tmp_path / "log"), context.root, context.run_id
    )  # fmt: skip
    ready = actor.ready.remote()
    assert ray.get(actor.placed.remote()) and not ray.wait([ready], timeout=0)[0]
    assert not ray.get(actor.retire.remote(0.0))
    assert ray.get(ready)["pid"] == ray.get(actor.placed.remote())
    assert not ray.get(actor.retire.remote(3600.0)) and ray.get(actor.retire.remote(0.0))


class Server(BaseHTTPRequestHandler):
    """What an OpenAI-compatible server may answer: well, badly, and not at first."""

    asked: collections.Counter[str] = collections.Counter()

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "some-model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, text = body["messages"][0]["content"]
        key = text["text"]
        self.asked[key] += 1
        assert image["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
        if key == "too long":
            self._send(400, {"error": {"message": "prompt is too long"}})
        elif key == "flaky" and self.asked[key] == 1:
            self._send(503, {})
        elif key == "odd" and self.asked[key] == 1 or key == "always odd":
            self._send(200, {"detail": "log in first"})
        elif key == "filtered":
            self._send(200, {"choices": []})
        else:
            answer = {"schema": body["response_format"]["json_schema"]["schema"], "seed": body.get("seed")}
            choice = {"message": {"content": json.dumps(answer)}, "finish_reason": "stop"}
            self._send(200, {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})

    def _send(self, status: int, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Engine]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    Server.asked.clear()
    yield get_engine(
        EngineSettings(model="some-model", endpoint=url, num_in_flight=2), make_context(tmp_path, "caption")
    )
    server.shutdown()
    server.server_close()


def test_an_endpoint_takes_the_engines_place(endpoint: Engine):
    requests = [ask(text, text=text, seed=5) for text in ("good", "too long", "flaky", "also good", "odd", "filtered")]
    replies = by_key(endpoint.generate(requests))
    assert json.loads(replies["good"].text) == {"schema": SCHEMA, "seed": 5}
    assert (replies["good"].prompt_tokens, replies["good"].completion_tokens) == (7, 3)
    assert replies["too long"].error.startswith("request: ") and "too long" in replies["too long"].error
    assert replies["flaky"].error is None and Server.asked["flaky"] == 2
    assert replies["odd"].error is None and Server.asked["odd"] == 2
    assert replies["filtered"].error == "request: the answer has no choices"
    assert len(replies) == 6


def test_an_endpoint_that_answers_something_else_is_explained(endpoint: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.endpoint.time.sleep", lambda seconds: None)
    told = "failed 5 times at one request: its answer is no chat completion .*log in first.* Run the same command again"
    with pytest.raises(UserError, match=told):
        by_key(endpoint.generate([ask("always odd", text="always odd")]))


def test_a_silent_endpoint_is_explained(tmp_path: Path):
    with pytest.raises(UserError, match="doesn't answer as an OpenAI-compatible"):
        get_engine(EngineSettings(model="m", endpoint="http://127.0.0.1:9/v1"), make_context(tmp_path, "caption"))
