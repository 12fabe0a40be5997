"""Intervals and agreement of scores of edits, where several items may share one source image.

Values are float arrays `[items]`; NaN means unscored and is left out, never counted as 0. Items with the
same cluster (source image) are resampled together, since their scores are not independent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

BATCH_ELEMENTS = 4_000_000  # bounds the memory of one batch of resamples


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, over `num_items` scored items of `num_clusters` clusters."""

    mean: float
    low: float
    high: float
    num_items: int
    num_clusters: int


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How two yes/no readings of the same items agree: share of agreement, Cohen's kappa, and the four
    counts.
    """

    agreement: float
    kappa: float
    num_items: int
    both_yes: int
    only_first: int
    only_second: int
    both_no: int


def _cluster_sums(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of the values in each cluster, `[clusters]` each, by the clusters' sorted names."""
    _, index = np.unique(clusters, return_inverse=True)
    return np.bincount(index, weights=values), np.bincount(index).astype(np.float64)


def _scored(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, clusters = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if values.shape != clusters.shape or values.ndim != 1:
        raise ValueError(f"values {values.shape} and clusters {clusters.shape} must be equally long lists")
    kept = ~np.isnan(values)
    return values[kept], clusters[kept]


def _resampled_means(
    sums: np.ndarray, counts: np.ndarray, generator: np.random.Generator, num_resamples: int
) -> np.ndarray:
    """Means of `num_resamples` draws of clusters with replacement, `[num_resamples]`."""
    num_clusters = len(sums)
    batch = max(1, BATCH_ELEMENTS // num_clusters)
    means = []
    for start in range(0, num_resamples, batch):
        drawn = generator.integers(num_clusters, size=(min(batch, num_resamples - start), num_clusters))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def bootstrap_mean(
    values: np.ndarray,
    clusters: np.ndarray,
    generator: np.random.Generator,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> Interval:
    """Mean with a percentile bootstrap interval that resamples whole clusters.

    With fewer than two clusters there is no interval (NaN); with no scored item no mean either.
    """
    values, clusters = _scored(values, clusters)
    if not len(values):
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    sums, counts = _cluster_sums(values, clusters)
    if len(sums) < 2:
        return Interval(float(values.mean()), math.nan, math.nan, len(values), len(sums))
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled_means(sums, counts, generator, num_resamples), [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high), len(values), len(sums))


def wilson(num_successes: int, num_items: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion of independent items; right at 0 % and 100 %, where a
    bootstrap is not.
    """
    from scipy.stats import norm

    if num_items == 0:
        return math.nan, math.nan
    z = float(norm.ppf(1 - (1 - confidence) / 2))
    share = num_successes / num_items
    centre = share + z * z / (2 * num_items)
    spread = z * math.sqrt(share * (1 - share) / num_items + z * z / (4 * num_items**2))
    scale = 1 + z * z / num_items
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def proportion(
    values: np.ndarray,
    clusters: np.ndarray,
    generator: np.random.Generator,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> Interval:
    """A share of yes (1) among yes and no (0), with its interval.

    Wilson's where every item is its own cluster. Else the clustered bootstrap, but where it degenerates (all
    items alike) Wilson's on the number of clusters, so that "0 of 40" never reads as certainty.
    """
    kept, kept_clusters = _scored(values, clusters)
    result = bootstrap_mean(kept, kept_clusters, generator, confidence=confidence, num_resamples=num_resamples)
    if not result.num_items:
        return result
    if result.num_clusters == result.num_items or result.mean in (0.0, 1.0):
        low, high = wilson(round(result.mean * result.num_clusters), result.num_clusters, confidence=confidence)
        return dataclasses.replace(result, low=low, high=high)
    return result


def macro_mean(
    values: np.ndarray,
    categories: np.ndarray,
    clusters: np.ndarray,
    generator: np.random.Generator,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> Interval:
    """The unweighted mean over categories of the mean over their items, with a bootstrap interval over clusters.

    A cluster is drawn with all of its items, whatever their categories. A category that no drawn cluster has is left
    out of that draw.
    """
    kept = ~np.isnan(np.asarray(values, dtype=np.float64))
    categories = np.asarray(categories)[kept]
    values, clusters = _scored(values, clusters)
    if not len(values):
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    category_names, category = np.unique(categories, return_inverse=True)
    cluster_names, cluster = np.unique(clusters, return_inverse=True)
    shape = (len(cluster_names), len(category_names))
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (cluster, category), values)
    np.add.at(counts, (cluster, category), 1)
    mean = float((sums.sum(axis=0) / counts.sum(axis=0)).mean())
    if shape[0] < 2:
        return Interval(mean, math.nan, math.nan, len(values), shape[0])
    batch = max(1, BATCH_ELEMENTS // shape[0])
    means = []
    for start in range(0, num_resamples, batch):
        size = min(batch, num_resamples - start)
        times_drawn = generator.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=size)
        drawn = times_drawn @ counts
        shares = np.divide(times_drawn @ sums, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0)
        means.append(np.nanmean(shares, axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(mean, float(low), float(high), len(values), shape[0])


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): the chance of any false alarm among them is bounded.

    Like Bonferroni's, but the k-th smallest of m counts m - k + 1 times only. A NaN is no test and stays NaN.
    """
    tested = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(sorted(tested, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def agreement(first: np.ndarray, second: np.ndarray) -> Agreement:
    """Agreement of two yes/no (1/0) readings on the items that both have; kappa is NaN where chance explains
    all.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    kept = ~(np.isnan(first) | np.isnan(second))
    yes_first, yes_second = first[kept] > 0.5, second[kept] > 0.5
    counts = [
        int((a & b).sum())
        for a, b in (
            (yes_first, yes_second),
            (yes_first, ~yes_second),
            (~yes_first, yes_second),
            (~yes_first, ~yes_second),
        )
    ]
    num_items = sum(counts)
    if not num_items:
        return Agreement(math.nan, math.nan, 0, 0, 0, 0, 0)
    observed = (counts[0] + counts[3]) / num_items
    p_first, p_second = (counts[0] + counts[1]) / num_items, (counts[0] + counts[2]) / num_items
    chance = p_first * p_second + (1 - p_first) * (1 - p_second)
    kappa = (observed - chance) / (1 - chance) if chance < 1 else math.nan
    return Agreement(observed, kappa, num_items, *counts)
