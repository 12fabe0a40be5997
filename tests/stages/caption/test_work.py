"""How rows are asked about: several calls in turn, none at all, several rows of one."""

import functools

import pyarrow as pa
import pytest

from cluster.chat import ChatReply
from cluster.errors import UserError
from stages.caption import work
from stages.caption.asking import Asked, Asking, AskingConfig, with_outcome
from stages.caption.conversation import Call, Dropped, Reading
from stages.caption.rule import Rule
from stages.caption.work import ask
from tests.stages.caption.replay import ReplayEngine, files_of, rows_of, text_of
from tests.stages.ingest.context import make_context

SCHEMA = with_outcome([("name", pa.string()), ("color", pa.string()), ("size", pa.string()), ("known", pa.string())])
KEYS = [f"thing{number:02d}" for number in range(20)]


class WordRule(Rule):
    UNREADABLE = "unreadable", "It is a word."
    BAD = "bad", "It is a good word."
    NONE = "none", "The thing is wanted."
    LONG = "long", "It is a short word."


def read(text):
    """A word is an answer; "?" can't be read, "bad" breaks a rule, "none" says that the row isn't wanted."""
    if text == "?":
        return Reading(None, ["unreadable"])
    return Reading({"word": text}, [text] if text in ("bad", "none") else [])


def conversation(key):
    number = int(key[5:])
    if number == 5:
        raise Dropped("filtered", "none")
    if number == 6:
        raise Dropped("failed", "broken")
    if number == 7:
        return [{"color": "of old", "size": "known"}]
    color = (yield Call([{"role": "user", "content": f"color of {key}"}], None, read))["word"]
    sizes = (yield Call([{"role": "user", "content": f"size of the {color} {key}"}], None, read))["word"]
    return [{"color": color, "size": size} for size in sizes.split("+")]


def answer(request, number):
    key, asks_color = request.key, text_of(request).startswith("color")
    if asks_color:
        if key == "thing01":
            return "bad" if number < 2 else "blue"
        if key == "thing02":
            return "none"
        return ChatReply(key, "red", "stop", 100, 10)
    if key == "thing01":
        return "?" if number < 5 else "small"  # two refusals of the color and the color were before
    if key == "thing03":
        return ChatReply(key, "?", "length", 30, 3)
    if key == "thing04":
        return ChatReply(key, "big+small", "stop", 30, 3)
    return "big"


@pytest.fixture
def run(tmp_path, monkeypatch):
    def call(engine, name="things", keys=KEYS, **fields):
        context = make_context(tmp_path / name, "things")
        monkeypatch.setattr(work, "get_engine", lambda settings, context: engine)
        rows = lambda part: (Asked(key, functools.partial(conversation, key), {"known": key[-1]}) for key in part)  # noqa: E731
        things = Asking(
            key="name", keys=keys, rows=rows, table="found", unit="thing", schema=SCHEMA,
            prompt_hash="h", rules=((), WordRule, WordRule),
            unfit=frozenset({"none"}), tally="size",
        )  # fmt: skip
        ask(things, AskingConfig(engine={"model": "m"}, shard_size=6, **fields), context)
        return context

    return call


def test_calls_follow_each_other_and_each_has_its_own_ladder(run):
    engine = ReplayEngine(answer)
    context = run(engine, temperatures=(0.0, 0.5, 0.9))
    mine = [(text_of(request), request.temperature) for request in engine.requests if request.key == "thing01"]
    color, size = "color of thing01", "size of the blue thing01"
    assert mine == [(color, 0.0), (color, 0.5), (color, 0.9), (size, 0.0), (size, 0.5), (size, 0.9)]
    assert len({request.seed for request in engine.requests}) == len(engine.requests)
    good = {row["name"]: row for row in rows_of(context, "found")}
    row = good["thing01"]
    assert (row["color"], row["size"], row["known"], row["attempts"]) == ("blue", "small", "1", 3)
    assert (good["thing08"]["prompt_tokens"], good["thing08"]["completion_tokens"]) == (150, 50)  # of both calls


def test_a_row_may_become_several_rows_or_none_without_being_asked_about(run):
    engine = ReplayEngine(answer)
    context = run(engine)
    good, bad = rows_of(context, "found"), {row["name"]: row for row in rows_of(context, "dead_letters")}
    assert [row["size"] for row in good if row["name"] == "thing04"] == ["big", "small"]
    assert [row["name"] for row in good] == sorted(row["name"] for row in good)
    (old,) = [row for row in good if row["name"] == "thing07"]
    assert (old["color"], old["attempts"], old["finish_reason"], old["reason"]) == ("of old", 0, None, None)
    assert not {"thing05", "thing06", "thing07"} & {request.key for request in engine.requests}
    assert {name: (row["outcome"], row["reason"]) for name, row in bad.items()} == {
        "thing02": ("filtered", "none"),
        "thing03": ("truncated", "unreadable"),
        "thing05": ("filtered", "none"),
        "thing06": ("failed", "broken"),
    }
    assert sum(request.key == "thing02" for request in engine.requests) == 1  # a right answer isn't asked for again
    assert bad["thing03"]["known"] == "3" and bad["thing03"]["attempts"] == 4
    assert context.rows == context.figures["num_found"] == len(good) == 17
    assert context.figures["outcomes"] == {"failed": 1, "filtered": 2, "ok": 16, "truncated": 1}
    assert context.figures["sizes"] == {"big": 14, "known": 1, "small": 2}
    tables = context.out.list(".parquet", recursive=True)
    assert {name.split("/")[0] for name in tables} == {"found", "dead_letters"}
    assert all(context.out.read_table(name).schema.equals(SCHEMA) for name in tables)  # good and bad rows alike
    broken = context.out.read_json("rules.json")["rules"]
    assert broken["unreadable"]["count"] == 2 + 4 and broken["bad"]["count"] == 2


def test_what_is_not_wanted_is_no_error(run, monkeypatch):
    run(ReplayEngine(lambda request, number: "none"), keys=KEYS[8:], error_rate_limit=0.0)
    with pytest.raises(UserError, match=r"things: 2 of the first 20 things .*=0.05.*things.error_rate_limit=RATE"):
        run(ReplayEngine(answer), "two", error_rate_limit=0.05)
    monkeypatch.setattr(work, "_MIN_ROWS_FOR_GATE", 3)
    with pytest.raises(UserError, match="3 of the first 3 things"):
        run(ReplayEngine(lambda request, number: "?"), "early", KEYS[8:], temperatures=(0.0,))


def test_the_result_depends_on_neither_order_nor_interruption(run):
    whole = files_of(run(ReplayEngine(answer, seed=1), "whole"))
    assert files_of(run(ReplayEngine(answer, seed=2), "other")) == whole
    with pytest.raises(KeyboardInterrupt):
        run(ReplayEngine(answer, seed=3, stop_after=34), "cut")
    engine = ReplayEngine(answer, seed=4)
    assert files_of(run(engine, "cut")) == whole
    assert 0 < len({request.key for request in engine.requests}) < 17
