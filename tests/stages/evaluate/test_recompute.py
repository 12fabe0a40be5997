import json
import math

import pyarrow as pa

from cluster.artifacts import commit
from cluster.folder import Folder
from stages.evaluate.discrimination import discrimination
from stages.evaluate.summary import SCORES_SCHEMA, compare, judge_agreement, results, summarise
from tests.stages.evaluate.rescoring import has, run


def row(method, item, success=None, **values):
    names = {"method": method, "item_id": item, "source_id": item, "edit_type": "color" if item < "3" else "remove"}
    if success is None:
        return names | values
    replies = [json.dumps({"score": [s, 9], "reasoning": ""}) for s in (success, 4)]
    return names | values | {
        "judge_sc_text": replies[0], "judge_pq_text": replies[1], "judge_success": float(success),
        "judge_over_editing": 9.0, "judge_naturalness": 4.0, "judge_artifacts": 9.0,
        "judge_overall": math.sqrt(min(success, 9) * 4),
    }  # fmt: skip


SCORES = [
    *(row("ours", str(i), s, edit_success=float(s > 5)) for i, s in enumerate([9, 4, 7, 1])),
    *(row("copy", str(i), 0, edit_success=0.0) for i in range(4)),
]


def write_run(root, rows=SCORES, table=None, older=False):
    """A run with one stage of scores, as the stage and the driver would have written it from `table`."""
    scores = pa.Table.from_pylist(table or rows, SCORES_SCHEMA)
    options = {"seed": 3, "confidence": 0.9, "num_resamples": 100}
    folder = Folder(root / "evaluate_video" / "ffff")
    folder.write_table("scores.parquet", pa.Table.from_pylist(rows, SCORES_SCHEMA))
    summary = summarise(scores, **options)
    folder.write_table("figures/summary.parquet", summary)
    compared = compare(scores, **options)
    folder.write_table("figures/comparisons.parquet", compared.drop_columns(["p_floor"]) if older else compared)
    folder.write_table("figures/agreement.parquet", judge_agreement(scores))
    if not older:
        folder.write_table("figures/discrimination.parquet", discrimination(scores, **options))
    means = {f"video/{method}": values for method, values in results(summary, ["ours", "copy"], 4).items()}
    commit(
        folder, stage="evaluate_video", version="1", fingerprint="ffff", config=options, identity={}, parents={},
        run_id="r", code_version="test", figures={"results": means},
    )  # fmt: skip
    record = {"status": "ran", "fingerprint": "ffff", "artifact": "/not/here/evaluate_video/ffff"}
    content = {"run_id": "r", "stages": {"evaluate_video": record}, "results": means}
    for name in ("latest.json", "r/summary.json"):
        Folder(root / "runs").write_json(name, content)
    return str(root / "runs" / "r" / "summary.json")


def test_a_run_comes_out_as_it_was_written(tmp_path, capsys):
    summary = write_run(tmp_path)
    code, figures, result, errors = run(capsys, "--run", summary)
    assert code == 0 and not errors and result["complete"]
    assert has(figures["evaluate_video", "ours", "judge_success_micro_mean"], 21 / 4, 4, 4)
    assert has(figures["evaluate_video", "ours", "judge_success_macro_mean"], ((9 + 4 + 7) / 3 + 1) / 2, 4, 4)
    assert has(figures["evaluate_video", "ours", "edit_success_micro_mean"], 0.5, 4, 4)
    assert [
        f["value"] for f in result["figures"] if (f["category"], f["name"]) == ("remove", "judge_success_mean")
    ] == [1, 0]
    assert figures["evaluate_video", "all", "judge_success_with_edit_success_agreement"]["value"] == 1.0
    # successes 9 and 7 are right, 4, 1 and four times 0 wrong: every right one is higher; within items 2 of 2
    assert has(figures["evaluate_video", "all", "judge_success_auc_of_edit_success"], 1.0, 8, 8)
    assert has(figures["evaluate_video", "all", "judge_success_auc_of_edit_success_within_items"], 1.0, 4, 8)
    assert run(capsys, "--run", str(tmp_path / "runs" / "latest.json"))[1] == figures
    assert result["notes"] == []


def test_p_values_of_an_older_run_are_not_held_against_ours(tmp_path, capsys):
    code, _, result, errors = run(capsys, "--run", write_run(tmp_path, older=True))
    assert code == 0 and not errors and len(result["notes"]) == 1
    assert result["notes"][0].startswith("evaluate_video/figures/comparisons.parquet: an older run, with 100 sign")
    assert "0 of 6 pairs were told apart, now 0" in result["notes"][0]


def test_a_run_that_does_not_follow_from_its_scores_is_told(tmp_path, capsys):
    other = [r | {"edit_success": 1.0} if (r["method"], r["item_id"]) == ("copy", "0") else r for r in SCORES]
    code, _, _, errors = run(capsys, "--run", write_run(tmp_path, table=other))
    assert code == 1
    wanted = "summary.json: results, video/copy, edit_success: the run wrote 0.25, its table of scores gives 0.0."
    assert wanted in errors
    assert any(e.startswith("evaluate_video/figures/summary.parquet: copy all edit_success mean:") for e in errors)
    of_areas = [e for e in errors if e.startswith("evaluate_video/figures/discrimination.parquet: ")]
    assert any("judge_success edit_success pooled auc" in e and "the run wrote " in e for e in of_areas)


def test_a_judges_score_that_its_reply_does_not_say_is_told(tmp_path, capsys):
    rows = [r | {"judge_success": 10.0} if (r["method"], r["item_id"]) == ("ours", "3") else r for r in SCORES]
    code, _, _, errors = run(capsys, "--run", write_run(tmp_path, rows))
    assert code == 1
    assert errors == ["evaluate_video/scores.parquet: ours 3 judge_success: has 10.0, the judge's raw reply says 1.0."]


def test_tifa_and_the_geometric_score_follow_from_the_replies(tmp_path, capsys):
    told = json.dumps([["A cat?", "Yes", "Yes."], ["A dog?", "No", "yes"]])
    rows = [r | {"tifa_answers": told, "tifa": 0.5, "dinov2_masked": 0.5, "geometric_score": 0.5} for r in SCORES]
    code, figures, _, errors = run(capsys, "--run", write_run(tmp_path / "right", rows))
    assert code == 0 and not errors
    assert has(figures["evaluate_video", "ours", "geometric_score_micro_mean"], 0.5, 4, 4)
    rows[0] |= {"tifa": 1.0}
    rows[1] |= {"dinov2_masked": 0.125}
    code, _, _, errors = run(capsys, "--run", write_run(tmp_path / "wrong", rows))
    assert code == 1 and errors == [
        "evaluate_video/scores.parquet: ours 0 tifa: has 1.0, the model's raw replies give 0.5.",
        "evaluate_video/scores.parquet: ours 1 geometric_score: has 0.5, the model's raw replies give 0.25.",
    ]


def test_copies_without_a_direction_are_remarked_on_and_no_problem(tmp_path, capsys):
    reason = "clip_directional: the edit is its source, which has no direction"
    rows = [r | ({"unscored": reason} if r["method"] == "copy" else {"clip_directional": 0.5}) for r in SCORES]
    code, _, result, errors = run(capsys, "--run", write_run(tmp_path, rows))
    assert code == 0 and not errors
    assert result["notes"] == [f"evaluate_video: copy has 4 without a {reason}."]
    rows[-1] |= {"unscored": f"{reason}; tifa: neither Yes nor No: 'Perhaps'"}
    code, _, _, errors = run(capsys, "--run", write_run(tmp_path / "worse", rows))
    assert code == 1 and len(errors) == 1 and "Perhaps" in errors[0]


def test_unscored_doubled_and_missing_rows_of_a_run(tmp_path, capsys):
    rows = [*SCORES[:3], row("ours", "3", unscored="image: broken"), SCORES[4], SCORES[4], *SCORES[5:7]]
    code, figures, _, errors = run(capsys, "--run", write_run(tmp_path, rows, table=SCORES))
    assert code == 1
    assert has(figures["evaluate_video", "ours", "judge_success_micro_mean"], 20 / 3, 3, 4)
    assert has(figures["evaluate_video", "copy", "judge_success_micro_mean"], 0.0, 2, 4)
    start = "evaluate_video/scores.parquet:"
    assert f"{start} ours 3: unscored (image: broken)." in errors
    assert f"{start} copy 0: unscored (there are two rows for it)." in errors
    assert f"{start} copy 3: unscored (there is no row for it)." in errors


def test_tables_of_a_run_that_are_broken_or_gone(tmp_path, capsys):
    summary = write_run(tmp_path)
    folder = tmp_path / "evaluate_video" / "ffff"
    (folder / "figures" / "summary.parquet").write_bytes(b"x")
    (folder / "figures" / "comparisons.parquet").unlink()
    code, figures, _, errors = run(capsys, "--run", summary)
    assert code == 1 and has(figures["evaluate_video", "ours", "edit_success_micro_mean"], 0.5, 4, 4)
    assert errors[0].startswith("evaluate_video/figures/summary.parquet: can't be read (")
    assert errors[1:] == ["evaluate_video/figures/comparisons.parquet: is gone, so nothing is held against it."]
    (folder / "scores.parquet").write_bytes(b"PAR1")
    code, _, _, errors = run(capsys, "--run", summary)
    assert code == 1 and len(errors) == 1 and f"{folder}/scores.parquet: can't be read (" in errors[0]
