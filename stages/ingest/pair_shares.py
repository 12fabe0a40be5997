"""How many pairs of each edit type and each data set: both shares as near as what there is allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Video4Edit, section 3.2, in per cent (they add up to 101.1 there; shares are taken relative to their sum)
TYPE_SHARES = {
    "add": 7.6, "remove": 9.8, "replace": 9.3, "background": 11.1, "color": 7.9, "material": 12.2, "text": 7.2,
    "motion": 9.7, "portrait": 10.5, "style": 7.5, "tone": 8.3,
}  # fmt: skip
SOURCE_SHARES = {"omniedit": 34.0, "hqedit": 33.0, "ultraedit": 33.0}
_ROUNDS = 200


def spread(total: float, weights: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """`total` over cells in proportion to `weights`, no cell over its limit: what one can't take the others get.

    Where all together can't take it, the sum is less than `total`.
    """
    given, open_cells = np.zeros(len(weights)), (weights > 0) & (limits > 0)
    while open_cells.any():
        share = (total - given[~open_cells].sum()) * weights * open_cells / weights[open_cells].sum()
        over = open_cells & (share >= limits)
        if not over.any():
            return np.where(open_cells, share, given)
        given[over], open_cells = limits[over], open_cells & ~over
    return given


def allot(num_pairs: int, available: np.ndarray, types: Sequence[float], sources: Sequence[float]) -> np.ndarray:
    """How many pairs to take of each type and source, int `[T, S]`, at most `available` `[T, S]`.

    The types' shares come first: a type with too few pairs gives all it has, and the others share the rest in
    proportion. Then the sources' shares are met as nearly as the types allow (iterative proportional fitting).
    """
    types, sources = np.asarray(types, float), np.asarray(sources, float)
    by_type = _whole(spread(num_pairs, types, available.sum(1)), available.sum(1))
    by_source = sources / sources.sum() * by_type.sum()
    cells = np.outer(by_type, sources / sources.sum())
    for _ in range(_ROUNDS):
        for source, total in enumerate(by_source):
            cells[:, source] = spread(total, cells[:, source], available[:, source])
        for kind, total in enumerate(by_type):
            cells[kind] = spread(total, np.maximum(cells[kind], 1e-9), available[kind])
    found, owed = np.zeros_like(available), np.zeros(len(sources))
    for kind in range(len(types)):  # what rounding takes from a source, the next type gives back
        found[kind] = _whole(cells[kind], available[kind], owed)
        owed += cells[kind] - found[kind]
    return found


def _whole(values: np.ndarray, limits: np.ndarray, owed: np.ndarray | float = 0.0) -> np.ndarray:
    """Whole numbers with the (rounded) sum of `values`, each rounded up or down; up first where most is owed."""
    low = np.floor(values + 1e-9).astype(np.int64)
    missing = int(round(values.sum())) - low.sum()
    wish = np.where(low < limits, values - low + owed, -np.inf)
    low[np.argsort(-wish, kind="stable")[:missing]] += 1
    return low
