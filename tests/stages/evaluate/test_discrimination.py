import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from stages.evaluate.discrimination import RANKED_METRICS, concordance, discriminate, discrimination
from stages.evaluate.statistics import wilson
from stages.evaluate.summary import SCORES_SCHEMA

OPTIONS = {"seed": 0, "confidence": 0.95, "num_resamples": 300}


def edits(num_items=12, num_methods=5, seed=0):
    """Scores with ties and gaps, verdicts that go with them, items and two items a source."""
    rng = np.random.default_rng(seed)
    items = rng.permutation(np.repeat(np.arange(num_items), num_methods))
    right = (rng.random(len(items)) < 0.4).astype(float)
    scores = np.round(rng.normal(right, 1) * 2) / 2
    scores[rng.random(len(items)) < 0.1] = np.nan
    right[rng.random(len(items)) < 0.1] = np.nan
    return scores, right, items, np.arange(num_items) // 2


def counted(scores, right, items, same_item):
    """(agreeing, pairs) by looking at every pair."""
    agreeing = pairs = 0.0
    for i in np.flatnonzero(right == 1):
        for j in np.flatnonzero(right == 0):
            if np.isnan(scores[i] + scores[j]) or (same_item and items[i] != items[j]):
                continue
            agreeing += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
            pairs += 1
    return agreeing, pairs


@pytest.mark.parametrize("seed", range(3))
def test_areas_are_what_counting_every_pair_gives(seed):
    scores, right, items, clusters = edits(seed=seed)
    found = discriminate(scores, right, items, clusters, np.ones((2, 6)))
    for scope, same_item in (("pooled", False), ("within_items", True)):
        agreeing, pairs = counted(scores, right, items, same_item)
        assert found[scope].auc == pytest.approx(agreeing / pairs, abs=1e-12) and found[scope].num_pairs == pairs
    known = ~np.isnan(scores + right)
    sides = [scores[known & (right == side)] for side in (1, 0)]
    theirs = scipy.stats.mannwhitneyu(*sides).statistic / (len(sides[0]) * len(sides[1]))
    assert found["pooled"].auc == pytest.approx(theirs, abs=1e-12)
    assert (found["pooled"].num_right, found["pooled"].num_wrong) == (len(sides[0]), len(sides[1]))


def test_concordance_by_groups():
    scores, right = np.array([3.0, 1.0, 2.0, 3.0, 0.0]), np.array([True, True, False, False, False])
    groups = np.array([0, 1, 0, 2, 2])
    # 3 beats 2 and 0 and ties 3; 1 beats 0
    assert concordance(scores, right, groups, 3).tolist() == [[1, 0, 1.5], [0, 0, 1], [0, 0, 0]]


def test_a_bootstrap_sample_has_a_source_with_all_of_its_edits_as_often_as_it_was_drawn():
    scores, right, items, clusters = edits()
    times = np.array([2, 0, 1, 3, 0, 0])
    found = discriminate(scores, right, items, clusters, times[None].astype(float))
    rows = [np.flatnonzero(clusters[items] == source) for source in range(6)]
    drawn = [(source, copy) for source in range(6) for copy in range(times[source])]
    again = np.concatenate([rows[source] for source, _ in drawn])
    own = np.concatenate([100 * number + items[rows[source]] for number, (source, _) in enumerate(drawn)])
    for scope, same_item in (("pooled", False), ("within_items", True)):
        agreeing, pairs = counted(scores[again], right[again], own, same_item)
        assert found[scope].low == found[scope].high == pytest.approx(agreeing / pairs, abs=1e-12)


def test_all_alike_is_no_certainty():
    right = np.tile([1.0, 0.0], 10)
    found = discriminate(right, right, np.repeat(np.arange(10), 2), np.arange(10), np.ones((5, 10)))
    for area in found.values():
        assert area.auc == 1.0 and (area.low, area.high) == wilson(10, 10)
    found = discriminate(right[:2], right[:2], np.zeros(2, dtype=int), np.zeros(1, dtype=int), np.ones((5, 1)))
    assert found["within_items"].auc == 1.0 and np.isnan(found["within_items"].low)  # one source


def table(rows, **more):
    names = {"edit_type": "color"}
    return pa.Table.from_pylist([names | {"source_id": row["item_id"]} | row | more for row in rows], SCORES_SCHEMA)


def by_key(found):
    return {(row["metric"], row["oracle_metric"], row["scope"]): row for row in found.to_pylist()}


# on the easy item both do well and score high, on the hard one neither: within an item the wrong edit scores higher
EASY_AND_HARD = [
    {"item_id": item, "method": method, "whole_scene_right": right, "judge_overall": judge, "l1": l1}
    for item, method, right, judge, l1 in (
        ("easy", "a", 1.0, 8.0, 0.1), ("easy", "b", 1.0, 9.0, 0.1), ("easy", "c", 0.0, 10.0, None),
        ("hard", "a", 0.0, 2.0, 0.2), ("hard", "b", 0.0, 3.0, 0.3), ("hard", "c", 0.0, 1.0, 0.1),
    )
]  # fmt: skip


def test_pooled_and_within_items_by_hand():
    found = by_key(discrimination(table(EASY_AND_HARD), **OPTIONS))
    pooled, within = (found["judge_overall", "whole_scene_right", scope] for scope in ("pooled", "within_items"))
    assert pooled["auc"] == 6 / 8 and within["auc"] == 0.0
    assert (pooled["num_right"], pooled["num_wrong"], pooled["num_pairs"]) == (2, 4, 8)
    assert (within["num_right"], within["num_wrong"], within["num_pairs"], within["num_items"]) == (2, 1, 2, 1)
    assert within["low"] is None and within["num_clusters"] == 1 and pooled["num_clusters"] == 2


def test_less_is_better_is_turned_round_and_unscored_edits_are_counted():
    found = by_key(discrimination(table(EASY_AND_HARD), **OPTIONS))
    row = found["l1", "whole_scene_right", "pooled"]
    assert row["auc"] == (2 + 2 + 1) / 6 and not row["higher_is_better"]  # 0.1 twice, against 0.2, 0.3 and 0.1
    assert row["num_unscored"] == 1 and row["num_wrong"] == 3
    assert ("l1", "whole_scene_right", "within_items") not in found  # the only wrong edit beside right ones has none


def test_what_has_no_row():
    rows = table(EASY_AND_HARD, preservation=1.0)
    assert {key[:2] for key in by_key(discrimination(rows, **OPTIONS))} == {
        ("judge_overall", "whole_scene_right"), ("l1", "whole_scene_right"),
    }  # fmt: skip
    assert discrimination(rows.slice(0, 0), **OPTIONS).num_rows == 0
    assert "whole_scene_right" not in RANKED_METRICS and "frames_right" not in RANKED_METRICS


def test_a_further_metric_comes_by_itself_and_moves_no_other():
    rng = np.random.default_rng(2)
    rows = [
        {"item_id": str(i), "method": m, "edit_success": float(rng.random() < 0.5), "ssim": rng.random()}
        for i in range(20)
        for m in "abc"
    ]
    alone = by_key(discrimination(table(rows), **OPTIONS))
    more = by_key(discrimination(table([row | {"clip_score": rng.random()} for row in rows]), **OPTIONS))
    assert {key: row for key, row in more.items() if key[0] == "ssim"} == alone
    row = more["clip_score", "edit_success", "within_items"]
    assert 0 < row["low"] < row["auc"] < row["high"] < 1 and row["num_items"] <= 20
