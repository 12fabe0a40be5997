"""A few rows asked about outside of a run, with all that was said: for a look at one row, and to know what all cost."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cluster.chat import ChatReply, ChatRequest
from cluster.dag import Context
from cluster.session import open_session
from cluster.shards import name_shards
from cluster.vllm import Engine, get_engine
from stages.caption.asking import Asked, Asking, AskingConfig
from stages.caption.conversation import Call, Conversation, Reading, Refused, proceed
from stages.caption.report import dead_letters_name
from stages.caption.work import Work


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A request, its reply, which call of its row it was (from 1), and what was read; None where the engine failed."""

    request: ChatRequest
    reply: ChatReply
    call: int
    reading: Reading | None


@dataclasses.dataclass(frozen=True)
class Trial:
    """What was said, in the order of the replies; the rows of each outcome's table by key; how long it took."""

    exchanges: Sequence[Exchange]
    good: Sequence[Mapping[str, Any]]
    bad: Sequence[Mapping[str, Any]]
    seconds: float


@contextlib.contextmanager
def opened(config: AskingConfig, context: Context) -> Iterator[Engine]:
    """The engine as configured, with a Ray session of its own if it needs one.

    Raises:
        UserError: the model can't be loaded, or the server doesn't answer.
    """
    session = None if config.engine.endpoint else open_session(context.run_id)
    try:
        yield get_engine(config.engine, context)
    finally:
        if session:
            session.close()


def try_rows(asking: Asking, config: AskingConfig, context: Context, engine: Engine) -> Trial:
    """Asks about all rows of `asking` as its stage does, whatever share of them comes to nothing."""
    calls: dict[int, tuple[int, Call]] = {}  # by their messages: a request has those of its call
    overheard = _Overheard(engine)
    recorded = dataclasses.replace(asking, rows=functools.partial(_recorded, asking.rows, calls))
    shards = name_shards(asking.keys, config.shard_size, prefix=f"{asking.table}/")
    started = time.monotonic()
    Work(recorded, config.model_copy(update={"error_rate_limit": 1.0}), context, shards).run(overheard)
    seconds = time.monotonic() - started
    exchanges = []
    for request, reply in overheard.replies:
        number, call = calls[id(request.messages)]
        reading = None if reply.error is not None else call.judged(reply)
        exchanges.append(Exchange(request, reply, number, reading))
    good = [row for shard in shards for row in _rows(context, shard)]
    bad = [row for shard in shards for row in _rows(context, dead_letters_name(shard))]
    return Trial(exchanges, good, bad, seconds)


def _rows(context: Context, name: str) -> list[dict[str, Any]]:
    return context.out.read_table(name).to_pylist() if context.out.exists(name) else []


def sample_rows(asking: Asking, shard_size: int, keys: Sequence[str]) -> Asking:
    """The same for some of its keys; each is asked about exactly as where all are, in the shard that it belongs to."""
    wanted, whole = set(keys), asking.rows
    shards = name_shards(asking.keys, shard_size)

    def rows(part: Sequence[str]) -> Iterator[Asked]:
        mine = wanted.intersection(part)
        for shard in shards.values():
            if mine.intersection(shard):
                yield from (asked for asked in whole(shard) if asked.key in mine)

    return dataclasses.replace(asking, keys=[key for key in asking.keys if key in wanted], rows=rows)


def _recorded(
    rows: Callable[[Sequence[str]], Iterator[Asked]], calls: dict[int, tuple[int, Call]], keys: Sequence[str]
) -> Iterator[Asked]:
    for asked in rows(keys):
        yield dataclasses.replace(asked, begin=functools.partial(_noted, asked.begin, calls))


def _noted(
    begin: Callable[[], Conversation], calls: dict[int, tuple[int, Call]]
) -> Generator[Call, Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """The conversation, each of its calls noted with its number."""
    conversation, came_to, number = begin(), None, 0
    while True:
        try:
            call = proceed(conversation, came_to)
        except StopIteration as end:
            return end.value
        number += 1
        calls[id(call.messages)] = number, call
        try:
            came_to = yield call
        except Refused as refused:
            came_to = refused


class _Overheard(Engine):
    """An engine whose replies are kept with their requests."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.replies: list[tuple[ChatRequest, ChatReply]] = []

    def generate(self, requests: Iterable[ChatRequest | None]) -> Iterator[ChatReply]:
        waiting: dict[str, ChatRequest] = {}

        def passed_on() -> Iterator[ChatRequest | None]:
            for request in requests:
                if request is not None:
                    waiting[request.key] = request  # a row has one request on its way at a time
                yield request

        for reply in self._engine.generate(passed_on()):
            self.replies.append((waiting.pop(reply.key), reply))
            yield reply
