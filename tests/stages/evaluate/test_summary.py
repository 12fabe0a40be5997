import math

import pyarrow as pa
import pytest

from stages.evaluate.statistics import wilson
from stages.evaluate.summary import SCORES_SCHEMA, compare, judge_agreement, results, summarise

OPTIONS = {"seed": 0, "confidence": 0.95, "num_resamples": 200}


def score(method, item, edit_type="color", source=None, **values):
    names = {"method": method, "item_id": item, "source_id": source or item, "edit_type": edit_type}
    return names | values


def table(*rows):
    return pa.Table.from_pylist(list(rows), SCORES_SCHEMA)


def figure(summary, method, metric, edit_type="all"):
    rows = [
        row
        for row in summary.to_pylist()
        if (row["method"], row["metric"], row["edit_type"]) == (method, metric, edit_type)
    ]
    return rows[0] if rows else None


SCORES = table(
    score("byg", "1", whole_scene_right=1.0, judge_overall=8.0),
    score("byg", "2", whole_scene_right=0.0, judge_overall=None, unscored="judge sc: no_json"),
    score("byg", "3", "remove", whole_scene_right=1.0, judge_overall=2.0),
    score("byg", "4", "remove", unscored="missing: the method gave no image"),
    score("copy", "1", whole_scene_right=0.0, judge_overall=3.0),
    score("copy", "2", whole_scene_right=0.0, judge_overall=3.0),
    score("copy", "3", "remove", whole_scene_right=0.0, judge_overall=3.0),
    score("copy", "4", "remove", whole_scene_right=0.0, judge_overall=3.0),
)


def test_unscored_items_are_left_out_and_counted():
    summary = summarise(SCORES, **OPTIONS)
    right = figure(summary, "byg", "whole_scene_right")
    assert right["mean"] == pytest.approx(2 / 3)
    assert (right["num_items"], right["num_expected"]) == (3, 4)
    assert (right["low"], right["high"]) == pytest.approx(wilson(2, 3))
    assert figure(summary, "byg", "judge_overall")["mean"] == 5.0
    assert figure(summary, "byg", "judge_overall", "color")["mean"] == 8.0
    assert figure(summary, "byg", "whole_scene_right", "remove")["num_items"] == 1
    assert figure(summary, "byg", "l1") is None


def test_results_of_the_run():
    values = results(summarise(SCORES, **OPTIONS), ["byg", "copy"], 4)
    assert values["byg"]["whole_scene_right"] == pytest.approx(2 / 3)
    assert (values["byg"]["num_items"], values["byg"]["num_judged"], values["byg"]["num_expected"]) == (
        3,
        2,
        4,
    )
    assert values["byg"]["judge_overall_macro"] == pytest.approx((8 + 2) / 2)
    assert values["byg"]["edit_success"] is None  # not measured, so not 0
    assert values["copy"]["whole_scene_right"] == 0.0


def test_macro_rows_weigh_edit_types_alike():
    scores = table(
        *(score("byg", str(i), judge_overall=2.0) for i in range(3)), score("byg", "9", "remove", judge_overall=10.0)
    )
    summary = summarise(scores, **OPTIONS)
    assert figure(summary, "byg", "judge_overall")["mean"] == (2 * 3 + 10) / 4
    macro = figure(summary, "byg", "judge_overall", "macro")
    assert macro["mean"] == (2 + 10) / 2 and (macro["num_items"], macro["num_expected"]) == (4, 4)
    assert results(summary, ["byg"], 4)["byg"]["judge_overall_macro"] == 6.0


def test_many_comparisons_are_corrected():
    levels = {"a": 1.0, "b": 2.0, "c": 3.0}
    scores = table(*(score(m, str(i), judge_overall=v) for m, v in levels.items() for i in range(6)))
    rows = [
        r for r in compare(scores, **OPTIONS).to_pylist() if (r["edit_type"], r["metric"]) == ("all", "judge_overall")
    ]
    assert [r["p_value"] for r in rows] == [2 / 64] * 3  # of 6 sources' signs only all alike are as extreme
    assert [r["p_holm"] for r in rows] == pytest.approx([6 / 64] * 3)


def test_items_are_counted_by_any_metric_where_there_is_neither_oracle_nor_judge():
    scores = table(score("byg", "1", clip_score=20.0, dino=0.5), score("byg", "2", dino=0.7))
    values = results(summarise(scores, **OPTIONS), ["byg"], 3)["byg"]
    assert (values["num_items"], values["num_judged"], values["num_expected"]) == (2, 0, 3)


def test_a_method_without_any_score_has_no_figures():
    scores = table(score("byg", "1", unscored="image: broken"))
    assert results(summarise(scores, **OPTIONS), ["byg"], 1)["byg"]["num_items"] == 0


def test_comparison_pairs_items():
    row = next(
        row
        for row in compare(SCORES, **OPTIONS).to_pylist()
        if (row["metric"], row["edit_type"]) == ("judge_overall", "all")
    )
    assert (row["first"], row["second"], row["num_items"]) == ("byg", "copy", 2)
    assert row["difference"] == pytest.approx(((8 - 3) + (2 - 3)) / 2)


def test_methods_over_different_items_are_not_compared():
    with pytest.raises(ValueError, match="different items"):
        compare(table(score("a", "1", judge_overall=1.0), score("b", "2", judge_overall=1.0)), **OPTIONS)


def test_a_further_method_moves_no_other_interval():
    scores = table(
        *(score("byg", str(i), source=str(i // 2), judge_overall=float(i % 7)) for i in range(40)),
    )
    more = pa.concat_tables([table(*(score("a", str(i), judge_overall=1.0) for i in range(40))), scores])
    alone = figure(summarise(scores, **OPTIONS), "byg", "judge_overall")
    assert figure(summarise(more, **OPTIONS), "byg", "judge_overall") == alone
    assert alone["num_clusters"] == 20


def test_judge_agreement_takes_five_as_yes():
    scores = table(
        score("byg", "1", judge_success=5.0, edit_success=1.0),
        score("byg", "2", judge_success=4.9, edit_success=1.0),
        score("byg", "3", judge_success=0.0, edit_success=0.0),
        score("byg", "4", judge_success=None, edit_success=1.0),
    )
    rows = judge_agreement(scores).to_pylist()
    assert {row["method"] for row in rows} == {"all", "byg"}
    assert rows[0]["agreement"] == pytest.approx(2 / 3)
    assert (rows[0]["num_items"], rows[0]["only_second"]) == (3, 1)
    assert not math.isnan(rows[0]["kappa"])


def test_probabilities_are_held_against_the_oracle_at_even_odds():
    """Of a customization the first question asks for the very object in its setting, which is all of the oracle's."""

    def answers(done, kept, *truth):
        names = ("edit_success", "preservation", "whole_scene_right")
        judged = {"judge_p_done": done, "judge_p_kept": kept, "judge_p_right": done * kept}
        return judged | dict(zip(names, map(float, truth), strict=True))

    said = (answers(0.9, 0.5, 1, 1, 1), answers(0.4, 0.9, 1, 0, 0), answers(0.6, 0.6, 1, 1, 1))
    for edit_type, oracle_metric, agreed in (
        ("color", "edit_success", 2 / 3),
        ("customization", "whole_scene_right", 1.0),
    ):
        scores = table(*(score("m", str(i), edit_type, **values) for i, values in enumerate(said)))
        rows = {row["judge_metric"]: row for row in judge_agreement(scores).to_pylist() if row["method"] == "m"}
        assert [row["oracle_metric"] for row in rows.values()] == [oracle_metric, "preservation", "whole_scene_right"]
        assert [row["agreement"] for row in rows.values()] == pytest.approx([agreed, 2 / 3, 1 / 3])
        # three times no, where one no is right: what chance gives
        assert (rows["judge_p_right"]["threshold"], rows["judge_p_right"]["kappa"]) == (0.5, pytest.approx(0))
