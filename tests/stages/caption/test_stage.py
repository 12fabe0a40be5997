import collections
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.artifacts import Artifact
from cluster.chat import ChatReply
from cluster.config import identity
from cluster.dag import Context
from cluster.errors import UserError
from cluster.vllm import Engine, EngineSettings
from stages.caption import work
from stages.caption.edits.prompt import styles
from stages.caption.offers import offer_types
from stages.caption.stage import TUPLES_SCHEMA, CaptionConfig, caption_images, caption_sources
from tests.stages.caption.replay import NUM_SAMPLES, ReplayEngine, files_of, rows_of, text_of
from tests.stages.ingest.context import make_context
from tests.tiny_qwen import make_model

GOOD = {
    "edit_type": "color",
    "src_caption": "red circle top left on gray background",
    "instruction": "make the red circle blue",
    "tgt_caption": "blue circle top left on gray background",
    "reverse_instruction": "make the blue circle red",
}


@pytest.fixture
def run(ingest: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the stage in a folder of its own with a given engine."""

    def run(engine: Engine, name: str = "caption", **fields) -> Context:
        context = make_context(tmp_path / name, "caption")
        monkeypatch.setattr(work, "get_engine", lambda settings, context: engine)
        fields = {
            "engine": {"model": "m"},
            "edit_types": ("color",),
            "num_offered": 1,
            "shard_size": 8,
        } | fields
        caption_images({"ingest": ingest}, CaptionConfig(**fields), context)
        return context

    return run


def scripted(answer: Callable[[str, int], str | ChatReply], **options) -> ReplayEngine:
    """Answers by a function of (sample id, attempt)."""
    return ReplayEngine(lambda request, number: answer(request.key, number), **options)


def answer_by_id(sample_id: str, attempt: int) -> str:
    """Most are good at once, some later, some never: by the sample alone, not by the order of the answers."""
    number = int(sample_id, 16)
    if number % 10 == 3 and attempt < 2:
        return json.dumps(GOOD | {"tgt_caption": "the circle is now blue, without red"})
    if number % 10 == 7:
        return "I can't do that."
    return json.dumps(GOOD)


def test_every_image_becomes_a_tuple_or_a_dead_letter_with_its_reason(run):
    engine = scripted(answer_by_id)
    context = run(engine)
    good, bad = rows_of(context, "tuples"), rows_of(context, "dead_letters")
    assert sorted(row["sample_id"] for row in good + bad) == [f"{i:016x}" for i in range(NUM_SAMPLES)]
    assert len(good) + len(bad) == NUM_SAMPLES and len(bad) == 3
    for row in good:
        late = int(row["sample_id"], 16) % 10 == 3
        assert {name: row[name] for name in GOOD} == GOOD
        assert (row["outcome"], row["reason"], row["attempts"]) == ("ok", None, 3 if late else 1)
        assert row["model"] == "m" and row["prompt_version"] == "v1" and len(row["prompt_hash"]) == 16
    assert {(row["outcome"], row["reason"], row["attempts"]) for row in bad} == {("failed", "no_json", 4)}
    for name in context.out.list(".parquet", recursive=True):
        assert context.out.read_table(name).schema.equals(TUPLES_SCHEMA)
    report = context.out.read_json("rules.json")
    assert report["rules_broken"]["target_tells_of_the_edit"] == 6 and report["rules_broken"]["no_json"] == 12
    assert report["rules"]["no_json"]["examples"][0]["answer"] == "I can't do that."
    assert context.rows == 27 and context.figures["outcomes"] == {"failed": 3, "ok": 27}
    assert context.figures["attempts_per_image"] == (24 + 3 * 3 + 3 * 4) / 30


def test_retries_grow_warmer_with_a_seed_of_their_own(run):
    engine = scripted(answer_by_id)
    run(engine, temperatures=(0.0, 0.5, 0.9))
    for number in (7, 17):
        mine = [request for request in engine.requests if int(request.key, 16) == number]
        assert [request.temperature for request in mine] == [0.0, 0.5, 0.9]
        assert len({request.seed for request in mine}) == 3
    assert len({request.seed for request in engine.requests}) == len(engine.requests)


def test_the_result_depends_on_neither_order_nor_interruption(run):
    whole = files_of(run(scripted(answer_by_id, seed=1), "whole"))
    assert files_of(run(scripted(answer_by_id, seed=2), "other_order")) == whole
    with pytest.raises(KeyboardInterrupt):
        run(scripted(answer_by_id, seed=3, stop_after=22), "cut_off")
    engine = scripted(answer_by_id, seed=4)
    context = run(engine, "cut_off")
    assert files_of(context) == whole
    assert 0 < len({request.key for request in engine.requests}) < NUM_SAMPLES  # finished shards aren't asked again


SPREAD = {
    "edit_types": ("color", "material", "background", "action", "style"), "num_offered": 2, "num_styles": 3,
    "temperatures": (0.0, 0.7),
}  # fmt: skip


def offered(request) -> tuple[list[str], list[str]]:
    """The edit types and the styles that a request offers."""
    listed = re.search(r"^- style: .*: (.*)$", text_of(request), re.MULTILINE)
    return request.schema["properties"]["edit_type"]["enum"], listed[1].split(", ") if listed else []


def choose(request, number: int) -> str:
    """A model with a taste of its own, that fails at first at one picture in four and always at another."""
    index = int(request.key, 16)
    types, styles = offered(request)
    if index % 4 == 0 and number == 0 or index % 13 == 5:
        return "no"
    if (edit_type := types[index % len(types)]) != "style":
        return json.dumps(GOOD | {"edit_type": edit_type})
    style = styles[index % 3]
    row = {"edit_type": "style", "instruction": f"turn it into {style}", "reverse_instruction": "turn it into a photo"}
    return json.dumps(row | {"src_caption": "photo of a dog on a hill", "tgt_caption": f"{style} of a dog on a hill"})


def test_what_is_offered_depends_on_neither_order_nor_workers_nor_failures(run):
    engine = ReplayEngine(choose, seed=1)
    context = run(engine, "whole", **SPREAD)
    whole, asked = files_of(context), {request.key: offered(request) for request in engine.requests}
    assert len({row["edit_type"] for row in rows_of(context, "tuples")}) == 5 and rows_of(context, "dead_letters")
    for num_in_flight, seed in ((1, 2), (64, 3)):
        other = ReplayEngine(choose, seed=seed, num_in_flight=num_in_flight)
        assert files_of(run(other, f"{num_in_flight}", **SPREAD)) == whole
        assert {request.key: offered(request) for request in other.requests} == asked
    for attempt in range(9):  # killed again and again
        try:
            run(ReplayEngine(choose, seed=attempt, stop_after=20), "killed", **SPREAD)
        except KeyboardInterrupt:
            continue
        break
    assert 1 <= attempt < 8
    assert files_of(run(ReplayEngine(choose), "killed", **SPREAD)) == whole


def test_styles_are_offered_evenly(run):
    engine = ReplayEngine(choose)
    run(engine, edit_types=("style",), num_offered=1, num_styles=4, shard_size=30, error_rate_limit=1.0)
    by_key = {request.key: offered(request)[1] for request in engine.requests}
    counts = collections.Counter(style for listed in by_key.values() for style in listed)
    assert len(by_key) == 30 and all(len(set(listed)) == 4 for listed in by_key.values())
    assert set(counts) == set(styles()) and max(counts.values()) - min(counts.values()) <= 1
    assert len({tuple(listed) for listed in by_key.values()}) > 20
    run(every := ReplayEngine(choose), "all", edit_types=("style",), num_offered=1, error_rate_limit=1.0)
    assert {tuple(offered(request)[1]) for request in every.requests} == {styles()}


def test_one_type_on_offer_makes_the_balance_exact():
    types = ("color", "replace", "add", "style")
    offers = offer_types(["{}"] * 1000, types, 1, 0.5, 1, {"replace": 2.0})
    counts = collections.Counter(name for (name,), _ in offers)
    assert counts["replace"] == pytest.approx(400, abs=8)
    assert all(counts[name] == pytest.approx(200, abs=8) for name in ("color", "add", "style"))
    with pytest.raises(ValueError, match="with a number above 0"):
        CaptionConfig(priorities={"remove": 0.0})


def test_a_draft_in_a_thought_that_was_cut_off_is_no_answer(run):
    """The chat template opened the thought, so the answer has no mark of it."""

    def answer(sample_id: str, attempt: int) -> ChatReply:
        if int(sample_id, 16) == 0:
            draft = f"First I thought of {json.dumps(GOOD)} but the circle"
            return ChatReply(sample_id, draft, "length" if attempt < 2 else "stop", 50, 40)
        return ChatReply(sample_id, json.dumps(GOOD), "length", 50, 40)  # whole at the last token that there was

    context = run(scripted(answer))
    rows = {int(row["sample_id"], 16): row for row in rows_of(context, "tuples")}
    assert len(rows) == NUM_SAMPLES and rows[0]["attempts"] == 3 and rows[1]["attempts"] == 1
    assert context.figures["rules_broken"] == {"cut_off": 2}


def test_truncated_and_refused_requests_have_their_outcome(run):
    def answer(sample_id: str, attempt: int) -> str | ChatReply:
        number = int(sample_id, 16)
        if number == 0:
            return ChatReply(sample_id, '{"edit_type": "col', "length", 50, 40)
        if number == 1:
            return ChatReply(sample_id, error="image: broken")
        return json.dumps(GOOD)

    bad = {int(row["sample_id"], 16): row for row in rows_of(run(scripted(answer)), "dead_letters")}
    assert (bad[0]["outcome"], bad[0]["attempts"], bad[0]["finish_reason"]) == ("truncated", 4, "length")
    assert bad[0]["reason"] == "cut_off"
    assert (bad[1]["outcome"], bad[1]["reason"], bad[1]["attempts"]) == ("failed", "image: broken", 1)
    assert len(bad) == 2


def test_too_many_bad_rows_stop_the_stage(run, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"12 of the first 30 images .*error_rate_limit=0.3.*no_json \(12\)"):
        run(
            scripted(lambda key, _: json.dumps(GOOD) if int(key, 16) >= 12 else "no"),
            error_rate_limit=0.3,
        )
    monkeypatch.setattr(work, "_MIN_ROWS_FOR_GATE", 5)
    engine = scripted(lambda key, attempt: "no")
    with pytest.raises(UserError, match="5 of the first 5 images"):
        run(engine, "early", temperatures=(0.0,))
    assert len(engine.requests) < 15


def test_what_belongs_to_the_fingerprint(tmp_path: Path):
    config = CaptionConfig(engine=EngineSettings(model=str(tmp_path)))
    sources = caption_sources(config)
    assert sources[0] == str(tmp_path) and Path(sources[1]).name == "v1" and Path(sources[1]).is_dir()
    scaled = EngineSettings(model=str(tmp_path), num_in_flight=7, tensor_parallel_size=4, endpoint="http://h/v1")
    same = CaptionConfig(engine=scaled, error_rate_limit=0.1)
    assert identity(same) == identity(config)
    assert identity(CaptionConfig(engine=config.engine, max_tokens=99)) != identity(config)
    with pytest.raises(ValueError, match="choose some of color, material"):
        CaptionConfig(edit_types=("colour",))


def test_the_real_engine_writes_rows(local_ray: None, ingest: Artifact, tmp_path: Path):
    """An untrained model: its answers have the form, but not the sense, so every row is a dead letter by a
    rule.
    """
    model = make_model(tmp_path / "model")
    config = CaptionConfig(
        engine=EngineSettings(model=str(model), max_model_len=4096), temperatures=(0.0, 1.0), max_tokens=400,
        shard_size=20, error_rate_limit=1.0,
    )  # fmt: skip
    context = make_context(tmp_path, "caption")
    caption_images({"ingest": ingest}, config, context)
    rows = rows_of(context, "tuples") + rows_of(context, "dead_letters")
    assert sorted(row["sample_id"] for row in rows) == [f"{i:016x}" for i in range(NUM_SAMPLES)]
    assert {row["outcome"] for row in rows} <= {"ok", "filtered", "truncated", "failed"}
    assert all(row["prompt_tokens"] > 100 and row["completion_tokens"] > 0 for row in rows)
    assert not any((row["reason"] or "").startswith(("request:", "image:")) for row in rows)
    assert context.rows == sum(row["outcome"] == "ok" for row in rows)
