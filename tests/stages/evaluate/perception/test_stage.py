"""The stage with all metrics by models: tables, reasons, resuming, figures and their rescoring."""

import json

import numpy as np
import pyarrow as pa
import pytest

import stages.evaluate.perception.tifa_shards
from cluster.chat import ChatReply
from stages.evaluate.perception.measures import EditToSee, Perception
from stages.evaluate.perception.shard import noun_of
from stages.evaluate.settings import EvaluateConfig, EvaluateVideoConfig
from stages.evaluate.stage import evaluate_edits, evaluate_sources
from stages.evaluate.summary import PERCEPTION_METRICS
from stages.train.backbones.clip_files import read_clip, write_clip
from tests.stages.evaluate.test_judge_calls import ScriptedEngine
from tests.stages.evaluate.test_stage import artifact, png
from tests.stages.ingest.context import make_context

TEXTS = {"src_caption": "a red cat", "tgt_caption": "a blue dog", "metadata": json.dumps({"class": "cat"})}
FIGURES = ("figures/summary.parquet", "figures/comparisons.parquet", "figures/agreement.parquet")


@pytest.fixture
def inputs(tmp_path, pictures):
    a, b, c, d, _ = (png(np.asarray(picture)) for picture in pictures)
    common = {"source_id": "s", "edit_type": "subject", "instruction": "do it"}
    items = [common | TEXTS | {"item_id": "1", "image": a}, common | TEXTS | {"item_id": "2", "image": b}]
    items[1] |= {"src_caption": "", "metadata": "{}"}
    edits = [{"item_id": item, "method": "byg", "image": image, "seconds": 1.0} for item, image in (("1", c), ("2", d))]
    copies = [edit | {"method": "copy", "image": item["image"]} for edit, item in zip(edits, items, strict=True)]
    copies[1]["image"] = b"broken"
    return {
        "benchmark": artifact(tmp_path, "benchmark", {"benchmark.parquet": items}),
        "edit": artifact(tmp_path, "edit", {"edits/a.parquet": edits, "edits/b.parquet": copies}),
    }


@pytest.fixture
def settings(folders):
    return {
        "clip": {"model": str(folders["clip"])},
        "dino": {"model": str(folders["dino"]), "size": 32, "resize": "square"},
        "dinov2": {"model": str(folders["dinov2"]), "size": 28},
        "segmenter": {"detector": str(folders["detector"]), "segmenter": str(folders["sam2"]), "box_threshold": 0.0},
        "tifa": {"engine": {"model": "some/vlm"}},
    }


@pytest.fixture
def engine(monkeypatch):
    def script(request, attempt):
        if request.schema is not None:
            return ChatReply(request.key, json.dumps({"questions": ["A dog?", "Is it blue?"]}), "stop")
        return ChatReply(request.key, "Yes" if "A dog?" in str(request.messages) else "No", "stop")

    engine = ScriptedEngine(script)
    monkeypatch.setattr(stages.evaluate.perception.tifa_shards, "get_engine", lambda settings, context: engine)
    return engine


@pytest.fixture
def in_process(monkeypatch):
    """The shards that were done, one after the other in this process."""
    done = []

    def run(shards, work, *, context, **options):
        for shard in shards:
            if not context.out.exists(shard):
                work(shard)
                done.append(shard)

    monkeypatch.setattr("stages.evaluate.stage.run_shards", run)
    return done


def evaluated(tmp_path, inputs, **perception):
    context = make_context(tmp_path, "evaluate")
    config = EvaluateConfig(num_workers=1, num_resamples=100, perception=perception or None)
    evaluate_edits(inputs, config, context)
    rows = context.out.read_table("scores.parquet").to_pylist()
    return context, {(row["method"], row["item_id"]): row for row in rows}


def test_every_metric_on_workers(tmp_path, inputs, settings, engine, local_ray, pictures):
    context, rows = evaluated(tmp_path, inputs, **settings)
    row = rows["byg", "1"]
    del settings["tifa"]
    perception = Perception(EvaluateConfig(perception=settings).perception)
    (expected,) = perception.measure([EditToSee([pictures[0]], [pictures[2]], "a red cat", "a blue dog", "cat")])
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert row["tifa"] == 0.5 and row["unscored"] is None
    assert row["geometric_score"] == pytest.approx((0.5 * max(row["dinov2_masked"], 0)) ** 0.5)
    assert json.loads(row["tifa_answers"]) == [["A dog?", "Yes", "Yes"], ["Is it blue?", "Yes", "No"]]
    figures = context.figures["results"]["byg"]
    assert figures["dino"] == pytest.approx(np.mean([rows["byg", item]["dino"] for item in "12"]))
    assert figures["clip_directional"] == row["clip_directional"]  # the other item has no caption of its source
    summary = context.out.read_table("figures/summary.parquet").to_pylist()
    (of_clip,) = [
        r for r in summary if (r["method"], r["metric"], r["edit_type"]) == ("byg", "clip_directional", "all")
    ]
    assert (of_clip["num_items"], of_clip["num_expected"]) == (1, 2)


def test_what_is_undefined_says_why(tmp_path, inputs, settings, engine, in_process):
    _, rows = evaluated(tmp_path, inputs, **settings)
    row = rows["byg", "2"]
    assert row["clip_directional"] is None and row["dinov2_masked"] is None and row["geometric_score"] is None
    assert row["unscored"] == (
        "clip_directional: the item has no src_caption; dinov2_masked: the item has no noun"
    )  # fmt: skip
    assert row["clip_score"] is not None and row["tifa"] == 0.5
    row = rows["copy", "1"]
    assert row["unscored"] == "clip_directional: the edit is its source, which has no direction"
    assert row["clip_directional"] is None and row["dino"] == pytest.approx(1)
    row = rows["copy", "2"]
    assert row["unscored"].startswith("image:") and all(row[name] is None for name in PERCEPTION_METRICS)


def test_it_goes_on_where_it_stopped(tmp_path, inputs, settings, engine, in_process):
    context, _ = evaluated(tmp_path, inputs, **settings)
    names = ("scores.parquet", "tifa_questions.parquet", *FIGURES)
    before = {name: context.out.read_bytes(name) for name in names}
    context.out.remove("perception/edit/edits/b.parquet")
    context.out.remove("tifa/edit/edits/a.parquet")
    in_process.clear()
    engine.asked.clear()
    evaluated(tmp_path, inputs, **settings)
    assert in_process == ["perception/edit/edits/b.parquet"]
    assert {request.key.split(":")[1].split("/")[0] for request in engine.asked} == {"byg"}  # and no new questions
    assert {name: context.out.read_bytes(name) for name in names} == before


def test_without_the_section_nothing_else_changes(tmp_path, inputs, settings, engine, in_process):
    with_models, rows = evaluated(tmp_path / "with", inputs, **settings)
    without, plain = evaluated(tmp_path / "without", inputs)
    assert all(row[name] is None for row in plain.values() for name in (*PERCEPTION_METRICS, "tifa_answers"))
    for name in FIGURES:
        table = with_models.out.read_table(name)
        kept = [i for i, row in enumerate(table.to_pylist()) if row.get("metric") not in PERCEPTION_METRICS]
        assert table.take(pa.array(kept, pa.int64())).equals(without.out.read_table(name))
    of_models = {*PERCEPTION_METRICS, "tifa_answers", "unscored"}
    for key, row in plain.items():
        assert all(rows[key][name] == value for name, value in row.items() if name not in of_models)


def test_questions_from_a_file(tmp_path, inputs, engine, in_process):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"1": ["A dog?", {"question": "Is it red?", "answer": "No"}]}))
    _, rows = evaluated(tmp_path, inputs, tifa={"engine": {"model": "some/vlm"}, "questions": str(path)})
    assert rows["byg", "1"]["tifa"] == 1 and rows["byg", "1"]["dino"] is None
    assert rows["byg", "2"]["tifa"] is None and rows["byg", "2"]["unscored"] == "tifa: the item has no questions"
    assert len(engine.asked) == 2 * 2


def with_questions(inputs, tmp_path, *own):
    """The inputs, their items with such metadata."""
    items = inputs["benchmark"].folder.read_table("benchmark.parquet").to_pylist()
    items = [item | {"metadata": json.dumps(of_item)} for item, of_item in zip(items, own, strict=True)]
    return inputs | {"benchmark": artifact(tmp_path / "own", "benchmark", {"benchmark.parquet": items})}


def test_an_items_own_questions_are_taken_and_others_written(tmp_path, inputs, engine, in_process):
    own = {"questions": ["A dog?", {"question": "Is it red?", "answer": "No"}]}
    tifa = {"engine": {"model": "some/vlm"}}
    context, rows = evaluated(tmp_path, with_questions(inputs, tmp_path, own, {}), tifa=tifa)
    assert json.loads(rows["byg", "1"]["tifa_answers"]) == [["A dog?", "Yes", "Yes"], ["Is it red?", "No", "No"]]
    assert rows["byg", "1"]["tifa"] == 1 and rows["byg", "2"]["tifa"] == 0.5
    written = [request.key for request in engine.asked if request.schema is not None]
    assert written == ["2"]
    table = context.out.read_table("tifa_questions.parquet").to_pylist()
    assert [row["model"] for row in table] == [None, "some/vlm"]


def test_a_file_of_questions_wins_over_the_items_own(tmp_path, inputs, engine, in_process):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"1": ["A dog?"]}))
    given = with_questions(inputs, tmp_path, {"questions": ["Is it red?"]}, {"questions": ["Is it red?"]})
    _, rows = evaluated(tmp_path, given, tifa={"engine": {"model": "some/vlm"}, "questions": str(path)})
    assert rows["byg", "1"]["tifa"] == 1 and rows["byg", "2"]["unscored"] == "tifa: the item has no questions"
    assert not any(request.schema for request in engine.asked)


def test_own_questions_that_cannot_be_asked_say_why(tmp_path, inputs, engine, in_process):
    bad = {"questions": [{"question": "How many?", "answer": "two"}]}
    given = with_questions(inputs, tmp_path, bad, {"questions": ["A dog?"]})
    tifa = {"engine": {"model": "some/vlm"}}
    context, rows = evaluated(tmp_path, given, tifa=tifa)
    reason = "tifa: it has a question with the answer 'two'. Ask so that it is Yes or No"
    assert rows["byg", "1"]["tifa"] is None and rows["byg", "1"]["unscored"] == reason
    assert rows["byg", "2"]["tifa"] == 1
    context.out.remove("tifa/edit/edits/a.parquet")
    assert evaluated(tmp_path, given, tifa=tifa)[1] == rows  # the reason is known without asking


def test_models_prompts_and_questions_belong_to_the_fingerprint(tmp_path, settings, folders):
    path = tmp_path / "questions.json"
    settings["tifa"] |= {"questions": str(path)}
    sources = evaluate_sources(EvaluateConfig(perception=settings))
    assert set(map(str, folders.values())) | {str(path)} <= set(sources)
    assert any(source.endswith("perception/v1") for source in sources)
    assert evaluate_sources(EvaluateConfig(perception={"clip": {}})) == []  # a hub id is a setting


def test_a_clip_is_seen_frame_by_frame(tmp_path, settings, in_process, pictures):
    del settings["tifa"]
    source = [picture.resize((48, 32)) for picture in (pictures[0], pictures[4])]
    edited = [picture.resize((48, 32)) for picture in (pictures[1], pictures[2])]
    item = {"source_id": "s", "edit_type": "style", "instruction": "do it"} | TEXTS
    item |= {"item_id": "1", "image": png(np.asarray(source[0])), "clip": write_clip(source)}
    edit = {"item_id": "1", "method": "byg", "image": png(np.asarray(edited[-1])), "seconds": 1.0}
    given = {
        "benchmark": artifact(tmp_path, "benchmark", {"benchmark.parquet": [item]}),
        "edit": artifact(tmp_path, "edit", {"a.parquet": [edit | {"clip": write_clip(edited)}]}),
        "edit_other": artifact(tmp_path, "edit_other", {"a.parquet": [edit | {"clip": None, "method": "none"}]}),
    }
    context = make_context(tmp_path, "evaluate_video")
    config = EvaluateVideoConfig(num_resamples=100, perception=settings)
    evaluate_edits(given, config, context)
    row, none = context.out.read_table("scores.parquet").to_pylist()
    frames = [read_clip(write_clip(frames)) for frames in (source, edited)]
    (expected,) = Perception(config.perception).measure([EditToSee(*frames, "a red cat", "a blue dog", "cat")])
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5) and row["unscored"] is None
    assert none["dino"] is None and none["unscored"].startswith("image:")


def test_neighbours_of_a_clip_that_are_alike_are_frames_of_their_own(tmp_path, settings, in_process, pictures):
    """A file keeps them as one: the benchmark's length says how many there are, and each edit meets its own frame."""
    settings = {"dino": settings["dino"]}
    a, b, c, d = (picture.resize((48, 32)) for picture in pictures[:4])
    source, edited = [a, a, a, b], [c, d, d, d]
    item = {"source_id": "s", "edit_type": "style", "instruction": "do it"} | TEXTS
    item |= {"item_id": "1", "image": png(np.asarray(a)), "clip": write_clip(source)}
    edit = {"item_id": "1", "method": "byg", "image": png(np.asarray(d)), "seconds": 1.0, "clip": write_clip(edited)}
    given = {
        "benchmark": artifact(tmp_path, "benchmark", {"benchmark.parquet": [item]}, config={"num_frames": 4}),
        "edit": artifact(tmp_path, "edit", {"a.parquet": [edit]}),
    }
    context = make_context(tmp_path, "evaluate_video")
    config = EvaluateVideoConfig(num_resamples=100, perception=settings)
    evaluate_edits(given, config, context)
    (expected,) = Perception(config.perception).measure([EditToSee(source, edited, "", "", "")])
    assert context.out.read_table("scores.parquet")["dino"].to_pylist() == pytest.approx([expected["dino"]], abs=1e-5)


def test_clips_have_no_tifa(settings):
    with pytest.raises(ValueError, match="not about clips"):
        EvaluateVideoConfig(perception=settings)
    del settings["tifa"]
    assert EvaluateVideoConfig(perception=settings).perception.clip is not None


def test_the_noun_is_the_column_or_in_the_metadata():
    keys = ("object", "class")
    assert noun_of({"object": "mug", "metadata": '{"class": "cup"}'}, keys) == "mug"
    assert noun_of({"object": None, "metadata": '{"class": "cup", "object": "dog"}'}, keys) == "dog"
    assert noun_of({"metadata": '{"class": "cup"}'}, ("class",)) == "cup"
    for metadata in ("", "{", "[1]", '{"object": 3}', None):
        assert noun_of({"metadata": metadata}, keys) == ""
