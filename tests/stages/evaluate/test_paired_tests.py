import itertools
import math

import numpy as np
import pytest
import scipy.stats

from stages.evaluate.paired_tests import num_sign_patterns, paired_differences, sign_flip_test
from stages.evaluate.statistics import bootstrap_mean, holm


def generator(*names):
    return np.random.default_rng([0, *(len(name) for name in names)])


def pair(first, second, clusters, **options):
    values = {"a": np.array(first, dtype=float), "b": np.array(second, dtype=float)}
    return paired_differences(values, np.array(clusters), generator, **options)["a", "b"]


def scipys(differences, num_resamples=math.inf):
    """scipy's permutation test: every pair of (difference, 0) is swapped or not, which flips its sign."""
    return scipy.stats.permutation_test(
        (differences, np.zeros(len(differences))), lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples", vectorized=True, n_resamples=num_resamples, rng=np.random.default_rng(8),
    ).pvalue  # fmt: skip


def family(num_methods, num_items, **options):
    """Methods whose scores differ by 1 from one to the next, with noise that is small beside it."""
    rng = np.random.default_rng(1)
    values = {f"method {k}": k + rng.normal(scale=0.1, size=num_items) for k in range(num_methods)}
    return paired_differences(values, np.arange(num_items), generator, **options)


def test_up_to_twelve_sources_are_enumerated_as_scipy_does():
    first, second = [5.0, 6.0, 7.0, 4.0, 8.0, 6.0], [4.0, 6.5, 5.0, 3.0, 6.0, 5.0]
    ours = pair(first, second, np.arange(6))
    assert ours.p_value == pytest.approx(scipys(np.subtract(first, second)), abs=1e-12)
    assert ours.difference == pytest.approx(np.mean(np.subtract(first, second)))
    assert ours.p_holm == ours.p_value  # a family of one
    rng = np.random.default_rng(3)
    for num_clusters in (1, 2, 9, 12):
        differences = rng.normal(0.5, 1, size=num_clusters).round(1)  # with ties
        p, floor = sign_flip_test(differences[None], np.arange(num_clusters), generator(), 100)
        assert p[0] == pytest.approx(scipys(differences) if num_clusters > 1 else 1.0, abs=1e-12)
        assert floor[0] == 2 / 2**num_clusters


def test_by_hand():
    # differences by cluster: a: 1+1, b: 1, c: -1; |sum| = 2 or more in 6 of the 8 sign patterns of (2, 1, -1)
    result = pair([1, 1, 1, 0], [0, 0, 0, 1], ["a", "a", "b", "c"])
    assert result.difference == 0.5
    assert result.p_value == 6 / 8 and result.p_floor == 2 / 8
    assert (result.num_items, result.num_clusters) == (4, 3)


@pytest.mark.parametrize("shift", [0.1, 0.5, 0.8])
def test_drawn_signs_come_near_every_pattern(shift):
    differences = np.random.default_rng(3).normal(shift, 1, size=15)
    exact = scipys(differences)  # of all 32,768 patterns
    (ours,), (floor,) = sign_flip_test(differences[None], np.arange(15), generator(), 50_000)
    assert ours == pytest.approx(exact, abs=4 * math.sqrt(exact / 50_000))
    assert floor == 2 / 2**15  # more patterns than there are don't lower it


def test_a_source_flips_with_all_of_its_items():
    rng = np.random.default_rng(4)
    clusters = rng.permutation(np.repeat(np.arange(30), 3))
    differences = rng.normal(0.25, 1, size=90)
    (ours,), _ = sign_flip_test(differences[None], clusters, generator(), 40_000)
    sums = np.array([differences[clusters == cluster].sum() for cluster in range(30)])
    assert ours == pytest.approx(scipys(sums, 40_000), abs=0.01)


def test_without_a_difference_one_in_twenty_is_below_a_twentieth():
    differences = np.random.default_rng(5).normal(size=(4000, 20))
    p_values, _ = sign_flip_test(differences, np.arange(20), generator(), 1999)
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


def test_what_one_method_lacks_is_left_out():
    result = pair([1, np.nan, 1], [0, 0, np.nan], ["a", "b", "c"])
    assert (result.num_items, result.difference, result.p_value, result.p_floor) == (1, 1.0, 1.0, 1.0)
    rng = np.random.default_rng(6)
    values = {name: rng.normal(size=40) for name in "abc"}
    values["c"][5:] = np.nan
    found = paired_differences(values | {"d": np.full(40, np.nan)}, np.arange(40), generator)
    assert set(found) == set(itertools.combinations("abc", 2))
    assert found["a", "b"].p_floor == 1 / 2001 and found["a", "c"].p_floor == found["b", "c"].p_floor == 2 / 32
    assert found["a", "c"].p_value == pytest.approx(scipys((values["a"] - values["c"])[:5]), abs=1e-12)


def test_equal_methods_have_p_value_one():
    result = pair(np.ones(30), np.ones(30), np.arange(30))
    assert result.p_value == 1.0 and result.difference == 0.0


def test_the_intervals_are_each_pairs_own_and_the_correction_is_holms():
    rng = np.random.default_rng(7)
    values = {name: rng.normal(shift, 1, size=30) for name, shift in (("a", 0), ("bb", 0.3), ("ccc", 1))}
    found = paired_differences(values, np.arange(30), generator)
    for (first, second), result in found.items():
        interval = bootstrap_mean(values[first] - values[second], np.arange(30), generator(first, second))
        assert (result.difference, result.low, result.high) == (interval.mean, interval.low, interval.high)
    assert [r.p_holm for r in found.values()] == holm([r.p_value for r in found.values()])


def test_many_pairs_get_more_patterns():
    numbers = [num_sign_patterns(n, confidence=0.95, num_resamples=2000) for n in (1, 20, 66, 105, 1770)]
    assert numbers == [2000, 2000, 6600, 10_500, 177_000]
    assert num_sign_patterns(10, confidence=0.99, num_resamples=2000) == 5000


@pytest.mark.parametrize("num_methods", [15, 60])
def test_clear_differences_of_many_methods_are_significant(num_methods):
    found = family(num_methods, 30, num_resamples=100).values()
    num_pairs = math.comb(num_methods, 2)
    assert len(found) == num_pairs and max(r.p_holm for r in found) < 0.05
    assert {r.p_floor for r in found} == {1 / (100 * num_pairs + 1)}
    assert num_pairs * 1 / 2001 > 0.05  # what 2,000 patterns for each could never give


def test_drawn_patterns_or_sources_bound_the_floor():
    differences = np.random.default_rng(9).normal(size=(1, 13))
    floors = [sign_flip_test(differences, np.arange(13), generator(), n)[1][0] for n in (1000, 100_000)]
    assert floors == [1 / 1001, 2 / 2**13]


def test_too_few_sources_are_seen_by_the_floor():
    found = family(3, 5).values()
    assert {(r.p_value, r.p_floor, r.p_holm) for r in found} == {(1 / 16, 1 / 16, 3 / 16)}
