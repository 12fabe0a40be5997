"""A judge's calls for every edit, through the engine; an unreadable answer is asked for again, then unscored."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cluster.chat import ChatReply, ChatRequest, request_seed
from cluster.vllm import Engine
from stages.evaluate.judge_replies import JudgeReply, columns_of, read
from stages.evaluate.judges.judge import Call, EditToJudge, Judge

# Greedy first; an answer that can't be read is asked for more warmly.
TEMPERATURE_STEP, MAX_TEMPERATURE = 0.3, 0.9
PASS_TEMPERATURE = 0.7  # of the passes after the first, which measure the judge's noise


@dataclasses.dataclass(frozen=True)
class JudgedEdit:
    """What the judge said, as columns of the table of scores, and its replies as they came; `unscored` holds the
    reason where a score is missing.
    """

    key: str
    columns: dict[str, Any]
    replies: tuple[JudgeReply, ...] = ()


@dataclasses.dataclass
class _Pending:
    edit: EditToJudge
    calls: Mapping[str, Call]
    num_waiting: int
    attempts: collections.Counter[tuple[str, int]] = dataclasses.field(default_factory=collections.Counter)
    replies: list[JudgeReply] = dataclasses.field(default_factory=list)


def judge_edits(
    engine: Engine, judge: Judge, edits: Iterable[EditToJudge], *, max_attempts: int, num_passes: int = 1,
    known: Mapping[str, ChatReply] | None = None, model: str = "",
) -> Iterator[JudgedEdit]:  # fmt: skip
    """Judges edits in the order of completion; as many are held in memory as the engine has on its way.

    The first attempt is greedy. An answer that can't be read is asked for up to `max_attempts` times in all, each
    time at a higher temperature and with a seed of its own; an error of the request itself is final. Passes after the
    first have a temperature and a seed from their first attempt on. A request whose answer is among `known` (by
    `request_hash` of it and `model`) isn't sent.
    """
    pending: dict[str, _Pending] = {}
    retries: collections.deque[ChatRequest] = collections.deque()
    finished: collections.deque[JudgedEdit] = collections.deque()
    hashes: dict[str, str] = {}
    known = known or {}

    def take(reply: ChatReply) -> None:
        call, index, key = _parts(reply.key)
        state = pending[key]
        attempt = state.attempts[call, index]
        state.attempts[call, index] += 1
        state.replies.append(JudgeReply(call, index, attempt, reply, hashes.pop(reply.key)))
        may_retry = reply.error is None and state.calls[call].logprobs is None and attempt + 1 < max_attempts
        if may_retry and isinstance(read(judge, call, reply), str):
            retries.append(_request(state.edit, state.calls[call], index, attempt + 1))
            return
        state.num_waiting -= 1
        if not state.num_waiting:
            del pending[key]
            finished.append(JudgedEdit(key, _named(judge) | columns_of(judge, state.replies), tuple(state.replies)))

    def ask(request: ChatRequest) -> Iterator[ChatRequest]:
        """The request, unless its answer is known: that is taken at once."""
        hashes[request.key] = digest = request_hash(request, model)
        if digest in known:
            take(dataclasses.replace(known[digest], key=request.key))
        else:
            yield request

    def requests() -> Iterator[ChatRequest | None]:
        for edit in edits:
            while retries:
                yield from ask(retries.popleft())
            if judge.edit_types is not None and edit.edit_type not in judge.edit_types:
                reason = f"judge: {judge.name} has no question for edits of type {edit.edit_type!r}"
                finished.append(JudgedEdit(edit.key, _named(judge) | {"unscored": reason}))
                continue
            calls = {call.name: call for call in judge.calls(edit)}
            pending[edit.key] = _Pending(edit, calls, num_passes * len(calls))
            for index in range(num_passes):
                for call in calls.values():
                    yield from ask(_request(edit, call, index, 0))
        while pending:
            if retries:
                yield from ask(retries.popleft())
            else:
                yield None

    for reply in engine.generate(requests()):
        take(reply)
        while finished:
            yield finished.popleft()
    yield from finished


def request_hash(request: ChatRequest, model: str) -> str:
    """Identifies what is asked, by content: pictures, words, form of the answer, sampling and model."""
    messages = [
        {"role": message["role"], "content": [_hashed(part) for part in message["content"]]}
        for message in request.messages
    ]
    sampling = [request.max_tokens, request.temperature, request.seed, request.logprobs]
    text = json.dumps([model, messages, request.schema, sampling], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _hashed(part: dict[str, Any]) -> dict[str, Any]:
    return {"image": hashlib.sha256(part["image"]).hexdigest()} if part["type"] == "image" else part


def _request(edit: EditToJudge, call: Call, index: int, attempt: int) -> ChatRequest:
    """Of a pass: `CALL:KEY` in the first, `CALL#PASS:KEY` in others."""
    messages = [{"role": "user", "content": call.content}]
    if index:
        key, temperature = f"{call.name}#{index}:{edit.key}", PASS_TEMPERATURE
        seed = request_seed(edit.key, call.name, attempt, index)
    else:
        key, temperature = f"{call.name}:{edit.key}", min(TEMPERATURE_STEP * attempt, MAX_TEMPERATURE)
        seed = request_seed(edit.key, call.name, attempt) if attempt else None
    return ChatRequest(key, messages, call.schema, call.max_tokens, temperature, seed, call.logprobs)


def _parts(key: str) -> tuple[str, int, str]:
    """(call, pass, edit) of a request's key."""
    name, _, edit = key.partition(":")
    call, _, index = name.partition("#")
    return call, int(index or 0), edit


def _named(judge: Judge) -> dict[str, Any]:
    return {"judge_prompt_version": judge.prompts.version, "judge_prompt_hash": judge.prompts.hash}
