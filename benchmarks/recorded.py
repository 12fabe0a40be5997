"""An engine that replays what a real one said, at its pace: for benchmarks of all that stands around an engine.

`RecordedActor` is the stages' own engine actor with its threads, queues and pictures; only vLLM's `LLMEngine` is
replaced. `use_recorded_engine()` has this process start it wherever it would start a real one.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import heapq
import json
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cluster import vllm_actor
from cluster.chat import ChatReply, ChatRequest

RECORDING = Path(__file__).with_name("recording.json")
_FILE = "recording.json"


@dataclasses.dataclass(frozen=True)
class Recording:
    """Replies of a real model, and what the steps of its engine took.

    greedy, sampled: (text, finish reason, tokens) of first attempts and of later ones. A step takes `seconds_per_step`
    and `seconds_per_token` for each token that it computes.
    """

    prompt_tokens: int
    seconds_per_step: float
    seconds_per_token: float
    greedy: Sequence[tuple[str, str, int]]
    sampled: Sequence[tuple[str, str, int]]

    @classmethod
    def read(cls, path: Path) -> Recording:
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def faster(self, factor: float) -> Recording:
        """The same replies, each step in so many times less time."""
        per_step, per_token = self.seconds_per_step / factor, self.seconds_per_token / factor
        return dataclasses.replace(self, seconds_per_step=per_step, seconds_per_token=per_token)

    def reply(self, schema: dict[str, Any] | None, seed: int, sampled: bool) -> tuple[str, str, int]:
        """A recorded reply to a question that offered the same edit type, always the same one for a seed."""
        offered = (schema or {}).get("properties", {}).get("edit_type", {}).get("enum") or ()
        replies = self._by_type[sampled]
        fitting = [reply for kind in offered for reply in replies.get(kind, ())]
        fitting = fitting or (self.sampled if sampled else self.greedy)
        return fitting[seed % len(fitting)]

    def with_cut(self, every: int) -> Recording:
        """The same with each so-manieth reply cut off in its middle, as if it had been too long."""

        def cut(replies: Sequence[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
            return [
                (text[: len(text) // 2], "length", tokens) if number % every == 0 else (text, reason, tokens)
                for number, (text, reason, tokens) in enumerate(replies, start=1)
            ]

        return dataclasses.replace(self, greedy=cut(self.greedy), sampled=cut(self.sampled))

    @functools.cached_property
    def _by_type(self) -> tuple[dict[str, list[tuple[str, str, int]]], ...]:
        """{edit type: its replies}, of first attempts and of later ones."""
        found: tuple[dict[str, list[tuple[str, str, int]]], ...] = ({}, {})
        for replies, by_type in zip((self.greedy, self.sampled), found, strict=True):
            for reply in replies:
                kind = re.match(r'{"edit_type":\s*"(\w+)"', reply[0])
                by_type.setdefault(kind[1] if kind else "", []).append(reply)
        return found


def record(pairs: Sequence[tuple[ChatRequest, ChatReply]], steps: Sequence[tuple[int, int, float]]) -> Recording:
    """A recording of requests with their replies, and of an engine's steps: (sequences, tokens, seconds) of each."""
    tokens = np.array([num_tokens for _, num_tokens, _ in steps], float)
    seconds = np.array([value for _, _, value in steps])
    whole = seconds <= np.percentile(seconds, 98)  # what else the machine did in the longest isn't the engine's
    per_token, per_step = np.polyfit(tokens[whole], seconds[whole], 1)

    def kept(sampled: bool) -> list[tuple[str, str, int]]:
        found = [pair for pair in pairs if (pair[0].temperature > 0) == sampled and pair[1].error is None]
        return [(reply.text, reply.finish_reason, reply.completion_tokens) for _, reply in found]

    prompt_tokens = round(statistics.mean(reply.prompt_tokens for _, reply in pairs))
    return Recording(
        prompt_tokens, float(max(per_step, 0.0)), float(max(per_token, 0.0)), kept(False), kept(True) or kept(False)
    )


class RecordedEngine:
    """What the actor uses of vLLM's `LLMEngine`: batches up to `max_num_seqs` requests, computes a step at a time."""

    def __init__(self, recording: Recording, max_num_seqs: int) -> None:
        self.renderer = self
        self._recording, self._max_num_seqs = recording, max_num_seqs
        self._waiting: collections.deque[tuple[str, Any, tuple[str, str, int]]] = collections.deque()
        self._running: list[tuple[int, int, str, Any, tuple[str, str, int]]] = []  # by their last step
        self._num_steps = self._num_begun = 0

    def render_chat(self, conversations: list, params: Any) -> tuple[Any, list[dict[str, Any]]]:
        """The prompts' tokens (there is no tokenizer: zeros), and a number that words and pictures decide."""
        (messages,) = conversations
        digest = hashlib.sha256()
        for message in messages:
            content = message["content"]
            for part in [{"text": content}] if isinstance(content, str) else content:
                digest.update(part["text"].encode() if "text" in part else part["image_pil"].tobytes())
        tokens = [0] * self._recording.prompt_tokens
        return None, [{"prompt_token_ids": tokens, "number": int.from_bytes(digest.digest()[:4], "big")}]

    def add_request(self, name: str, prompt: dict[str, Any], params: Any) -> None:
        from cluster.vllm_noise import ARGUMENT  # imports vLLM, which only an actor should

        schema = params.structured_outputs.json if params.structured_outputs else None
        seed = (params.extra_args or {}).get(ARGUMENT, (None,))[0]
        number = prompt["number"] if seed is None else seed
        self._waiting.append((name, prompt, self._recording.reply(schema, number, seed is not None)))

    def step(self) -> list[Any]:
        num_tokens = len(self._running)
        while self._waiting and len(self._running) < self._max_num_seqs:
            name, prompt, reply = self._waiting.popleft()
            num_tokens += len(prompt["prompt_token_ids"])
            heapq.heappush(self._running, (self._num_steps + reply[2], self._num_begun, name, prompt, reply))
            self._num_begun += 1
        time.sleep(self._recording.seconds_per_step + num_tokens * self._recording.seconds_per_token)
        self._num_steps += 1
        outputs = []
        while self._running and self._running[0][0] <= self._num_steps:
            _, _, name, prompt, reply = heapq.heappop(self._running)
            outputs.append(_output(name, prompt["prompt_token_ids"], *reply))
        return outputs


def _output(name: str, prompt: list[int], text: str, finish_reason: str, num_tokens: int) -> Any:
    """What the actor reads of vLLM's `RequestOutput`."""
    completion = SimpleNamespace(text=text, finish_reason=finish_reason, token_ids=[0] * num_tokens, logprobs=None)
    return SimpleNamespace(
        request_id=name, prompt_token_ids=prompt, outputs=[completion], finished=True, num_cached_tokens=0
    )


class RecordedActor(vllm_actor.EngineActor):
    """The engine actor with a recording (a folder, `settings.model`) in the place of vLLM's engine."""

    def _build(self) -> None:
        recording = Recording.read(Path(self.settings.resolved_model()) / _FILE)
        self._on_cpu, self._special_tokens = True, []
        self._engine = RecordedEngine(recording, self.settings.max_num_seqs)


def use_recorded_engine(recording: Recording, folder: Path) -> str:
    """From here on this process starts recorded engines. Returns the `model` of one that replays the recording."""
    folder.mkdir(parents=True, exist_ok=True)
    recording.write(folder / _FILE)
    vllm_actor.EngineActor = RecordedActor
    return str(folder)
