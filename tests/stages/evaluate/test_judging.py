"""The judges within the stage: tables, figures, answers that are known, the export, and what goes wrong."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

import stages.evaluate.stage
from cluster.artifacts import commit
from cluster.chat import ChatReply
from cluster.config import build_configs
from cluster.errors import RequestError, UserError
from cluster.folder import Folder
from cluster.vllm import EngineSettings
from stages.evaluate import export, rescore
from stages.evaluate.judge_replies import REPLIES_SCHEMA
from stages.evaluate.judging import engine_name
from stages.evaluate.settings import EvaluateConfig, EvaluateCustomizationConfig
from stages.evaluate.stage import evaluate_edits, evaluate_sources
from tests.stages.evaluate.test_judge_calls import ScriptedEngine, answer, good, reply_with
from tests.stages.evaluate.test_judge_replies import lines
from tests.stages.evaluate.test_stage import artifact, png
from tests.stages.ingest.context import make_context

pytestmark = pytest.mark.usefixtures("local_ray")
TYPES = ("add", "style", "add", "color")


def picture(seed, size=(12, 8)):
    return png(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def inputs(tmp_path):
    """Four pictures of 12 x 8 and edits of 20 x 10, one of type `color`; one method lacks an item."""
    items = [
        {
            "item_id": str(i), "source_id": f"s{i}", "image": picture(i), "edit_type": edit_type,
            "instruction": f"do {i}", "metadata": json.dumps({"benchmark": "imgedit"}),
        }
        for i, edit_type in enumerate(TYPES)
    ]  # fmt: skip
    edits = {
        method: [
            {"item_id": str(i), "method": method, "image": picture(10 + i, (20, 10)), "seconds": 0.1} for i in range(4)
        ]
        for method in ("ours", "theirs")
    }
    edits["theirs"].pop()
    return {
        "ingest_benchmark": artifact(tmp_path, "ingest_benchmark", {"benchmark/0.parquet": items}),
        "edit": artifact(tmp_path, "edit", {f"edits/{method}.parquet": rows for method, rows in edits.items()}),
    }


@pytest.fixture
def evaluate(tmp_path, inputs, monkeypatch):
    def run(script, place="evaluate", model="some/judge", config=EvaluateConfig, num_in_flight=4, **fields):
        """Its context and the engine that was asked."""
        engine = ScriptedEngine(script, num_in_flight)
        monkeypatch.setattr(stages.evaluate.stage, "get_engine", lambda settings, context: engine)
        context = make_context(tmp_path, place)
        config = config(num_workers=1, num_resamples=100, judge=EngineSettings(model=model), **fields)
        evaluate_edits(inputs, config, context)
        return context, engine

    return run


def three(request, attempt):
    """Of item i of ours 3 + i / 3, of theirs 1; in later passes one more for the first number of ours."""
    call, _, key = request.key.partition(":")
    item = int(key[-1])
    return reply_with(request, lines(3 + ("#" in call), 3, 3 + item) if "ours" in key else lines(1, 1, 1))


def test_imgedit(evaluate):
    context, engine = evaluate(three, judge_task="imgedit")
    rows = {(r["method"], r["item_id"]): r for r in context.out.read_table("scores.parquet").to_pylist()}
    assert [rows["ours", str(i)]["judge_imgedit"] for i in range(3)] == [3, 3.33, 3.67]
    assert rows["ours", "2"]["judge_imgedit_third"] == 5 and rows["ours", "2"]["unscored"] is None
    assert "no question for edits of type 'color'" in rows["ours", "3"]["unscored"]
    assert rows["theirs", "3"]["unscored"].startswith("missing:")
    results = context.figures["results"]
    assert results["ours"]["judge_imgedit"] == pytest.approx((3 + 3.33 + 3.67) / 3)
    assert results["ours"]["judge_imgedit_macro"] == pytest.approx(((3 + 3.67) / 2 + 3.33) / 2)
    assert results["ours"]["judge_overall"] is None
    assert (results["ours"]["num_judged"], results["ours"]["num_items"], results["ours"]["num_expected"]) == (3, 3, 4)
    compared = context.out.read_table("figures/comparisons.parquet").to_pylist()
    assert {row["metric"] for row in compared} == {"judge_imgedit"}
    assert not context.out.exists("figures/judge_noise.parquet")
    replies = context.out.read_table("judge_replies.parquet")
    assert replies.schema == REPLIES_SCHEMA and replies.num_rows == len(engine.asked) == 6
    row = replies.to_pylist()[1]
    assert (row["item_id"], row["method"], row["judge"], row["call"]) == ("1", "ours", "imgedit", "imgedit")
    assert (row["pass"], row["attempt"], row["text"], row["error"]) == (0, 0, lines(3, 3, 4), None)
    assert (row["width"], row["height"], row["model"]) == (20, 10, "some/judge")  # as it came: ImgEdit doesn't resize
    scored = rows["ours", "1"]
    for name in ("source_sha256", "image_sha256"):
        assert row[name] == scored[name]
    assert (row["prompt_version"], row["prompt_hash"]) == ("v1", scored["judge_prompt_hash"])
    assert row["engine"].startswith("vllm 0.")


def test_viescore_shows_the_edit_in_its_sources_size(evaluate):
    context, engine = evaluate(good)
    row = context.out.read_table("judge_replies.parquet").to_pylist()[0]
    assert (row["width"], row["height"]) == (12, 8)
    shown = next(r for r in engine.asked if r.key == "pq:ours/1").messages[0]["content"][0]["image"]
    as_the_script = Image.open(io.BytesIO(picture(11, (20, 10)))).resize((12, 8))  # Pillow's default for RGB: bicubic
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown))), np.asarray(as_the_script))


def summary_of(tmp_path, context, inputs):
    """A finished run's summary.json with this evaluation."""
    config = {"judge_task": "imgedit", "num_resamples": 100}
    commit(
        context.out, stage="evaluate", version="1", fingerprint=context.fingerprint, config=config, identity={},
        parents={}, run_id="r", code_version="test", figures=context.figures,
    )  # fmt: skip
    found = {name: (given.folder.url, given.fingerprint) for name, given in inputs.items()}
    found["evaluate"] = (context.out.url, context.fingerprint)
    stages_ = {
        name: {"status": "ran", "artifact": url, "fingerprint": fingerprint}
        for name, (url, fingerprint) in found.items()
    }
    summary = {"run_id": "r", "stages": stages_, "results": context.figures["results"]}
    Folder(tmp_path / "runs" / "r").write_json("summary.json", summary)
    return str(tmp_path / "runs" / "r" / "summary.json")


def test_passes_noise_rescore_and_export(tmp_path, evaluate, inputs, capsys):
    def script(request, attempt):
        return reply_with(request, "?") if request.key == "imgedit:ours/0" and not attempt else three(request, attempt)

    context, engine = evaluate(script, place="evaluate", judge_task="imgedit", judge_passes=2)
    assert len(engine.asked) == 2 * 6 + 1
    rows = {(r["method"], r["item_id"]): r for r in context.out.read_table("scores.parquet").to_pylist()}
    assert rows["ours", "1"]["judge_imgedit"] == pytest.approx((3.33 + 3.67) / 2)
    noise = {(r["method"], r["metric"]): r for r in context.out.read_table("figures/judge_noise.parquet").to_pylist()}
    first = noise["ours", "judge_imgedit_first"]
    assert (first["num_passes"], first["num_items"]) == (2, 3)
    assert first["std_of_items"] == pytest.approx(math.sqrt(0.5))  # 3 and 4
    assert noise["theirs", "judge_imgedit"]["std_of_means"] == 0

    summary = summary_of(tmp_path, context, inputs)
    code = rescore.main(["--run", summary, "--json"])
    said = json.loads(capsys.readouterr().out)
    figures = {(f["method"], f["name"]): f["value"] for f in said["figures"] if f["category"] == "all"}
    assert figures["ours", "judge_imgedit_first_std_of_items_over_passes"] == pytest.approx(math.sqrt(0.5))
    assert code == 1 and {p["key"] for p in said["problems"]} == {"ours 3", "theirs 3"}  # nothing but the unscored

    out = tmp_path / "official"
    assert export.main(["--run", summary, "--layout", "imgedit", "--out", str(out)]) == 1  # theirs lacks a picture
    texts = json.loads((out / "ours" / "result.json").read_text())
    assert texts == {str(i): lines(3, 3, 3 + i) for i in range(3)}  # the first pass, its last attempt
    assert json.loads((out / "ours" / "average_score.json").read_text()) == {"0": 3, "1": 3.33, "2": 3.67}


def test_a_score_that_the_replies_do_not_give_is_named(tmp_path, evaluate, inputs, capsys):
    context, _ = evaluate(three, judge_task="imgedit")
    table = context.out.read_table("scores.parquet")
    index = table.schema.get_field_index("judge_imgedit")
    values = table["judge_imgedit"].to_pylist()
    values[0] = 4.0
    context.out.write_table("scores.parquet", table.set_column(index, table.schema.field(index), [values]))
    assert rescore.main(["--run", summary_of(tmp_path, context, inputs)]) == 1
    wanted = "ours 0 judge_imgedit: has 4.0, the judge's raw replies say 3.0."
    assert wanted in capsys.readouterr().err


def test_replies_in_another_form_are_named(tmp_path, evaluate, inputs, capsys):
    context, _ = evaluate(three, judge_task="imgedit")
    context.out.write_table("judge_replies.parquet", context.out.read_table("judge_replies.parquet").drop(["pass"]))
    assert rescore.main(["--run", summary_of(tmp_path, context, inputs)]) == 1
    said = capsys.readouterr()
    assert "judge_replies.parquet: has no column 'pass', so nothing is held against it." in said.err
    assert "judge_imgedit_micro_mean" in said.out


def test_answers_of_another_evaluation_in_the_root_are_taken(tmp_path, evaluate, monkeypatch):
    """Also of one that was stopped; of the same model and words alone."""
    first, engine = evaluate(good)
    assert len(engine.asked) == 14
    there = tmp_path / "evaluate" / first.out.url.rsplit("/", 1)[1]
    there.rename(there.with_name("ffffffffffffffff"))
    (there.with_name("ffffffffffffffff") / "replies" / "edit" / "edits" / "theirs.parquet").unlink()  # never written
    monkeypatch.setattr("stages.evaluate.judging.engine_name", lambda settings: "http://another")
    again, engine = evaluate(good)
    # theirs shows the pictures that ours shows, so its requests are the same
    assert not engine.asked
    engines = again.out.read_table("judge_replies.parquet")["engine"].to_pylist()
    assert len(engines) == 14 and "http://another" not in engines  # whose they were
    columns = ["item_id", "method", "judge_overall", "judge_sc_text", "unscored"]
    assert again.out.read_table("scores.parquet", columns) == Folder(there.with_name("f" * 16)).read_table(
        "scores.parquet", columns
    )
    other = make_context(tmp_path, "evaluate").out
    other.clear()
    assert len(evaluate(good, model="another/judge")[1].asked) == 14
    other.clear()
    Folder(there.with_name("ffffffffffffffff")).write_bytes("replies/broken.parquet", b"PAR1")
    assert not evaluate(good)[1].asked


def test_a_judge_that_fails_leaves_what_is_done(tmp_path, evaluate):
    def down(request, attempt):
        if "theirs" in request.key:
            raise UserError("The server at http://judge failed 5 times at one request.")
        return good(request, attempt)

    with pytest.raises(UserError, match="The server at http://judge failed 5 times"):
        evaluate(down, num_in_flight=1)
    context, engine = evaluate(good)
    assert {request.key.split(":")[1].split("/")[0] for request in engine.asked} == {"theirs"}
    assert context.figures["results"]["ours"]["num_judged"] == 4


def test_refused_requests_leave_figures_of_the_rest(evaluate):
    def refused(request, attempt):
        if request.key.endswith("ours/1"):
            return ChatReply(request.key, error="request: too long")
        return good(request, attempt)

    context, _ = evaluate(refused)
    results = context.figures["results"]
    assert (results["ours"]["num_judged"], results["theirs"]["num_judged"]) == (3, 3)
    errors = [row["error"] for row in context.out.read_table("judge_replies.parquet").to_pylist() if row["error"]]
    assert errors == ["request: too long"] * 2 and not context.figures["incomplete"][1:]


def test_a_judge_that_scores_nothing_makes_the_figures_incomplete(evaluate):
    """With their exit code, and with the reason; `theirs` lacks a picture, too."""

    def script(request, attempt):
        if request.key.endswith("/2"):
            return reply_with(request, "5 of 5")
        return ChatReply(request.key, error="request: longer than 512 tokens")

    lines = evaluate(script, judge_task="imgedit")[0].figures["incomplete"]
    assert lines[1:] == [
        "none of 8 edits has a judge_imgedit; the reason of 4: judge imgedit: request: longer than 512 tokens"
    ]


def test_customization_is_judged_by_the_subject(evaluate):
    def script(request, attempt):
        return reply_with(request, answer(9, 4) if request.key.startswith("sc:") else answer(10, 10))

    context, engine = evaluate(script, place="evaluate_customization", config=EvaluateCustomizationConfig)
    assert "Prompt: do 0" in next(r for r in engine.asked if r.key == "sc:ours/0").messages[0]["content"][-1]["text"]
    results = context.figures["results"]["customization/ours"]
    assert (results["judge_prompt_following"], results["judge_identity"]) == (9, 4)
    assert results["judge_overall"] == pytest.approx(math.sqrt(40)) and results["judge_success"] is None


def test_yes_no(evaluate):
    def script(request, attempt):
        yes = 0.75 if request.key.startswith("edit_done:") else 0.5
        return ChatReply(request.key, "Yes", "length", logprobs={"Yes": math.log(yes), "No": math.log(1 - yes)})

    context, _ = evaluate(script, judge_task="yes_no")
    results = context.figures["results"]["ours"]
    assert results["judge_p_right"] == pytest.approx(0.375) and results["num_judged"] == 4


def test_wrong_requests(tmp_path, evaluate, inputs):
    def refused(**fields):
        with pytest.raises(RequestError) as error:
            build_configs({"evaluate": EvaluateConfig}, {"evaluate": fields})
        return str(error.value)

    assert "yes_no reads probabilities" in refused(judge_task="yes_no", judge_passes=2)
    assert "yes_no has no official words" in refused(judge_task="yes_no", judge_prompts="x")
    assert "did you mean 'viescore'" in refused(judge_task="viscore")
    folder = Folder(tmp_path / "plain")
    rows = inputs["ingest_benchmark"].folder.read_table("benchmark/0.parquet").to_pylist()
    inputs["ingest_benchmark"] = artifact(
        tmp_path / "other", "ingest_benchmark", {"benchmark/0.parquet": [row | {"edit_type": "color"} for row in rows]}
    )
    with pytest.raises(UserError, match="judge_task imgedit asks about edits of the types action.*has color"):
        evaluate(three, judge_task="imgedit")
    with pytest.raises(UserError, match="there is none of prompts.json"):
        config = EvaluateConfig(judge=EngineSettings(model="x"), judge_task="imgedit", judge_prompts=folder.url)
        evaluate_sources(config)


def test_the_words_belong_to_the_fingerprint(tmp_path):
    def ends(task, **fields):
        found = evaluate_sources(EvaluateConfig(judge=EngineSettings(model="x"), judge_task=task, **fields))
        return ["/".join(path.split("/")[-2:]) for path in found]

    assert ends("viescore") == ["viescore/v1"] and ends("imgedit") == ["imgedit/v1"] and ends("yes_no") == ["yes_no/v1"]
    assert ends("viescore_subject") == ["viescore_subject/v1", "viescore/v1"]
    (tmp_path / "prompts.json").write_text(json.dumps(dict.fromkeys(
        ("extract", "style", "add", "adjust", "background", "replace", "remove", "action", "compose"), "<edit_prompt>"
    )))  # fmt: skip
    assert ends("imgedit", judge_prompts=str(tmp_path)) == [f"{tmp_path.name}/prompts.json"]


def test_the_engines_name_tells_no_secret():
    settings = EngineSettings(model="m", endpoint="http://me:secret@judge:8000/v1?key=x")
    assert engine_name(settings) == "http://judge:8000/v1"
