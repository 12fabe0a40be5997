"""People's ratings as ImagenHub and VIEScore publish them: `<task>/*.tsv`, one table for each rater.

The first column is `uid`, the item; every other column is a method, with cells `[SC, PQ]`: exactly two numbers, 0 to
`max_score` (published ratings: 0, 0.5 and 1). Tables that stand in the folder itself are one task, named as the folder.
A rater is a table, named as its file. An item counts for a method where every rater of the method has rated it, so
that means, spread and agreement are about the same items.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from cluster.errors import UserError
from stages.evaluate.answers import Answers
from stages.evaluate.figures import ALL, Comparison, Figure, Problem, Rescored
from stages.evaluate.paired_tests import paired_differences
from stages.evaluate.statistics import bootstrap_mean
from stages.evaluate.viescore_figures import OVERALL, PARTS
from stages.evaluate.votes import category_counts, fleiss_kappa, spearman, spearman_between_raters

ITEM = "uid"


@dataclasses.dataclass(frozen=True)
class Ratings:
    """A method's ratings on a task: `parts[part]` is `[raters, items]`, NaN where a rater gave none."""

    task: str
    method: str
    raters: tuple[str, ...]
    items: tuple[str, ...]
    parts: Mapping[str, np.ndarray]

    @property
    def complete(self) -> np.ndarray:
        """Which items every rater has rated, bool `[items]`."""
        return ~np.isnan(self.parts[OVERALL]).any(axis=0)

    def of_items(self, part: str) -> np.ndarray:
        """The mean over raters, `[items]`; NaN where a rater is missing."""
        return self.parts[part].mean(axis=0)


def read_ratings(folder: pathlib.Path, max_score: float) -> tuple[list[Ratings], list[Problem]]:
    """All tasks and methods below `folder`, and what could not be read.

    Raises:
        UserError: there are no such tables.
    """
    tables = {folder.name: sorted(folder.glob("*.tsv"))} if any(folder.glob("*.tsv")) else {}
    for task in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if files := sorted(task.glob("*.tsv")):
            tables[task.name] = files
    if not tables:
        raise UserError(f"{folder}: no ratings here. Wanted are tables <task>/*.tsv in it, one for each rater.")
    ratings: list[Ratings] = []
    problems: list[Problem] = []
    for task, files in tables.items():
        found, faults = _read_task(folder, task, files, max_score)
        ratings += found
        problems += faults
    return ratings, problems


def _read_task(
    folder: pathlib.Path, task: str, files: Sequence[pathlib.Path], max_score: float
) -> tuple[list[Ratings], list[Problem]]:
    problems: list[Problem] = []
    by_rater: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    items_of: dict[str, set[str]] = {}
    for path in files:
        name = str(path.relative_to(folder))
        columns, rated, faults = _read_table(path, max_score)
        problems += [Problem(name, key, reason) for key, reason in faults]
        if columns:
            by_rater[name], items_of[name] = columns, rated
    items = sorted(set().union(*items_of.values()))
    for name, rated in items_of.items():
        reason = "another rater has rated this item, this one has no row."
        problems += [Problem(name, key, reason) for key in items if key not in rated]
    ratings = []
    for method in dict.fromkeys(itertools.chain.from_iterable(by_rater.values())):
        raters = tuple(name for name, columns in by_rater.items() if method in columns)
        reason = f"has no column {method!r}, so this method's figures are without this rater."
        problems += [Problem(name, "", reason) for name in by_rater if name not in raters]
        ratings.append(_gather(task, method, raters, items, [by_rater[name][method] for name in raters]))
    return ratings, problems


def _gather(
    task: str,
    method: str,
    raters: tuple[str, ...],
    items: Sequence[str],
    cells: Sequence[Mapping[str, tuple[float, float]]],
) -> Ratings:
    nothing = (math.nan, math.nan)
    pairs = np.array([[of.get(item, nothing) for item in items] for of in cells], dtype=np.float64)
    pairs = pairs.reshape(len(raters), len(items), 2)  # also without items
    sc, pq = pairs[..., 0], pairs[..., 1]
    return Ratings(task, method, raters, tuple(items), {"sc": sc, "pq": pq, OVERALL: np.sqrt(sc * pq)})


def _read_table(
    path: pathlib.Path, max_score: float
) -> tuple[dict[str, dict[str, tuple[float, float]]], set[str], list[tuple[str, str]]]:
    """{method: {item: (SC, PQ)}}, the items, and faults (item, reason)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))
    except UnicodeDecodeError as error:
        return {}, set(), [("", f"isn't UTF-8 (byte {error.start}); the rater is left out. Save it as UTF-8.")]
    except (OSError, csv.Error) as error:
        return {}, set(), [("", f"can't be read ({error}); the rater is left out.")]
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    methods = rows[0][1:] if rows else []
    if not methods or rows[0][0] != ITEM or len(set(methods)) != len(methods) or not all(methods):
        wanted = f"`{ITEM}` and then one column for each method, each with its own name, between tabs"
        return {}, set(), [("", f"its first line should be {wanted}; the rater is left out.")]
    columns: dict[str, dict[str, tuple[float, float]]] = {method: {} for method in methods}
    faults = [] if rows[1:] else [("", "has no ratings.")]
    times = collections.Counter(row[0] for row in rows[1:])
    faults += [(uid, "there are two rows for this item, so it is unscored.") for uid, n in times.items() if n > 1]
    for uid, *cells in rows[1:]:
        if times[uid] > 1:
            continue
        if len(cells) != len(methods):
            faults.append((uid, f"has {len(cells)} ratings for {len(methods)} methods, so the item is unscored."))
            continue
        for method, cell in zip(methods, cells, strict=True):
            pair = _read_cell(cell, max_score)
            if isinstance(pair, str):
                faults.append((f"{uid}, {method}", pair))
            else:
                columns[method][uid] = pair
    return columns, set(times), faults


def _read_cell(cell: str, max_score: float) -> tuple[float, float] | str:
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        value = None
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != 2:
        return f"{cell[:60]!r} is not [SC, PQ], two numbers, so the item is unscored."
    if not all(0 <= v <= max_score for v in value):
        return f"{cell[:60]!r} is out of the range 0 to {max_score:g} (--max-rating), so the item is unscored."
    return float(value[0]), float(value[1])


def ratings_figures(ratings: Sequence[Ratings], answers: Sequence[Answers] = ()) -> Rescored:
    """Every method's means with their spread over raters, how far raters agree, and with a judge's answers if given.

    For SC, PQ and overall = sqrt(SC * PQ) of each rating: `*_mean`, `*_std_over_raters` (of the raters' own means,
    as ImagenHub prints it) and `*_sem_over_raters`; `*_fleiss_kappa`, each value being a category;
    `*_spearman_between_raters`, the mean over raters of Spearman with the mean of the others; `*_spearman_with_judge`
    of the raters' mean. Where the name ends in `_official` the mean of correlations went through tanh, as VIEScore's
    notebook does without the inverse before, which lowers it. A method `all` has a task's means over methods.
    """
    result = Rescored()
    judged = {(a.task, a.method): a.scores for a in answers}
    for r in ratings:
        for part in PARTS:
            judge = _judge_scores(judged.get((r.task, r.method)), r.items, part)
            result.figures += _method_figures(r, part, judge)
    for task in dict.fromkeys(r.task for r in ratings):
        of_task = [r for r in ratings if r.task == task]
        result.comparisons += _compare(task, of_task)
        if judged:
            result.figures += _mean_over_methods(result.figures, task)
        counts = {len(r.raters) for r in of_task}
        if 1 in counts:
            result.notes.append(f"{task}: of one rater alone there is neither spread nor agreement.")
    return result


def _judge_scores(
    scores: Mapping[str, Mapping[str, float]] | None, items: Sequence[str], part: str
) -> np.ndarray | None:
    if scores is None:
        return None
    sc, pq = (np.array([scores[call].get(item, math.nan) for item in items]) for call in ("SC", "PQ"))
    return {"sc": sc, "pq": pq, OVERALL: np.sqrt(sc * pq)}[part]


def _method_figures(r: Ratings, part: str, judge: np.ndarray | None) -> list[Figure]:
    complete, num_items = r.complete, len(r.items)
    n = int(complete.sum())
    rated = r.parts[part][:, complete]
    own_means = rated.mean(axis=1) if n else np.full(len(r.raters), math.nan)
    several = len(r.raters) > 1
    mean_name = "overall_mean_of_geometric_means" if part == OVERALL else f"{part}_mean"
    mean = bootstrap_mean(r.of_items(part), np.arange(num_items), np.random.default_rng(0))
    figures = [Figure.of(r.task, r.method, mean_name, mean, num_items)]
    between = spearman_between_raters(rated)
    between_mean = float(between.mean()) if len(between) else math.nan
    values = {
        "std_over_raters": float(own_means.std()) if several else math.nan,
        "sem_over_raters": float(own_means.std(ddof=1) / math.sqrt(len(own_means))) if several else math.nan,
        "fleiss_kappa": fleiss_kappa(category_counts(rated)) if several and n else math.nan,
        "spearman_between_raters": between_mean,
        "spearman_between_raters_official": math.tanh(between_mean),
    }
    figures += [Figure.of(r.task, r.method, f"{part}_{name}", value, num_items, n=n) for name, value in values.items()]
    if judge is not None:
        with_judge = int((complete & ~np.isnan(judge)).sum())
        value = spearman(r.of_items(part), judge)
        figures.append(Figure.of(r.task, r.method, f"{part}_spearman_with_judge", value, num_items, n=with_judge))
    return figures


def _mean_over_methods(figures: Sequence[Figure], task: str) -> list[Figure]:
    """The mean over a task's methods of their correlation with the judge; n counts methods here."""
    means = []
    for part in PARTS:
        name = f"{part}_spearman_with_judge"
        found = [f.value for f in figures if (f.task, f.name) == (task, name) and f.method != ALL]
        known = [value for value in found if value is not None]
        if found:
            mean = float(np.mean(known)) if known else math.nan
            for suffix, value in (("", mean), ("_official", math.tanh(mean))):
                means.append(Figure.of(task, ALL, f"{name}{suffix}", value, len(found), n=len(known)))
    return means


def _compare(task: str, ratings: Sequence[Ratings]) -> list[Comparison]:
    columns = {r.method: r.of_items(OVERALL) for r in ratings}
    differences = paired_differences(columns, np.arange(len(ratings[0].items)), lambda *_: np.random.default_rng(0))
    return Comparison.family(task, "overall_mean_of_geometric_means", differences)
