"""What all rows would cost, from a few: the same rows and answers as in a run, counted by hand."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest

from cluster.alone import alone
from cluster.chat import ChatReply
from cluster.config import StageConfig
from cluster.dag import Stage
from cluster.folder import Folder
from cluster.plan import fingerprint
from pipelines import cost as command
from stages.caption.cost import choose_keys, estimate, show
from stages.caption.stage import CaptionConfig, ask_captions
from stages.caption.trial import sample_rows, try_rows
from tests.stages.caption.replay import NUM_SAMPLES, ReplayEngine, text_of

GOOD = {
    "edit_type": "color",
    "src_caption": "red circle top left on gray background",
    "instruction": "make the red circle blue",
    "tgt_caption": "blue circle top left on gray background",
    "reverse_instruction": "make the blue circle red",
}
CONFIG = CaptionConfig(engine={"model": "m"}, shard_size=8, num_offered=2, temperatures=(0.0, 0.5))


def answer(request, number):
    """Every fourth row fails for good, every other fourth at first; the types that are offered play no part."""
    index = int(request.key, 16)
    text = "no" if index % 4 == 0 or (index % 4 == 1 and number == 0) else json.dumps(GOOD)
    return ChatReply(request.key, text, "stop", 100 + index, 10)


def always_offered(monkeypatch):
    monkeypatch.setattr("stages.caption.stage.check", lambda fields, offered, styles: [])


def test_the_sample_is_asked_about_as_in_the_whole_run(ingest):
    with alone("caption") as context:
        whole = ask_captions({"ingest": ingest}, CONFIG, context)
        keys = choose_keys(whole.keys, 6, seed=0)
        assert keys == choose_keys(whole.keys[::-1], 6, seed=0) and len(set(keys)) == 6
        engine = ReplayEngine(answer)
        try_rows(sample_rows(whole, CONFIG.shard_size, keys), CONFIG, context, engine)
    with alone("caption") as context:
        all_rows = ReplayEngine(answer)
        try_rows(whole, CONFIG, context, all_rows)

    def said(engine):
        return {(r.key, r.seed): (text_of(r), r.temperature) for r in engine.requests if r.key in keys}

    assert said(engine) == said(all_rows) and {r.key for r in engine.requests} == set(keys)


def test_tokens_of_every_attempt_are_carried_over_to_all_rows(ingest, monkeypatch):
    always_offered(monkeypatch)
    with alone("caption") as context:
        whole = ask_captions({"ingest": ingest}, CONFIG, context)
        sampled = sample_rows(whole, CONFIG.shard_size, choose_keys(whole.keys, 12, seed=0))
        trial = try_rows(sampled, CONFIG, context, ReplayEngine(answer))
        found = estimate(trial, whole, sampled, CONFIG, Folder(context.root).sub("measured"))
    indices = [int(key, 16) for key in sampled.keys]
    attempts = [2 if index % 4 < 2 else 1 for index in indices]
    prompt = [(100 + index) * num for index, num in zip(indices, attempts, strict=True)]
    assert (found.num_rows, found.num_sampled, found.calls.mean) == (NUM_SAMPLES, 12, 1.0)
    assert found.attempts.mean == pytest.approx(np.mean(attempts))
    assert found.prompt_tokens.mean == pytest.approx(np.mean(prompt))
    assert found.prompt_tokens.high == pytest.approx(np.percentile(prompt, 95))
    assert found.num_tokens == pytest.approx(NUM_SAMPLES * (np.mean(prompt) + 10 * np.mean(attempts)))
    assert found.kept == sum(index % 4 > 0 for index in indices) / 12
    assert found.kept_interval[0] < found.kept < found.kept_interval[1] <= 1
    said = show(found, "image", 2, tokens_per_second=10.0, price=3.0)
    hours = found.num_tokens / 10 * 2 / 3600
    assert f"{hours:,.2f} GPU-hours with 4 engines of 2" in show(found, "image", 2, 4, tokens_per_second=10.0)
    assert (
        f"{hours:,.2f} GPU-hours with 2" in said and f"{3 * hours:,.2f} at 3" in said and "10 tokens a second" in said
    )
    assert f"the others        no_json ({round(12 * (1 - found.kept))})\n" in said


def test_bytes_are_those_of_the_tables(ingest, monkeypatch):
    """Of a sample that is everything the estimate is near the bytes that a run writes."""
    always_offered(monkeypatch)
    with alone("caption") as context:
        whole = ask_captions({"ingest": ingest}, CONFIG, context)
        trial = try_rows(whole, CONFIG, context, ReplayEngine(answer))
        written = sum(size for name, size in context.out.sizes().items() if name.endswith(".parquet"))
        found = estimate(trial, whole, whole, CONFIG, Folder(context.root).sub("measured"))
    assert 0.5 < found.num_bytes / written < 2


class NumberConfig(StageConfig):
    number: int = 0


def make_nothing(inputs, config, context):
    raise AssertionError("an estimate makes nothing")


STAGES = (
    Stage("ingest", "1", make_nothing, NumberConfig),
    Stage("caption", "1", make_nothing, CaptionConfig, ("ingest",)),
)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """The command on a pipeline of two stages."""
    (tmp_path / "p.yaml").write_text("caption: {engine: {model: m}, shard_size: 8}\ningest: {number: 7}\n")

    @contextlib.contextmanager
    def opened(config, context):
        yield ReplayEngine(answer)

    def call(*more):
        where = ["--profile", str(tmp_path / "p.yaml"), "--root", str(tmp_path / "root"), "--stage", "caption"]
        return command.main([*where, *more], stages=STAGES, profiles=tmp_path)

    monkeypatch.setattr(command, "opened", opened)
    return call


def test_the_command_needs_what_the_stage_reads_and_makes_nothing(call, ingest, tmp_path, monkeypatch, capsys):
    always_offered(monkeypatch)
    assert call() == 2
    said = capsys.readouterr().err
    assert "These inputs aren't made yet: ingest (needed by caption)." in said
    assert "pipelines/full.py --profile" in said and said.rstrip().endswith("--only ingest")
    root = Folder(tmp_path / "root")
    key = fingerprint(STAGES[0], NumberConfig(number=7), {}, {})
    for name in ingest.folder.list(recursive=True):
        root.sub(f"ingest/{key}").write_bytes(name, ingest.folder.read_bytes(name))
    before = root.list(recursive=True)
    assert call("--num-rows", "8", "--tokens-per-second", "50", "--price-per-gpu-hour", "2") == 0
    said = capsys.readouterr().out
    assert "30 images; 8 of them were asked about" in said and "50 tokens a second" in said and "at 2 for" in said
    assert root.list(recursive=True) == before
    assert call("--set", "capton.seed=1") == 2 and "did you mean 'caption'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call("--num-rows", "0")
    assert "invalid positive int value: '0'" in capsys.readouterr().err
