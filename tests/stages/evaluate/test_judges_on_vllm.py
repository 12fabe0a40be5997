"""The judges through a real engine with the starter's model, which knows the words of `viescore` and `yes_no` alone:
to the others it answers nonsense, in the form that is asked for or in none.
"""

import json

import numpy as np
import pytest

import stages.evaluate.stage
from cluster.artifacts import commit
from cluster.folder import Folder
from cluster.vllm import EngineSettings
from stages.evaluate import rescore
from stages.evaluate.judges.imgedit.judge import EDIT_TYPES
from stages.evaluate.settings import EvaluateConfig, EvaluateCustomizationConfig
from stages.evaluate.stage import evaluate_edits
from stages.starter import customization, world
from stages.starter.vlm_caption_data import draw_customized
from tests.stages.evaluate.test_stage import artifact, png
from tests.stages.ingest.context import make_context

pytestmark = pytest.mark.usefixtures("local_ray")
MODEL = EngineSettings(model="stages/starter/models/qwen3vl", max_model_len=1600)
NUM_ITEMS = 24


def made(folder, rows, edits):
    """A benchmark and edits of it, by method."""
    tables = {
        f"edits/{method}.parquet": [
            {"item_id": row["item_id"], "method": method, "image": png(image), "seconds": 0.1}
            for row, image in zip(rows, images, strict=True)
        ]
        for method, images in edits.items()
    }
    return {
        "benchmark": artifact(folder, "benchmark", {"benchmark.parquet": rows}),
        "edit": artifact(folder, "edit", tables),
    }


@pytest.fixture
def customizations(tmp_path):
    """Objects to be shown elsewhere; `mixed` does it in every way, right and wrong."""
    generator = np.random.default_rng(3)
    rows, mixed, sources = [], [], []
    for i in range(NUM_ITEMS):
        scene, setting = world.sample_scene(generator, 1), customization.sample_setting(generator)
        mixed.append(draw_customized(scene, setting, generator))
        sources.append(world.render(scene))
        metadata = {"object": scene.objects[0].name, "setting": setting.text}
        rows.append(
            {
                "item_id": f"{i}", "source_id": f"s{i}", "image": png(sources[-1]), "edit_type": "customization",
                "instruction": setting.text, "metadata": json.dumps(metadata),
            }
        )  # fmt: skip
    return made(tmp_path, rows, {"mixed": mixed, "copy": sources})


@pytest.fixture
def edits(tmp_path):
    """Two edits of a scene by one method."""
    generator = np.random.default_rng(4)
    found = [world.sample_edit(world.sample_scene(generator), generator) for _ in range(2)]
    rows = [
        {
            "item_id": f"{i}", "source_id": f"s{i}", "image": png(world.render(e.source)), "edit_type": "replace",
            "instruction": e.instruction, "metadata": "{}",
        }
        for i, e in enumerate(found)
    ]  # fmt: skip
    return made(tmp_path, rows, {"ours": [world.render(e.target) for e in found]})


def test_yes_no_agrees_with_the_oracle(tmp_path, customizations):
    context = make_context(tmp_path, "evaluate_customization")
    config = EvaluateCustomizationConfig(judge=MODEL, judge_task="yes_no", num_workers=1, num_resamples=100)
    evaluate_edits(customizations, config, context)
    found = {
        row["oracle_metric"]: row
        for row in context.out.read_table("figures/agreement.parquet").to_pylist()
        if row["method"] == "mixed"
    }
    assert found["preservation"]["judge_metric"] == "judge_p_kept" and len(found) == 2
    for row in found.values():
        assert row["num_items"] == NUM_ITEMS and row["agreement"] > 0.95 and row["kappa"] > 0.9
        assert min(row["both_yes"], row["both_no"]) > 3
    replies = context.out.read_table("judge_replies.parquet").to_pylist()
    assert len(replies) == 2 * 2 * NUM_ITEMS and {row["call"] for row in replies} == {"new_setting", "same_object"}


def test_passes_answers_that_are_known_and_the_figures_again(tmp_path, edits, monkeypatch, capsys):
    fields = {"judge": MODEL, "judge_task": "viescore_subject", "judge_passes": 2, "judge_attempts": 2}
    config = EvaluateConfig(num_workers=1, num_resamples=100, **fields)
    context = make_context(tmp_path, "evaluate")
    evaluate_edits(edits, config, context)
    replies = context.out.read_table("judge_replies.parquet").to_pylist()
    assert {(row["call"], row["pass"]) for row in replies} == {(call, i) for call in ("sc", "pq") for i in (0, 1)}
    assert all(row["error"] is None and row["text"].startswith('{"score":[') for row in replies)
    scores = context.out.read_table("scores.parquet").to_pylist()
    assert all(0 <= row["judge_naturalness"] <= 10 for row in scores)  # PQ's words are VIEScore's, which it knows
    assert {row["unscored"] for row in scores} <= {None, "judge sc: truncated"}
    noise = context.out.read_table("figures/judge_noise.parquet").to_pylist()
    assert {"judge_naturalness", "judge_artifacts"} <= {row["metric"] for row in noise if row["num_items"] == 2}

    commit(
        context.out, stage="evaluate", version="1", fingerprint=context.fingerprint, config=config.model_dump(),
        identity={}, parents={}, run_id="r", code_version="test", figures=context.figures,
    )  # fmt: skip
    found = {"evaluate": {"status": "ran", "artifact": context.out.url, "fingerprint": context.fingerprint}}
    summary = {"run_id": "r", "stages": found, "results": context.figures["results"]}
    Folder(tmp_path / "runs" / "r").write_json("summary.json", summary)
    rescore.main(["--run", str(tmp_path / "runs" / "r" / "summary.json"), "--json"])
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len(problems) == sum(row["unscored"] is not None for row in scores)  # and nothing that differs

    def no_engine(settings, context):
        raise AssertionError("an answer that is known was asked for")

    monkeypatch.setattr(stages.evaluate.stage, "get_engine", no_engine)
    (tmp_path / "evaluate" / context.fingerprint).rename(tmp_path / "evaluate" / "ffffffffffffffff")
    again = make_context(tmp_path, "evaluate")
    evaluate_edits(edits, config, again)
    assert again.figures["results"] == context.figures["results"]
    assert again.out.read_table("judge_replies.parquet").to_pylist() == replies


def test_what_cannot_be_read_or_is_too_long_is_unscored_and_said(tmp_path, edits):
    words = tmp_path / "prompts.json"
    words.write_text(json.dumps(dict.fromkeys(EDIT_TYPES, "<edit_prompt>" + "1: nothing was done. " * 100)))
    too_long = "tokens of words alone don't fit into max_model_len = 1600"
    for prompts, num_attempts, reason in ((None, 2, "judge imgedit: "), (str(tmp_path), 1, too_long)):
        context = make_context(tmp_path / str(num_attempts), "evaluate")
        fields = {"judge_task": "imgedit", "judge_prompts": prompts, "judge_attempts": 2, "num_resamples": 100}
        evaluate_edits(edits, EvaluateConfig(num_workers=1, judge=MODEL, **fields), context)
        replies = context.out.read_table("judge_replies.parquet").to_pylist()
        assert len(replies) == 2 * num_attempts
        (line,) = context.figures["incomplete"]
        assert line.startswith("none of 2 edits has a judge_imgedit; the reason of ") and reason in line
        results = context.figures["results"]["ours"]
        assert (results["num_judged"], results["num_expected"], results["judge_imgedit"]) == (0, 2, None)
