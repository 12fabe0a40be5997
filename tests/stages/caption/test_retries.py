"""Rows that came to nothing are asked about again; the others stay as they are."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.artifacts import Artifact, commit
from cluster.chat import request_seed
from cluster.config import identity
from cluster.dag import Context, Stage
from cluster.folder import Folder
from cluster.plan import Selection, make_plan
from stages.caption import work
from stages.caption.customization.stage import CustomizeConfig, customize_images
from stages.caption.stage import CaptionConfig, caption_images
from tests.stages.caption.replay import NUM_SAMPLES, ReplayEngine, files_of, images_of, rows_of
from tests.stages.ingest.context import make_context

GOOD = {
    "edit_type": "color",
    "src_caption": "red circle top left on gray background",
    "instruction": "make the red circle blue",
    "tgt_caption": "blue circle top left on gray background",
    "reverse_instruction": "make the blue circle red",
}
FIELDS = {
    "engine": {"model": "m"}, "edit_types": ("color",), "num_offered": 1, "shard_size": 8, "temperatures": (0.0, 0.5),
}  # fmt: skip


def answer(request, number):
    """By what the request is, so that it is the same in any process: one in three needs a retry or never gets right."""
    index = int(request.key, 16)
    if index % 3 or index >= 16:  # the last two shards are good at once
        return json.dumps(GOOD)
    if index % 2:
        return "no" if request.seed in FIRST else json.dumps(GOOD | {"tgt_caption": "the circle is now blue"})
    return json.dumps(GOOD) if request.seed in LATE else "no"


FIRST = {request_seed(0, f"{index:016x}", attempt) for index in (3, 9, 15) for attempt in (0, 1)}
# seeds of the attempts, from 0, at which rows 0, 6 and 12 get right: with one, two and three retries
LATE = {request_seed(0, f"{index:016x}", attempt) for index in (0, 6, 12) for attempt in range(2 + index // 6, 9)}


@pytest.fixture
def run(ingest: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def call(engine, name: str, retries: int, earlier: Artifact | None = None) -> Context:
        context = make_context(tmp_path / name, "caption")
        context.earlier = earlier
        monkeypatch.setattr(work, "get_engine", lambda settings, context: engine)
        caption_images({"ingest": ingest}, CaptionConfig(**FIELDS, retries=retries), context)
        return context

    return call


def finished(context: Context, config) -> Artifact:
    manifest = commit(
        context.out, stage="caption", version="1", fingerprint=context.fingerprint, config={}, parents={}, run_id="r",
        identity=identity(config), code_version="test",
    )  # fmt: skip
    context.out.remove("manifest.json")  # what the stage wrote is compared
    return Artifact("caption", context.fingerprint, context.out, manifest)


def by_id(rows):
    return {row["sample_id"]: row for row in rows}


def test_what_was_good_stays_and_the_rest_is_asked_about_again(run):
    first = run(ReplayEngine(answer), "first", 0)
    engine = ReplayEngine(answer)
    second = run(engine, "second", 1, finished(first, CaptionConfig(**FIELDS)))
    good, bad = by_id(rows_of(first, "tuples")), by_id(rows_of(first, "dead_letters"))
    good_now, bad_now = by_id(rows_of(second, "tuples")), by_id(rows_of(second, "dead_letters"))
    assert len(rows_of(second, "tuples")) + len(rows_of(second, "dead_letters")) == NUM_SAMPLES
    assert {key: good_now[key] for key in good} == good and set(good_now) | set(bad_now) == set(good) | set(bad)
    moved = set(good_now) - set(good)
    assert moved and bad_now and set(bad_now) < set(bad)
    assert {row["attempts"] for row in bad_now.values()} == {3}
    assert any(bad_now[key]["reason"] != bad[key]["reason"] for key in bad_now)
    assert [row["sample_id"] for row in rows_of(second, "tuples")] == sorted(good_now)
    assert {request.key for request in engine.requests} == set(bad)  # nothing else is paid for again
    assert {request.temperature for request in engine.requests} == {0.5}
    last = [name for name in first.out.list(".parquet", recursive=True) if name.startswith("tuples/")][-1]
    assert first.out.sha256(last) == second.out.sha256(last)
    rules = second.out.read_json("rules.json")["rules"]
    assert sum(rules["no_json"]["by_attempt"].values()) == rules["no_json"]["count"] > 0
    assert {"1", "2", "3"} <= {attempt for rule in rules.values() for attempt in rule["by_attempt"]}


def test_the_result_is_the_same_without_the_earlier_artifact_and_however_it_is_cut(run):
    config = CaptionConfig(**FIELDS)
    earlier = finished(run(ReplayEngine(answer, seed=1), "first", 0), config)
    whole = files_of(run(ReplayEngine(answer, seed=2), "from_nothing", 2))
    assert files_of(run(ReplayEngine(answer, seed=3), "from_earlier", 2, earlier)) == whole
    once = finished(run(ReplayEngine(answer, seed=4), "once", 1, earlier), config.model_copy(update={"retries": 1}))
    assert files_of(run(ReplayEngine(answer, seed=5), "step_by_step", 2, once)) == whole
    with pytest.raises(KeyboardInterrupt):
        run(ReplayEngine(answer, seed=6, stop_after=8), "cut", 2, earlier)
    assert files_of(run(ReplayEngine(answer, seed=7), "cut", 2, earlier)) == whole


def test_a_right_answer_about_an_unfit_picture_is_not_asked_for_again(ingest, tmp_path, monkeypatch):
    settings = ["on a wooden bench", "in the snow at dusk", "on a kitchen table"]
    calls: collections.Counter[tuple[str, bool]] = collections.Counter()

    def about(request, number):
        calls[request.key, bool(images_of(request))] += 1
        if images_of(request):
            is_unique = int(request.key, 16) % 2 == 0
            return json.dumps({"reason": "", "is_unique": is_unique, "object": "a bear" if is_unique else ""})
        is_late = calls[request.key, False] <= 1 and request.key == "0" * 16
        return json.dumps({"backgrounds": settings[:2] if is_late else settings})

    context = make_context(tmp_path / "retried", "customize")
    monkeypatch.setattr(work, "get_engine", lambda settings, context: ReplayEngine(about))
    config = CustomizeConfig(engine={"model": "m"}, temperatures=(0.5,), setting_temperatures=(1.0,), retries=1)
    customize_images({"ingest": ingest}, config, context)
    assert calls[f"{1:016x}", True] == 1 and len(rows_of(context, "dead_letters")) == NUM_SAMPLES // 2
    assert calls["0" * 16, True] == 2 and calls["0" * 16, False] == 2  # it begins at its first call
    assert [row["attempts"] for row in rows_of(context, "tuples")][:4] == [2, 2, 2, 1]


def test_the_plan_starts_from_the_artifact_with_the_most_retries(tmp_path):
    root = Folder(tmp_path / "root")
    stage = Stage("caption", "1", caption_images, CaptionConfig)

    def plan(*force, **fields):
        config = CaptionConfig(**FIELDS | fields)
        (planned,) = make_plan([stage], {"caption": config}, root, Selection(force=force))
        return planned

    def make(planned):
        folder = root.sub(f"caption/{planned.fingerprint}")
        folder.write_json("rules.json", {})
        commit(
            folder, stage="caption", version="1", fingerprint=planned.fingerprint, config={}, parents={}, run_id="r",
            identity=identity(planned.config), code_version="test",
        )  # fmt: skip

    assert plan(retries=1).earlier is None
    make(plan())
    assert plan().state == "cached" and plan().earlier is None
    once = plan(retries=1)
    assert once.earlier.fingerprint == plan().fingerprint != once.fingerprint
    assert once.why == f"caption.retries: 0 -> 1; starts from {plan().fingerprint}"
    assert plan(retries=1, max_tokens=99).earlier is None and plan("caption", retries=1).earlier is None
    make(once)
    assert plan(retries=3).earlier.fingerprint == once.fingerprint


def test_retries_that_could_only_repeat_are_refused():
    with pytest.raises(ValidationError, match="same answers at temperature 0"):
        CaptionConfig(**FIELDS | {"temperatures": (0.0,)}, retries=1)
