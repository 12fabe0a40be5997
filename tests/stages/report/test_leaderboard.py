"""Our figures beside published ones: the same aggregate, by hand; never for the scene world."""

import dataclasses
import math

import pyarrow as pa
import pytest

from stages.evaluate.summary import SCORES_SCHEMA, compare, summarise
from stages.report.data import gather
from stages.report.kinds import by_edit_type
from stages.report.leaderboard import leaderboards, our_figures
from stages.report.results import comparison, standing
from tests.stages.report.example_run import RUN_ID, build_run

ROWS = [  # edit type, SC's two scores, PQ's two
    ("background_change", (8, 6), (9, 9)),
    ("background_change", (4, 4), (4, 9)),
    ("text_change", (1, 9), (4, 5)),
    ("text_change", None, None),
]


def score_row(method, index, edit_type, sc, pq):
    row = {"item_id": f"i{index}", "source_id": f"i{index}", "method": method, "edit_type": edit_type}
    if sc is None:
        return row | {"unscored": "judge sc: refusal"}
    row |= {"judge_success": sc[0], "judge_over_editing": sc[1], "judge_naturalness": pq[0], "judge_artifacts": pq[1]}
    return row | {"judge_overall": math.sqrt(min(sc) * min(pq)), "judge_model": "a <judge>"}


def scored():
    rows = [score_row("byg", index, *row) for index, row in enumerate(ROWS)]
    return pa.Table.from_pylist(rows, SCORES_SCHEMA)


@pytest.fixture
def data(tmp_path):
    """A run on a world, and the same with the scores above as of GEdit-Bench."""
    world = gather(build_run(str(tmp_path), num_items=12), str(tmp_path), RUN_ID, 0)
    scores, options = scored(), {"seed": 0, "confidence": 0.95, "num_resamples": 100}
    summary = summarise(scores, **options).to_pylist()
    fields = {
        "methods": ["byg"], "edit_types": ["background_change", "text_change"], "num_expected": 4,
        "summary": {(r["method"], r["edit_type"], r["metric"]): r for r in summary}, "comparisons": [],
        "tables": {"scores": scores}, "benchmark": "GEdit-Bench, English",
        "ingest": {"source": "/data/gedit", "layout": "gedit", "gedit": {"language": "en", "part": "full"}},
    }  # fmt: skip
    return world, dataclasses.replace(world, **fields)


def test_aggregates_by_hand():
    figures = our_figures(scored().to_pylist(), "all")
    overalls = [math.sqrt(6 * 9), 4, 2]
    assert figures["byg", "sc_mean"] == (pytest.approx((6 + 4 + 1) / 3), 3)
    assert figures["byg", "sc_macro_mean"] == (pytest.approx((5 + 1) / 2), 3)
    assert figures["byg", "pq_macro_mean"] == (pytest.approx((6.5 + 4) / 2), 3)
    assert figures["byg", "overall_mean_of_geometric_means"] == (pytest.approx(sum(overalls) / 3), 3)
    macro = ((overalls[0] + overalls[1]) / 2 + overalls[2]) / 2
    assert figures["byg", "overall_macro_mean_of_geometric_means"] == (pytest.approx(macro), 3)
    assert figures["byg", "overall_geometric_mean_of_means"] == (pytest.approx(math.sqrt(11 / 3 * 17 / 3)), 3)
    assert ("byg", "imgedit_mean") not in figures and ("byg", "tifa_mean") not in figures


def test_published_rows_stand_beside_ours_and_look_different(data):
    _, gedit = data
    page = comparison(gedit)
    assert 'id="published"' in page and "judged by a &lt;judge&gt;" in page
    macro = our_figures(scored().to_pylist(), "all")["byg", "overall_macro_mean_of_geometric_means"][0]
    assert f'<td class="number">{macro:.2f}<small>n = 3 of 4</small>' in page
    assert "unweighted mean of the kinds’ means (macro)" in page
    assert '<tr class="published"><td>NP-Edit, 4 steps<small>NP-Edit (arXiv 2510.14978), table 1; judge: GPT-4o' in page
    assert "⚑1" in page and page.count("is taken for granted here.</li>") == 1
    assert page.index("Qwen-Image-Edit, 50 steps") < page.index("OmniGen, 50 steps")
    kinds = by_edit_type(gedit)
    assert '<tr class="published"><td>ByG<small>ByG (arXiv 2606.03911), table 3' in kinds and "6.69" in kinds
    assert "macro</th>" in page


def test_a_trial_says_so_and_chinese_has_none(data):
    _, gedit = data
    assert "can’t be compared" not in leaderboards(gedit, ["byg"], "byg")
    trial = dataclasses.replace(gedit, ingest=gedit.ingest | {"trial": 2})
    assert "can’t be compared" in leaderboards(trial, ["byg"], "byg")
    chinese = dataclasses.replace(gedit, ingest=gedit.ingest | {"gedit": {"language": "cn"}})
    assert leaderboards(chinese, ["byg"], "byg") == ""


def test_the_world_has_none(data):
    world, gedit = data
    assert "published" not in comparison(world)
    own = dataclasses.replace(gedit, ingest={"source": "/data/mine", "layout": "table"})
    assert leaderboards(own, ["byg"], "byg") == ""


def test_long_tail_styles_in_halves_and_their_errata(data):
    rows = [score_row("byg", 0, "to_lego", (9, 9), (4, 4)), score_row("byg", 1, "from_lego", (4, 4), (4, 4))]
    _, gedit = data
    styles = dataclasses.replace(
        gedit, ingest={"source": "/x", "layout": "long_tail"}, tables={"scores": pa.Table.from_pylist(rows)}
    )
    page = leaderboards(styles, ["byg"], "byg")
    assert page.count("<table") == 2 and "Swapped in print" in page
    first, second = page.split("From photorealistic to a style")
    assert "4.00</td></tr>" in first and "6.00</td></tr>" in second


def test_metrics_of_customization_beside_the_papers(data):
    rows = [{"method": "x", "edit_type": "object", "clip_score": 31.2, "dinov2_masked": 0.7, "judge_model": None}]
    _, gedit = data
    objects = dataclasses.replace(
        gedit, methods=["x"], ingest={"source": "/x", "layout": "dreambooth"}, num_expected=2, items="settings",
        tables={"scores": pa.Table.from_pylist(rows)},
    )  # fmt: skip
    page = leaderboards(objects, ["x"], None)
    assert 'id="published-settings"' in page and page.count("<table") == 1
    assert '0.700<small>n = 1 of 2</small></td><td class="number">0.312<small>' in page and ">0.308<" in page


def test_marks_follow_the_corrected_test(data):
    generous, tight = ([score_row(m, i, "a", (s, s), (s, s)) for m, s in (("byg", 8), ("copy", low)) for i in range(9)]
                       for low in (7.9999, 2))  # fmt: skip
    world, _ = data
    for rows in (generous, tight):
        table = pa.Table.from_pylist(rows, SCORES_SCHEMA)
        compared = compare(table, seed=0, confidence=0.95, num_resamples=200).to_pylist()
        found = dataclasses.replace(
            world, methods=["byg", "copy"], comparisons=compared,
            summary={(m, "all", "judge_overall"): {"mean": 8.0} for m in ("byg", "copy")},
        )  # fmt: skip
        assert standing(found, "copy", "judge_overall") == "below"  # 2 of 512 sign patterns: p = 0.004
        unsure = [row | {"p_holm": 0.051} for row in compared]
        assert standing(dataclasses.replace(found, comparisons=unsure), "copy", "judge_overall") == "same"
        assert standing(found, "byg", "judge_overall") == ""


def test_too_few_sources_have_a_mark_and_a_sentence(data):
    """Of 4 sources no p is under 1/8, however far the methods are apart."""
    rows = [score_row(m, i, "a", (s, s), (s, s)) for m, s in (("byg", 9), ("copy", 1)) for i in range(4)]
    compared = compare(pa.Table.from_pylist(rows, SCORES_SCHEMA), seed=0, confidence=0.95, num_resamples=200)
    world, _ = data
    found = dataclasses.replace(
        world, methods=["byg", "copy"], comparisons=compared.to_pylist(),
        summary={(m, "all", "judge_overall"): {"mean": v, "low": v, "high": v, "num_items": 4, "num_expected": 4}
                 for m, v in (("byg", 9.0), ("copy", 1.0))},
    )  # fmt: skip
    assert standing(found, "copy", "judge_overall") == "few"
    page = comparison(found)
    assert "? too few source images to tell from ByG, however large the difference" in page
    assert "on 4 source images can give is 0.12. So no difference, however large" in page
    older = [{k: v for k, v in row.items() if k != "p_floor"} for row in found.comparisons]
    assert standing(dataclasses.replace(found, comparisons=older), "copy", "judge_overall") == "same"
