"""VIEScore's two calls for every edit, through the engine; an unreadable answer is asked for again, then
unscored.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from cluster.chat import ChatReply, ChatRequest, request_seed
from cluster.vllm import Engine
from stages.evaluate.judges.viescore import prompt
from stages.evaluate.judges.viescore.prompt import (
    MAX_TOKENS,
    PROMPT_VERSION,
    Scores,
    build_pq_chat,
    build_sc_chat,
    overall,
    parse,
    prompt_hash,
)

PROMPT_FOLDER = pathlib.Path(prompt.__file__).parent / PROMPT_VERSION
TEMPERATURE_STEP, MAX_TEMPERATURE = (
    0.3,
    0.9,
)  # greedy first; an answer that can't be read is asked for more warmly
CALLS = ("sc", "pq")


@dataclasses.dataclass(frozen=True)
class EditToJudge:
    """One edit: both pictures as PNG of one size, and the instruction."""

    key: str
    source: bytes
    edited: bytes
    instruction: str


@dataclasses.dataclass(frozen=True)
class JudgedEdit:
    """What the judge said, as columns of the table of scores; `unscored` holds the reason where a score is
    missing.
    """

    key: str
    columns: dict[str, Any]


@dataclasses.dataclass
class _Pending:
    edit: EditToJudge
    attempts: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(CALLS, 0))
    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    verdicts: dict[str, Scores | str] = dataclasses.field(default_factory=dict)


def judge_edits(engine: Engine, edits: Iterable[EditToJudge], *, max_attempts: int) -> Iterator[JudgedEdit]:
    """Judges edits in the order of completion; as many are held in memory as the engine has on its way.

    The first attempt is greedy. An answer without two readable scores is asked for up to `max_attempts`
    times in all, each time at a higher temperature and with a seed of its own; an error of the request
    itself is final.
    """
    pending: dict[str, _Pending] = {}
    retries: collections.deque[ChatRequest] = collections.deque()

    def requests() -> Iterator[ChatRequest | None]:
        for edit in edits:
            while retries:
                yield retries.popleft()
            pending[edit.key] = _Pending(edit)
            for call in CALLS:
                yield _request(edit, call, 0)
        while pending:
            yield retries.popleft() if retries else None

    for reply in engine.generate(requests()):
        call, _, key = reply.key.partition(":")
        state = pending[key]
        state.texts[call] = reply.text
        state.attempts[call] += 1
        verdict = _read(reply)
        if isinstance(verdict, str) and reply.error is None and state.attempts[call] < max_attempts:
            retries.append(_request(state.edit, call, state.attempts[call]))
            continue
        state.verdicts[call] = verdict
        if len(state.verdicts) == len(CALLS):
            del pending[key]
            yield JudgedEdit(key, _columns(state))


def _request(edit: EditToJudge, call: str, attempt: int) -> ChatRequest:
    if call == "sc":
        messages, schema = build_sc_chat(edit.source, edit.edited, edit.instruction)
    else:
        messages, schema = build_pq_chat(edit.edited)
    temperature = min(TEMPERATURE_STEP * attempt, MAX_TEMPERATURE)
    seed = request_seed(edit.key, call, attempt) if attempt else None
    return ChatRequest(f"{call}:{edit.key}", messages, schema, MAX_TOKENS, temperature, seed)


def _read(reply: ChatReply) -> Scores | str:
    if reply.error is not None:
        return reply.error
    scores = parse(reply.text)
    return "truncated" if isinstance(scores, str) and reply.finish_reason == "length" else scores


def _columns(state: _Pending) -> dict[str, Any]:
    semantic, quality = state.verdicts["sc"], state.verdicts["pq"]
    columns: dict[str, Any] = {
        "judge_sc_text": state.texts["sc"],
        "judge_pq_text": state.texts["pq"],
        "judge_prompt_version": PROMPT_VERSION,
        "judge_prompt_hash": prompt_hash(),
        "unscored": None,
    }
    if isinstance(semantic, Scores):
        columns |= {"judge_success": semantic.first, "judge_over_editing": semantic.second}
    if isinstance(quality, Scores):
        columns |= {"judge_naturalness": quality.first, "judge_artifacts": quality.second}
    if isinstance(semantic, Scores) and isinstance(quality, Scores):
        columns["judge_overall"] = overall(semantic, quality)
    else:
        reasons = [f"judge {call}: {v}" for call, v in state.verdicts.items() if isinstance(v, str)]
        columns["unscored"] = "; ".join(sorted(reasons))
    return columns
