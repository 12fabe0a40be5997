import math

import numpy as np
import pytest
import scipy.stats

from stages.evaluate.statistics import (
    agreement,
    bootstrap_mean,
    holm,
    macro_mean,
    proportion,
    wilson,
)


def generator():
    return np.random.default_rng(0)


def test_mean_leaves_unscored_items_out():
    interval = bootstrap_mean(np.array([1.0, np.nan, 3.0]), np.array(["a", "b", "c"]), generator())
    assert interval.mean == 2.0
    assert (interval.num_items, interval.num_clusters) == (2, 2)
    assert (interval.low, interval.high) == (
        1.0,
        3.0,
    )  # of two clusters a quarter of the draws takes one twice


def test_nothing_scored_has_no_mean():
    interval = bootstrap_mean(np.array([np.nan]), np.array(["a"]), generator())
    assert math.isnan(interval.mean) and interval.num_items == 0


def test_one_cluster_has_a_mean_but_no_interval():
    interval = bootstrap_mean(np.array([0.0, 1.0]), np.array(["a", "a"]), generator())
    assert interval.mean == 0.5 and math.isnan(interval.low) and math.isnan(interval.high)


def test_bootstrap_agrees_with_scipy_where_every_item_is_its_own_cluster():
    values = np.random.default_rng(1).normal(5, 2, size=80)
    ours = bootstrap_mean(values, np.arange(80), generator(), num_resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


def test_clusters_widen_the_interval_by_the_design_effect():
    means = np.random.default_rng(1).normal(size=50)
    values, clusters = np.repeat(means, 4), np.repeat(np.arange(50), 4)
    clustered = bootstrap_mean(values, clusters, generator(), num_resamples=10_000)
    single = bootstrap_mean(means, np.arange(50), generator(), num_resamples=10_000)
    naive = bootstrap_mean(values, np.arange(200), generator(), num_resamples=10_000)
    assert clustered.high - clustered.low == pytest.approx(single.high - single.low, rel=0.02)
    assert clustered.high - clustered.low == pytest.approx(2 * (naive.high - naive.low), rel=0.06)


def test_an_item_weighs_the_same_in_large_and_small_clusters():
    interval = bootstrap_mean(np.array([1.0, 1.0, 1.0, 0.0]), np.array(["a", "a", "a", "b"]), generator())
    assert interval.mean == 0.75


def test_the_same_generator_gives_the_same_interval():
    values, clusters = np.arange(30.0), np.arange(30) // 3
    assert bootstrap_mean(values, clusters, generator()) == bootstrap_mean(values, clusters, generator())


@pytest.mark.parametrize(("successes", "num_items"), [(0, 20), (7, 20), (20, 20), (1, 3)])
def test_wilson_agrees_with_scipy(successes, num_items):
    theirs = scipy.stats.binomtest(successes, num_items).proportion_ci(method="wilson")
    assert wilson(successes, num_items) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_proportion_of_all_alike_is_not_certain():
    clusters = np.repeat(np.arange(10), 2)
    interval = proportion(np.zeros(20), clusters, generator())
    assert interval.mean == 0 and interval.low == 0
    assert interval.high == pytest.approx(wilson(0, 10)[1])  # 10 independent sources, not 20 items


def test_proportion_takes_the_bootstrap_for_shared_sources():
    values = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    clusters = np.array([0, 0, 1, 1, 2, 2])
    assert proportion(values, clusters, generator()) == bootstrap_mean(values, clusters, generator())


def test_agreement_by_hand():
    first = np.array([1, 1, 1, 0, 0, 0, 0, 1, np.nan])
    second = np.array([1, 1, 0, 0, 0, 0, 1, 1, 1.0])
    result = agreement(first, second)
    assert (result.both_yes, result.only_first, result.only_second, result.both_no) == (3, 1, 1, 3)
    assert result.agreement == 0.75
    assert result.kappa == pytest.approx(0.5)  # chance: .5 * .5 + .5 * .5


def test_kappa_is_undefined_where_both_always_say_yes():
    result = agreement(np.ones(5), np.ones(5))
    assert result.agreement == 1.0 and math.isnan(result.kappa)


def test_macro_mean_by_hand():
    # "a": (2 + 4 + 6) / 3 = 4, "b": 10; micro would be 22/4, macro is (4 + 10) / 2
    values, categories = np.array([2.0, 4.0, 6.0, 10.0, np.nan]), np.array(list("aaabb"))
    interval = macro_mean(values, categories, np.arange(5), generator())
    assert interval.mean == 7.0 and (interval.num_items, interval.num_clusters) == (4, 4)
    assert interval.low <= 7.0 <= interval.high
    assert math.isnan(macro_mean(values, categories, np.zeros(5), generator()).low)  # one source: no interval


def test_macro_mean_of_equal_categories_from_shared_sources_is_the_clustered_mean():
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(60), 2)
    categories = np.tile(np.array(["a", "b"]), 60)
    values = np.repeat(rng.normal(size=60), 2) + rng.normal(scale=0.1, size=120)
    macro = macro_mean(values, categories, clusters, generator(), num_resamples=10_000)
    micro = bootstrap_mean(values, clusters, generator(), num_resamples=10_000)
    assert macro.mean == pytest.approx(micro.mean)
    assert macro.low == pytest.approx(micro.low, abs=0.02) and macro.high == pytest.approx(micro.high, abs=0.02)


def test_holm_by_hand():
    # smallest first: 4 * 0.005, 3 * 0.01, 2 * 0.03, 1 * 0.04, and none below one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    corrected = holm([0.02, math.nan, 0.02])  # what was not tested is not counted
    assert corrected[0] == corrected[2] == 0.04 and math.isnan(corrected[1])
