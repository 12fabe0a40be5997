"""Statistics of people's judgements: which of two results raters prefer, and how far raters agree.

Votes are arrays `[votes]`: 1 the first of two methods won, 0 it lost; a missing vote is NaN and is left out.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

DECIMALS = 9  # to which two values must agree to count as the same one


@dataclasses.dataclass(frozen=True)
class WinRate:
    """The share of votes that a method won, and whether that may be chance.

    `rate` is the share over all votes, `mean_over_raters` the mean of each rater's own share and `sem` that mean's
    standard error (sample deviation over raters / sqrt(raters); NaN for one rater). `p_value` is the exact two-sided
    binomial test of `num_wins` in `num_votes` against an even chance. It takes votes as independent; with several
    votes on one item they aren't, so hold it beside the sign test over items.
    """

    rate: float
    mean_over_raters: float
    sem: float
    p_value: float
    num_wins: int
    num_votes: int
    num_raters: int


@dataclasses.dataclass(frozen=True)
class SignTest:
    """Items whose majority preferred a method, of those that have a majority; the exact two-sided p-value against an
    even chance. `num_tied` items have none and are left out.
    """

    num_wins: int
    num_items: int
    num_tied: int
    p_value: float


def _kept(votes: np.ndarray, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    votes, names = np.asarray(votes, dtype=np.float64), np.asarray(names)
    if votes.shape != names.shape or votes.ndim != 1:
        raise ValueError(f"votes {votes.shape} and their names {names.shape} must be equally long lists")
    kept = ~np.isnan(votes)
    if not np.isin(votes[kept], (0.0, 1.0)).all():
        raise ValueError("a vote is 1 (won), 0 (lost) or NaN (none)")
    return votes[kept], names[kept]


def binomial_p_value(num_wins: int, num_votes: int) -> float:
    """The exact two-sided binomial test against an even chance; NaN without votes."""
    from scipy.stats import binomtest

    return float(binomtest(num_wins, num_votes).pvalue) if num_votes else math.nan


def win_rate(votes: np.ndarray, raters: np.ndarray) -> WinRate:
    """Of `votes` by `raters` (names), both `[votes]`.

    Raises:
        ValueError: unequal lengths, or a vote that is not 0, 1 or NaN.
    """
    votes, raters = _kept(votes, raters)
    if not len(votes):
        return WinRate(math.nan, math.nan, math.nan, math.nan, 0, 0, 0)
    shares = np.array([votes[raters == rater].mean() for rater in np.unique(raters)])
    sem = float(shares.std(ddof=1) / math.sqrt(len(shares))) if len(shares) > 1 else math.nan
    wins = int(votes.sum())
    p_value = binomial_p_value(wins, len(votes))
    return WinRate(float(votes.mean()), float(shares.mean()), sem, p_value, wins, len(votes), len(shares))


def sign_test(votes: np.ndarray, items: np.ndarray) -> SignTest:
    """On the majority of each item's votes; `votes` and `items` (names) are `[votes]`.

    Raises:
        ValueError: as `win_rate`.
    """
    votes, items = _kept(votes, items)
    means = np.array([votes[items == item].mean() for item in np.unique(items)])
    wins, num_tied = int((means > 0.5).sum()), int((means == 0.5).sum())
    num_items = len(means) - num_tied
    return SignTest(wins, num_items, num_tied, binomial_p_value(wins, num_items))


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement of raters beyond chance (Fleiss 1971); `counts[i, j]` raters put item i into category j.

    Every item has the same number of raters, two or more. NaN without items, and where all ratings are alike: chance
    alone would then agree as much.

    Raises:
        ValueError: items with unequal numbers of ratings, or fewer than two.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if not counts.size:
        return math.nan
    num_raters = counts.sum(axis=1)
    if (num_raters != num_raters[0]).any() or num_raters[0] < 2:
        raise ValueError("Fleiss' kappa needs the same number of ratings for every item, at least two")
    n = num_raters[0]
    observed = float((((counts**2).sum(axis=1) - n) / (n * (n - 1))).mean())
    shares = counts.sum(axis=0) / counts.sum()
    chance = float((shares**2).sum())
    return (observed - chance) / (1 - chance) if chance < 1 - 1e-12 else math.nan


def category_counts(ratings: np.ndarray) -> np.ndarray:
    """What `fleiss_kappa` needs, `[items, categories]`, from ratings `[raters, items]`: one category for each value.

    Items that a rater left out (NaN) are not in it.
    """
    ratings = np.asarray(ratings, dtype=np.float64)
    ratings = np.round(ratings[:, ~np.isnan(ratings).any(axis=0)], DECIMALS)
    return (
        np.stack([(ratings == value).sum(axis=0) for value in np.unique(ratings)], axis=1) if ratings.size else ratings
    )


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation on the items that both have; NaN below two, or where one gives all the same.

    Values that differ by rounding alone are tied, so that sqrt(2 * 6) and sqrt(3 * 4) have one rank.
    """
    from scipy.stats import spearmanr

    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    kept = ~(np.isnan(first) | np.isnan(second))
    first, second = np.round(first[kept], DECIMALS), np.round(second[kept], DECIMALS)
    if len(first) < 2 or (first == first[0]).all() or (second == second[0]).all():
        return math.nan
    return float(spearmanr(first, second).statistic)


def spearman_between_raters(ratings: np.ndarray) -> np.ndarray:
    """For each rater of `ratings [raters, items]` Spearman with the mean of all the others, `[raters]`."""
    ratings = np.asarray(ratings, dtype=np.float64)
    return np.array(
        [spearman(own, np.delete(ratings, index, axis=0).mean(axis=0)) for index, own in enumerate(ratings)]
        if len(ratings) > 1
        else []
    )
