"""How well each metric tells right edits from wrong ones, as the oracle has them: the area under the ROC curve.

It is the probability that a right edit has a better score than a wrong one, ties counting half: 0.5 is a coin, 1
always. `pooled` is over any two edits; `within_items` over two methods' edits of the same item, so that easy items
carry nothing. Every pair weighs the same.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa

from stages.evaluate.statistics import wilson
from stages.evaluate.summary import LOWER_IS_BETTER, METRICS, YES_NO_METRICS, ScoreColumns

SCOPES = POOLED, WITHIN_ITEMS = ("pooled", "within_items")
RANKED_METRICS = tuple(  # not what the oracle itself says, nor what is the source's alone
    metric for metric in METRICS if metric not in (*YES_NO_METRICS, "frames_right", "temporal_flickering_source")
)
DISCRIMINATION_SCHEMA = pa.schema(
    [
        ("metric", pa.string()),
        ("oracle_metric", pa.string()),
        ("scope", pa.string()),
        ("higher_is_better", pa.bool_()),  # where not, the scores were turned round
        ("auc", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("num_right", pa.int64()),
        ("num_wrong", pa.int64()),
        ("num_pairs", pa.int64()),
        ("num_items", pa.int64()),
        ("num_clusters", pa.int64()),
        ("num_unscored", pa.int64()),  # edits that the oracle has judged and the metric has not
    ]
)


@dataclasses.dataclass(frozen=True)
class Discrimination:
    """An area under the ROC curve with its interval, over `num_pairs` pairs of a right and a wrong edit."""

    auc: float
    low: float
    high: float
    num_right: int
    num_wrong: int
    num_pairs: int
    num_items: int
    num_clusters: int


def concordance(scores: np.ndarray, right: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    """`[groups, groups]`: of the pairs of a right edit of one group and a wrong edit of another, how many give the
    right one the higher score; ties count half. `scores`, `right` (bool) and `groups` (0 to num_groups) are `[edits]`.
    """
    order = np.argsort(scores[~right], kind="stable")
    wrong_scores = scores[~right][order]
    lower = np.zeros((len(order) + 1, num_groups))  # row k: the wrong edits of each group among the k lowest
    lower[np.arange(1, len(order) + 1), groups[~right][order]] = 1
    np.cumsum(lower, axis=0, out=lower)
    below, up_to = (np.searchsorted(wrong_scores, scores[right], side) for side in ("left", "right"))
    result = np.zeros((num_groups, num_groups))
    np.add.at(result, groups[right], (lower[below] + lower[up_to]) / 2)
    return result


def discriminate(
    scores: np.ndarray,
    right: np.ndarray,
    items: np.ndarray,
    clusters: np.ndarray,
    times_drawn: np.ndarray,
    *,
    confidence: float = 0.95,
) -> dict[str, Discrimination]:
    """{scope: area} of scores of which higher is better; a scope without a right and a wrong edit is left out.

    `scores`, `right` (1, 0) and `items` (0, 1, ...) are `[edits]`, NaN is left out; `clusters [items]` is each item's
    source, and `times_drawn [resamples, sources]` how often each bootstrap sample has it, with all of its edits.
    Where all pairs are alike the interval is Wilson's on the number of sources, since it's no certainty.
    """
    kept = ~(np.isnan(scores) | np.isnan(right))
    scores, right, items = scores[kept], right[kept] > 0.5, items[kept]
    agreeing = concordance(scores, right, items, len(clusters))
    num_right, num_wrong = (np.bincount(items[side], minlength=len(clusters)) for side in (right, ~right))
    member = (clusters[:, None] == np.arange(times_drawn.shape[1])).astype(np.float64)  # [items, sources]

    def area(used: np.ndarray, agreed: float, num_pairs: int, low: float, high: float) -> Discrimination:
        counts = num_right[used].sum(), num_wrong[used].sum(), num_pairs, used.sum(), len(np.unique(clusters[used]))
        return Discrimination(float(agreed / num_pairs), low, high, *map(int, counts))

    result = {}
    rights, wrongs = num_right @ member, num_wrong @ member
    if rights.any() and wrongs.any():
        agreed, num_pairs = agreeing.sum(), num_right.sum() * num_wrong.sum()
        sums = ((times_drawn @ (member.T @ agreeing @ member)) * times_drawn).sum(axis=1)
        pairs = (times_drawn @ rights) * (times_drawn @ wrongs)
        num_sources = min(np.count_nonzero(rights), np.count_nonzero(wrongs))
        bounds = _interval(agreed / num_pairs, sums, pairs, num_sources, confidence)
        result[POOLED] = area(num_right + num_wrong > 0, agreed, num_pairs, *bounds)
    of_item = num_right * num_wrong
    if of_item.any():
        agreed, num_pairs = np.trace(agreeing), of_item.sum()
        sums, pairs = times_drawn @ (np.diag(agreeing) @ member), times_drawn @ (of_item @ member)
        bounds = _interval(agreed / num_pairs, sums, pairs, np.count_nonzero(of_item @ member), confidence)
        result[WITHIN_ITEMS] = area(of_item > 0, agreed, num_pairs, *bounds)
    return result


def _interval(
    auc: float, sums: np.ndarray, pairs: np.ndarray, num_sources: int, confidence: float
) -> tuple[float, float]:
    """That of the bootstrap samples that have a pair; NaN where right or wrong edits are of one source alone."""
    if num_sources < 2:
        return math.nan, math.nan
    if auc in (0.0, 1.0):
        return wilson(round(auc * num_sources), num_sources, confidence=confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(sums[pairs > 0] / pairs[pairs > 0], [tail, 1 - tail])
    return float(low), float(high)


def discrimination(scores: pa.Table, *, seed: int, confidence: float, num_resamples: int) -> pa.Table:
    """Every metric against each answer of the oracle, over the edits of all methods: DISCRIMINATION_SCHEMA.

    All have the same bootstrap samples, so that a further metric moves no other one's interval.
    """
    columns = ScoreColumns.of(scores)
    if not scores.num_rows:
        return DISCRIMINATION_SCHEMA.empty_table()
    sources, source = np.unique(columns.source_id.astype(str), return_inverse=True)
    _, first, items = np.unique(columns.item_id.astype(str), return_index=True, return_inverse=True)
    generator = np.random.default_rng([seed, len(sources)])
    shares = np.full(len(sources), 1 / len(sources))
    times_drawn = generator.multinomial(len(sources), shares, size=num_resamples).astype(np.float64)
    rows = []
    for oracle_metric in YES_NO_METRICS:
        right = columns.values[oracle_metric]
        for metric in RANKED_METRICS:
            values, higher = columns.values[metric], metric not in LOWER_IS_BETTER
            found = discriminate(
                values if higher else -values, right, items, source[first], times_drawn, confidence=confidence
            )
            names = {"metric": metric, "oracle_metric": oracle_metric, "higher_is_better": higher}
            names["num_unscored"] = int((~np.isnan(right) & np.isnan(values)).sum())
            for scope, area in found.items():
                area = {k: None if math.isnan(v) else v for k, v in dataclasses.asdict(area).items()}
                rows.append(names | {"scope": scope} | area)
    return pa.Table.from_pylist(rows, DISCRIMINATION_SCHEMA)
