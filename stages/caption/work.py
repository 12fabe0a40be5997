"""How every engine asks a model about rows: fed over the borders of shards, a failed answer asked for again up a
ladder of temperatures, every row settled with its outcome, every shard committed when it is whole.

What is asked and what an answer is worth is the engine's own: an `Asking`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster.chat import ChatReply, ChatRequest, request_seed
from cluster.dag import Context
from cluster.shards import name_shards
from cluster.vllm import Engine, get_engine
from stages.caption.asking import Asked, Asking, AskingConfig
from stages.caption.conversation import Call, Conversation, Dropped, Refused, proceed
from stages.caption.report import broken_name, check_error_rate, dead_letters_name, what_became, write_report

_MIN_ROWS_FOR_GATE = 64
_MAX_ANSWER_KEPT = 2000  # characters


def ask(asking: Asking, config: AskingConfig, context: Context) -> None:
    """Fills `<table>/` with good rows and `dead_letters/` with the others and their reasons, in one schema.

    Each call is made up to len(temperatures) times, each time at the next one, until its answer can be read and keeps
    the engine's rules. A row that came to nothing begins anew `retries` times, with other seeds and without the first
    temperatures; it is the same whether `context.earlier`, an artifact with fewer retries, has its first attempts or
    they are made here. `rules.json` tells how often each rule was broken, with examples.

    Raises:
        UserError: the model can't be loaded, or more than `error_rate_limit` of the rows came to nothing.
    """
    shards = name_shards(asking.keys, config.shard_size, prefix=f"{asking.table}/")
    done = set(context.out.list(".parquet", recursive=True))
    pending = {name: keys for name, keys in shards.items() if name not in done}
    if pending:
        Work(asking, config, context, pending).run(get_engine(config.engine, context))
    write_report(asking, list(shards), config.error_rate_limit, context)


@dataclasses.dataclass
class _State:
    """A row that isn't settled: its call, how often that was made, and what the calls before it came to.

    `retry` counts from 0, `attempts_before` are those of the retries before it.
    """

    shard: str
    asked: Asked
    conversation: Conversation
    retry: int = 0
    attempts_before: int = 0
    call: Call | None = None
    num_calls: int = 0
    attempts: int = 0
    most_attempts: int = 0
    finish_reason: str | None = None
    prompt_tokens: int = 0  # of each call's last answer
    completion_tokens: int = 0
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


class Work:
    """Feeds the shards' rows to the engine without a pause between shards and commits every shard when it is whole."""

    def __init__(self, asking: Asking, config: AskingConfig, context: Context, shards: Mapping[str, Sequence[str]]):
        self._asking, self._config, self._context, self._shards = asking, config, context, shards
        self._num_before = len(asking.keys) - sum(map(len, shards.values()))
        self._states: dict[str, _State] = {}
        self._waiting: collections.deque[ChatRequest] = collections.deque()
        self._rows: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in shards}
        self._broken: dict[str, list[dict[str, Any]]] = {name: [] for name in shards}
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._reasons: collections.Counter[str] = collections.Counter()
        self._num_unfit = 0

    def run(self, engine: Engine) -> None:
        for reply in engine.generate(self._requests()):
            self._take(self._states[reply.key], reply)

    def _requests(self) -> Iterator[ChatRequest | None]:
        for shard, keys in self._shards.items():
            num_attempts = self._take_over(shard) if self._context.earlier else dict.fromkeys(keys, 0)
            if not num_attempts:
                self._commit(shard)
                continue
            retry = self._context.earlier.manifest.identity["retries"] + 1 if self._context.earlier else 0
            for asked in self._asking.rows(keys):
                if asked.key not in num_attempts:
                    continue
                while self._waiting:
                    yield self._waiting.popleft()
                self._begin(shard, asked, retry, num_attempts[asked.key])
        while self._states:
            yield self._waiting.popleft() if self._waiting else None

    def _take_over(self, shard: str) -> dict[str, int]:
        """Takes what stays as it is from the earlier artifact; {key: its attempts so far} of what is asked again."""
        folder, rows = self._context.earlier.folder, self._rows[shard]
        again: dict[str, int] = {}
        retry = self._context.earlier.manifest.identity["retries"] + 1
        for table in (shard, dead_letters_name(shard)):
            for row in folder.read_table(table).to_pylist() if folder.exists(table) else ():
                rows.setdefault(row[self._asking.key], []).append(row)
        for key, found in list(rows.items()):
            outcome, reasons = what_became(found)
            if self._is_asked_again(outcome, reasons, found[0]["attempts"], retry):
                again[key] = rows.pop(key)[0]["attempts"]
            else:
                self._count(outcome, reasons)
        self._broken[shard] += folder.read_json(broken_name(shard))
        return again

    def _is_asked_again(self, outcome: str, reasons: Sequence[str], num_attempts: int, retry: int) -> bool:
        """Whether a row that came to nothing may come to something: a model was asked, and the row isn't unfit."""
        is_bad = outcome != "ok" and not self._asking.unfit.issuperset(reasons)
        return is_bad and num_attempts > 0 and retry <= self._config.retries

    def _begin(self, shard: str, asked: Asked, retry: int, attempts_before: int) -> None:
        self._states[asked.key] = state = _State(shard, asked, asked.begin(), retry, attempts_before)
        self._go_on(state, None)

    def _go_on(self, state: _State, came_to: Mapping[str, Any] | Refused | None) -> None:
        """Gives the conversation what its call came to (None at its beginning), and makes its next call."""
        try:
            call = proceed(state.conversation, came_to)
        except StopIteration as end:
            self._settle(state, *what_became(end.value), end.value)
        except Refused as refused:
            self._settle(state, refused.outcome, refused.reasons)
        except Dropped as dropped:
            self._note_broken(state, [dropped.reason], "")
            self._settle(state, dropped.outcome, [dropped.reason])
        else:
            state.call, state.attempts = call, 0
            state.num_calls += 1
            self._request(state)

    def _request(self, state: _State) -> None:
        key, config = state.asked.key, self._config
        later = [state.num_calls] if state.num_calls > 1 else []
        seed = request_seed(config.seed, key, *later, state.attempts_before + state.attempts)
        temperature = self._ladder(state)[state.attempts]
        request = ChatRequest(key, state.call.messages, state.call.schema, config.max_tokens, temperature, seed)
        self._waiting.append(request)

    def _ladder(self, state: _State) -> Sequence[float]:
        """The temperatures of a call: each retry leaves one more of the first out, but never the last."""
        ladder = state.call.temperatures or self._config.temperatures
        return ladder[min(state.retry, len(ladder) - 1) :]

    def _take(self, state: _State, reply: ChatReply) -> None:
        """Judges an answer: the conversation goes on, the call is made again, or the row is settled."""
        state.attempts += 1
        state.most_attempts = max(state.most_attempts, state.attempts)
        state.finish_reason = reply.finish_reason
        reading = state.call.judged(reply)
        if reading.reasons:
            self._note_broken(state, reading.reasons, reply.text)
        is_unfit = reading.fields is not None and self._asking.unfit.issuperset(reading.reasons)
        # A request's own fault comes again each time; anything else may go better at the next temperature.
        is_final = is_unfit or reply.error is not None or state.attempts == len(self._ladder(state))
        if reading.reasons and not is_final:
            self._request(state)
            return
        state.prompt_tokens += reply.prompt_tokens
        state.completion_tokens += reply.completion_tokens
        state.fields |= reading.fields or {}
        if not reading.reasons:
            self._go_on(state, reading.fields)
            return
        unread = "truncated" if reply.finish_reason == "length" and reply.error is None else "failed"
        outcome = unread if reading.fields is None else "filtered"
        self._go_on(state, Refused(outcome, reading.reasons, reading.fields))

    def _note_broken(self, state: _State, reasons: Sequence[str], answer: str) -> None:
        item = {
            self._asking.key: state.asked.key,
            "attempt": state.attempts_before + state.attempts,
            "reasons": list(reasons),
            "answer": answer[:_MAX_ANSWER_KEPT],
        }
        self._broken[state.shard].append(item | ({"call": state.num_calls} if state.num_calls > 1 else {}))

    def _settle(
        self, state: _State, outcome: str, reasons: Sequence[str], rows: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Puts the rows together, those of the conversation or else one with what is known; or begins anew."""
        key, names = state.asked.key, self._asking.schema.names
        num_attempts = state.attempts_before + state.most_attempts
        self._states.pop(key)
        if self._is_asked_again(outcome, reasons, num_attempts, state.retry + 1):
            self._begin(state.shard, state.asked, state.retry + 1, num_attempts)
            return
        of_all = {
            self._asking.key: key,
            **state.asked.known,
            "outcome": outcome,
            "reason": "; ".join(reasons) or None,
            "attempts": num_attempts,
            "finish_reason": state.finish_reason,
            "prompt_tokens": state.prompt_tokens,
            "completion_tokens": state.completion_tokens,
            "prompt_version": self._config.prompt_version,
            "prompt_hash": self._asking.prompt_hash,
            "model": self._config.engine.model,
        }
        if rows is None:
            rows = [{name: state.fields[name] for name in names if name in state.fields}]
        own = [{name: row[name] for name in ("outcome", "reason") if name in row} for row in rows]
        self._rows[state.shard][key] = [
            dict.fromkeys(names) | row | of_all | became for row, became in zip(rows, own, strict=True)
        ]
        self._count(outcome, reasons)
        num_done, unit = self._outcomes.total(), self._asking.unit
        share = self._outcomes["ok"] / num_done
        self._context.progress(self._num_before + num_done, len(self._asking.keys), f"{unit}s", ok=share)
        if num_done >= _MIN_ROWS_FOR_GATE:
            num_bad = num_done - self._outcomes["ok"] - self._num_unfit
            check_error_rate(num_bad, num_done, self._reasons, self._config.error_rate_limit, unit, self._context)
        if len(self._rows[state.shard]) == len(self._shards[state.shard]):
            self._commit(state.shard)

    def _count(self, outcome: str, reasons: Sequence[str]) -> None:
        self._outcomes[outcome] += 1
        self._reasons.update(reasons)
        self._num_unfit += bool(reasons) and self._asking.unfit.issuperset(reasons)

    def _commit(self, shard: str) -> None:
        """The table of good rows goes last: where it is, the shard is done."""
        found = self._rows.pop(shard)
        rows = [row for key in self._shards[shard] for row in found[key]]
        schema, key = self._asking.schema, self._asking.key
        out = self._context.out
        broken = sorted(self._broken.pop(shard), key=lambda item: (item[key], item.get("call", 1), item["attempt"]))
        out.write_json(broken_name(shard), broken)
        if bad := [row for row in rows if row["outcome"] != "ok"]:
            out.write_table(dead_letters_name(shard), pa.Table.from_pylist(bad, schema))
        good = [row for row in rows if row["outcome"] == "ok"]
        out.write_table(shard, pa.Table.from_pylist(good, schema))
        num_done = self._num_before + self._outcomes.total()
        shares = {f"share_{name}": count / self._outcomes.total() for name, count in self._outcomes.items()}
        self._context.log_metrics(shares, step=num_done)
