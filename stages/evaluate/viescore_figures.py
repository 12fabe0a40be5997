"""Figures from VIEScore answers, every aggregation under its own name.

Of an item: SC, PQ and overall = sqrt(SC * PQ), 0 to 10. Of a task: `sc_mean`, `pq_mean`,
`overall_mean_of_geometric_means` (of the items' overalls: VIEScore's and GEdit-Bench's) and
`overall_geometric_mean_of_means` (sqrt(mean SC * mean PQ) of the items that have both: what some papers print).
Over all tasks (task `all`), which are the categories where a benchmark has some: `macro` is the unweighted mean over
tasks, `micro` the mean over their items. A task without a single scored item is left out of the macro means.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stages.evaluate.answers import CALLS, Answers
from stages.evaluate.figures import ALL, Comparison, Figure, Problem, Rescored
from stages.evaluate.paired_tests import paired_differences
from stages.evaluate.statistics import bootstrap_mean, macro_mean

OVERALL = "overall"
PARTS = (*(call.lower() for call in CALLS), OVERALL)
Items = dict[tuple[str, str], dict[str, float]]  # {(task, item): {part: score, NaN where unscored}}


def viescore_figures(answers: Sequence[Answers], *, num_expected: int | None = None) -> Rescored:
    """Every figure of every task and method, and every two methods of a task compared by the items' overalls.

    Expected are `num_expected` items of every task, or all items that any method has answers for.
    """
    result = Rescored()
    tasks = list(dict.fromkeys(a.task for a in answers))
    expected = {task: frozenset().union(*(a.items for a in answers if a.task == task)) for task in tasks}
    items: dict[tuple[str, str], Items] = {}
    for a in answers:
        items[a.task, a.method] = {(a.task, key): _item(a.scores, key) for key in sorted(expected[a.task])}
        missing = sorted(expected[a.task] - a.items) if num_expected is None else []
        where = f"{a.task}/{a.method}"
        result.problems += [Problem(where, key, "other methods have answers for it, this one none.") for key in missing]
        if num_expected is not None and len(a.items) != num_expected:
            result.problems.append(Problem(where, "", f"has {len(a.items)} items instead of {num_expected}."))
    for (task, method), scored in items.items():
        result.figures += _task_figures(task, method, scored, num_expected or len(scored))
    for task in tasks:
        result.comparisons += _compare(task, {m: scored for (t, m), scored in items.items() if t == task})
    _over_tasks(result, items, tasks, num_expected)
    return result


def _item(scores: Mapping[str, Mapping[str, float]], key: str) -> dict[str, float]:
    parts = {call.lower(): of.get(key, math.nan) for call, of in scores.items()}
    return parts | {OVERALL: math.sqrt(parts["sc"] * parts["pq"])}  # NaN where either is


def _column(items: Items, part: str) -> np.ndarray:
    return np.array([item[part] for item in items.values()], dtype=np.float64)


def _clusters(items: Items) -> np.ndarray:
    """Answers don't name the source image, so every item is its own."""
    return np.arange(len(items))


def _generator(*names: str) -> np.random.Generator:
    return np.random.default_rng([0, zlib.crc32("/".join(names).encode())])


def _geometric_mean_of_means(items: Items, mean: Callable[[np.ndarray], float]) -> tuple[float, int]:
    """sqrt(mean SC * mean PQ) over the items that have both, and their number."""
    both = ~np.isnan(_column(items, OVERALL))
    if not both.any():
        return math.nan, 0
    sc, pq = (np.where(both, _column(items, part), np.nan) for part in ("sc", "pq"))
    return math.sqrt(mean(sc) * mean(pq)), int(both.sum())


def _task_figures(task: str, method: str, items: Items, num_expected: int) -> list[Figure]:
    figures = []
    for part in PARTS:
        name = "overall_mean_of_geometric_means" if part == OVERALL else f"{part}_mean"
        interval = bootstrap_mean(_column(items, part), _clusters(items), _generator(task, method, part))
        figures.append(Figure.of(task, method, name, interval, num_expected))
    value, n = _geometric_mean_of_means(items, lambda v: float(np.nanmean(v)))
    figures.append(Figure.of(task, method, "overall_geometric_mean_of_means", value, num_expected, n=n))
    return figures


def _compare(task: str, by_method: Mapping[str, Items]) -> list[Comparison]:
    columns = {method: _column(items, OVERALL) for method, items in by_method.items()}
    clusters = _clusters(next(iter(by_method.values())))
    differences = paired_differences(columns, clusters, lambda *pair: _generator(task, *pair))
    return Comparison.family(task, "overall_mean_of_geometric_means", differences)


def _over_tasks(
    result: Rescored, items: Mapping[tuple[str, str], Items], tasks: Sequence[str], num_expected: int | None
) -> None:
    """Adds what methods with answers for every task have over all of them; says who lacks tasks."""
    methods = list(dict.fromkeys(method for _, method in items))
    lacking = {m: [task for task in tasks if (task, m) not in items] for m in methods}
    whole = [method for method in methods if not lacking[method]]
    if len(tasks) < 2:
        return
    if not whole:
        result.notes.append("No method has answers for every task, so there are no figures over all tasks.")
        return
    for method in methods:
        result.problems += [
            Problem(f"{task}/{method}", "", "there are no answers, so the method has no figures over all tasks.")
            for task in lacking[method]
        ]
    for method in whole:
        joined = {key: item for task in tasks for key, item in items[task, method].items()}
        result.figures += _all_figures(method, joined, num_expected * len(tasks) if num_expected else len(joined))


def _all_figures(method: str, items: Items, num_expected: int) -> list[Figure]:
    categories = np.array([task for task, _ in items])
    kinds = {
        "macro": lambda values, generator: macro_mean(values, categories, _clusters(items), generator),
        "micro": lambda values, generator: bootstrap_mean(values, _clusters(items), generator),
    }
    figures = []
    tasks = np.unique(categories)
    for kind, estimate in kinds.items():
        for part in PARTS:
            name = f"overall_{kind}_mean_of_geometric_means" if part == OVERALL else f"{part}_{kind}_mean"
            interval = estimate(_column(items, part), _generator(ALL, method, name))
            figures.append(Figure.of(ALL, method, name, interval, num_expected))

    def macro(values: np.ndarray) -> float:
        by_task = [values[(categories == task) & ~np.isnan(values)] for task in tasks]
        return float(np.mean([of_task.mean() for of_task in by_task if len(of_task)]))

    means = {"macro": macro, "micro": lambda values: float(np.nanmean(values))}
    for kind, mean in means.items():
        value, n = _geometric_mean_of_means(items, mean)
        name = f"overall_geometric_mean_of_{kind}_means"
        figures.append(Figure.of(ALL, method, name, value, num_expected, n=n))
    return figures
