import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import stages.evaluate.stage
from cluster.artifacts import Artifact, commit
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.vllm import EngineSettings
from stages.evaluate.settings import EvaluateConfig
from stages.evaluate.stage import evaluate_edits, evaluate_sources
from stages.evaluate.summary import SCORES_SCHEMA
from stages.starter.world import render, sample_edit, sample_scene
from tests.stages.evaluate.test_judge_calls import ScriptedEngine, good
from tests.stages.ingest.context import make_context

pytestmark = pytest.mark.usefixtures("local_ray")
NUM_ITEMS = 6


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def artifact(tmp_path, stage, tables, config=None):
    folder = Folder(tmp_path / stage / "ffff")
    for name, rows in tables.items():
        folder.write_table(name, pa.Table.from_pylist(rows))
    manifest = commit(
        folder, stage=stage, version="1", fingerprint="ffff", config=config or {}, identity={}, parents={}, run_id="r",
        code_version="test",
    )  # fmt: skip
    return Artifact(stage, "ffff", folder, manifest)


@pytest.fixture
def inputs(tmp_path):
    """A benchmark of scenes; `truth` makes every edit but has no image for one item and a broken one for
    another.
    """
    generator = np.random.default_rng(2)
    edits = [sample_edit(sample_scene(generator), generator) for _ in range(NUM_ITEMS)]
    benchmark = [
        {
            "item_id": f"{i}", "source_id": f"s{i}", "image": png(render(e.source)), "edit_type": e.edit_type,
            "instruction": e.instruction, "metadata": e.to_json(),
        }
        for i, e in enumerate(edits)
    ]  # fmt: skip
    truth = [
        {"item_id": f"{i}", "method": "truth", "image": png(render(e.target)), "seconds": 0.1}
        for i, e in enumerate(edits)
    ]
    truth[1]["image"] = b"broken"
    copies = [{"item_id": row["item_id"], "method": "copy", "image": row["image"], "seconds": 0.0} for row in benchmark]
    return {
        "benchmark": artifact(tmp_path, "benchmark", {"benchmark.parquet": benchmark}),
        "edit": artifact(tmp_path, "edit", {"edits/a.parquet": truth[:-1], "edits/b.parquet": copies}),
    }


def rows_of(context):
    table = context.out.read_table("scores.parquet")
    assert table.schema == SCORES_SCHEMA
    return {(row["method"], row["item_id"]): row for row in table.to_pylist()}


def test_scores_without_a_judge(tmp_path, inputs):
    context = make_context(tmp_path, "evaluate")
    evaluate_edits(inputs, EvaluateConfig(num_workers=1, num_resamples=100), context)
    rows = rows_of(context)
    assert len(rows) == 2 * NUM_ITEMS == context.rows
    assert rows["truth", "0"]["whole_scene_right"] == 1.0
    assert rows["copy", "0"]["edit_success"] == 0.0 and rows["copy", "0"]["l1"] == 0.0
    assert rows["truth", "1"]["unscored"].startswith("image:")
    assert rows["truth", "5"]["unscored"].startswith("missing:")
    assert rows["truth", "1"]["whole_scene_right"] is None
    results = context.figures["results"]
    assert results["truth"]["whole_scene_right"] == 1.0
    assert (results["truth"]["num_items"], results["truth"]["num_expected"]) == (NUM_ITEMS - 2, NUM_ITEMS)
    assert results["copy"]["whole_scene_right"] == 0.0
    assert results["truth"]["judge_overall"] is None
    assert context.out.exists("figures/summary.parquet") and context.out.exists("figures/comparisons.parquet")
    areas = context.out.read_table("figures/discrimination.parquet").to_pylist()
    (row,) = [
        r for r in areas if (r["metric"], r["oracle_metric"], r["scope"]) == ("l1", "edit_success", "within_items")
    ]
    assert row["auc"] == 0.0  # nothing is nearer to its source than a copy, which is never right
    assert (row["num_right"], row["num_wrong"]) == (NUM_ITEMS - 2, NUM_ITEMS - 2)


def test_the_judge_goes_on_where_it_stopped(tmp_path, inputs, monkeypatch):
    engine = ScriptedEngine(good)
    monkeypatch.setattr(stages.evaluate.stage, "get_engine", lambda settings, context: engine)
    config = EvaluateConfig(num_workers=1, num_resamples=100, judge=EngineSettings(model="some/judge"))
    context = make_context(tmp_path, "evaluate")
    evaluate_edits(inputs, config, context)
    rows = rows_of(context)
    assert rows["truth", "0"]["judge_overall"] == pytest.approx(28**0.5)
    assert rows["truth", "0"]["judge_model"] == "some/judge"
    assert rows["truth", "0"]["judge_prompt_hash"] and rows["truth", "0"]["judge_sc_text"]
    assert rows["truth", "1"]["judge_overall"] is None and rows["truth", "1"]["unscored"].startswith("image:")
    assert len(engine.asked) == 2 * (2 * NUM_ITEMS - 2)  # neither the missing nor the broken one
    assert context.figures["results"]["copy"]["num_judged"] == NUM_ITEMS
    before = context.out.read_bytes("scores.parquet")
    context.out.remove("judge/edit/edits/b.parquet")
    engine.asked.clear()
    evaluate_edits(inputs, config, context)
    assert {request.key.split(":")[1].split("/")[0] for request in engine.asked} == {"copy"}
    assert context.out.read_bytes("scores.parquet") == before


def test_user_errors(tmp_path, inputs):
    context = make_context(tmp_path, "evaluate")
    with pytest.raises(UserError, match="no edits to score.*benchmark"):
        evaluate_edits({"benchmark": inputs["benchmark"]}, EvaluateConfig(), context)
    with pytest.raises(UserError, match="no benchmark in what it got .edit.*item_id"):
        evaluate_edits({"edit": inputs["edit"]}, EvaluateConfig(), context)
    row = {"item_id": "0", "method": "copy", "image": b"", "seconds": 0.0}
    twice = inputs | {"edit_more": artifact(tmp_path, "edit_more", {"x.parquet": [row]})}
    with pytest.raises(UserError, match="'0' has two edits by 'copy'"):
        evaluate_edits(twice, EvaluateConfig(), context)
    unknown = inputs | {"edit_more": artifact(tmp_path, "edit_other", {"x.parquet": [row | {"item_id": "99"}]})}
    with pytest.raises(UserError, match="'99', which the benchmark doesn't have"):
        evaluate_edits(unknown, EvaluateConfig(), context)


def test_the_judges_prompts_and_model_belong_to_the_fingerprint(tmp_path):
    assert evaluate_sources(EvaluateConfig()) == []
    sources = evaluate_sources(EvaluateConfig(judge=EngineSettings(model=str(tmp_path))))
    assert sources[0] == str(tmp_path) and sources[1].endswith("v1")
