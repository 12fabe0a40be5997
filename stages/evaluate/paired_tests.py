"""Methods two by two on the same items: differences, their intervals, and permutation tests corrected for their number.

Values are float arrays `[items]`; NaN means unscored. A family of tests are all pairs that are corrected together.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from stages.evaluate.statistics import bootstrap_mean, holm

BATCH_ELEMENTS = 1_000_000  # of the largest array of one batch of sign patterns
MAX_EXACT_CLUSTERS = 12  # up to 4096 sign patterns are enumerated, beyond that they are drawn
MARGIN = 5  # how far below the level the smallest corrected p-value of a family lies
TIED = 1e-12  # of the sum of all sizes: sums that differ by less are equal, whatever the order of addition


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of first - second over the items that both have, its interval, and the two-sided p-value of "no
    difference".

    `p_floor` is the smallest p-value that so many clusters or sign patterns can give, `p_holm` is corrected for the
    pairs of the family.
    """

    difference: float
    low: float
    high: float
    p_value: float
    p_floor: float
    p_holm: float
    num_items: int
    num_clusters: int


def paired_differences(
    values: Mapping[str, np.ndarray],
    clusters: np.ndarray,
    generator: Callable[..., np.random.Generator],
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> dict[tuple[str, str], Difference]:
    """Every two methods of a family, {(first, second): first - second}; those without common items are left out.

    `values` are the methods' `[items]`, `clusters` the items' sources. `generator(first, second)` draws the bootstrap
    of a pair, `generator()` the sign patterns of the whole family.
    """
    differences = {
        (first, second): np.asarray(values[first], dtype=np.float64) - np.asarray(values[second], dtype=np.float64)
        for first, second in itertools.combinations(values, 2)
    }
    differences = {pair: d for pair, d in differences.items() if not np.isnan(d).all()}
    if not differences:
        return {}
    num_patterns = num_sign_patterns(len(differences), confidence=confidence, num_resamples=num_resamples)
    p_values, p_floors = sign_flip_test(np.stack(list(differences.values())), clusters, generator(), num_patterns)
    options = {"confidence": confidence, "num_resamples": num_resamples}
    result = {}
    for pair, p, floor, corrected in zip(differences, p_values, p_floors, holm(p_values), strict=True):
        interval = bootstrap_mean(differences[pair], clusters, generator(*pair), **options)
        result[pair] = Difference(
            interval.mean, interval.low, interval.high, float(p), float(floor), corrected, interval.num_items,
            interval.num_clusters,
        )  # fmt: skip
    return result


def num_sign_patterns(num_tests: int, *, confidence: float, num_resamples: int) -> int:
    """How many sign patterns are drawn for each of `num_tests` tests that are corrected together.

    With n patterns no p-value is below 1 / (n + 1), and Holm's correction multiplies the smallest by the number of
    tests. So n grows with it, until what is left is a fifth of the level: 100 patterns for each test at 95 %.
    """
    return max(num_resamples, round(MARGIN * num_tests / (1 - confidence)))


def sign_flip_test(
    differences: np.ndarray, clusters: np.ndarray, generator: np.random.Generator, num_patterns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided permutation tests of mean 0 of `differences [tests, items]`: p-values and their floors, `[tests]`.

    Under "no difference" a cluster's sum is as likely to have either sign. All patterns of signs are tried where a
    test has up to 12 clusters; else `num_patterns` are drawn, the same ones for all tests, and the observed pattern
    counts as one more (Phipson and Smyth 2010). Two of all patterns, or that one, are the floor. NaN is left out.
    """
    order = np.argsort(clusters, kind="stable")
    starts = np.unique(np.asarray(clusters)[order], return_index=True)[1]
    scored = ~np.isnan(differences[:, order])
    sums = np.add.reduceat(np.where(scored, differences[:, order], 0.0), starts, axis=1)
    counts = np.add.reduceat(scored, starts, axis=1, dtype=np.int64)
    num_clusters = (counts > 0).sum(axis=1)
    exact = num_clusters <= MAX_EXACT_CLUSTERS
    p_values = np.empty(len(sums))
    for test in np.flatnonzero(exact):
        own = sums[test, counts[test] > 0]
        p_values[test] = _extreme(_all_patterns(len(own)), own[None]).mean()
    if not exact.all():
        p_values[~exact] = (1 + _num_extreme(sums[~exact], generator, num_patterns)) / (1 + num_patterns)
    floors = 2.0 ** np.minimum(1 - num_clusters, 0)
    floors[~exact] = np.maximum(floors[~exact], 1 / (1 + num_patterns))
    return p_values, floors


@functools.cache
def _all_patterns(num_clusters: int) -> np.ndarray:
    """Which clusters are flipped, `[2^clusters, clusters]` of 0 and 1."""
    return (np.arange(2**num_clusters)[:, None] >> np.arange(num_clusters)) & 1


def _num_extreme(sums: np.ndarray, generator: np.random.Generator, num_patterns: int) -> np.ndarray:
    """How many of the drawn patterns give a sum as far from 0 as the observed one, `[tests]`."""
    num_extreme = np.zeros(len(sums), dtype=np.int64)
    batch = max(1, BATCH_ELEMENTS // max(sums.shape))
    for start in range(0, num_patterns, batch):
        size = (min(batch, num_patterns - start), sums.shape[1])
        num_extreme += np.count_nonzero(_extreme(generator.integers(0, 2, size, dtype=np.uint8), sums), axis=0)
    return num_extreme


def _extreme(flipped: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Whether each pattern's sum is as far from 0 as the observed one, `[patterns, tests]`."""
    total = sums.sum(axis=1)
    distance = flipped.astype(np.float64) @ (-2 * sums.T)
    distance += total
    np.abs(distance, out=distance)  # in place: with many tests memory is what takes the time
    return distance >= np.abs(total) - TIED * np.abs(sums).sum(axis=1)
