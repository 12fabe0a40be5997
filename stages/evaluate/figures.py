"""What a rescoring gives: named figures with the number of items behind each, and what could not be scored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from stages.evaluate.paired_tests import Difference
from stages.evaluate.statistics import Interval

ALL = "all"
MAX_KEYS_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Figure:
    """One aggregate of a method on a task: `n` items are in it, of `n_expected`. No value is None, never 0."""

    task: str
    method: str
    name: str
    value: float | None
    n: int
    n_expected: int
    low: float | None = None
    high: float | None = None
    category: str = ALL

    @staticmethod
    def of(task: str, method: str, name: str, value: float | Interval, n_expected: int, *, n: int = 0) -> Figure:
        """A NaN becomes None. An `Interval` brings its own n."""
        if isinstance(value, Interval):
            mean, low, high = (_or_none(number) for number in (value.mean, value.low, value.high))
            return Figure(task, method, name, mean, value.num_items, n_expected, low, high)
        return Figure(task, method, name, _or_none(value), n, n_expected)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two methods on the same items of a task: `difference` is first minus second, `p_floor` the smallest p-value
    that the test can give, `p_holm` is corrected for the task's pairs.
    """

    task: str
    first: str
    second: str
    name: str
    difference: float
    low: float | None
    high: float | None
    p_value: float
    p_floor: float
    p_holm: float
    n: int

    @staticmethod
    def family(task: str, name: str, differences: Mapping[tuple[str, str], Difference]) -> list[Comparison]:
        """Those of one task, by the methods' names."""
        return [
            Comparison(
                task, first, second, name, d.difference, _or_none(d.low), _or_none(d.high), d.p_value, d.p_floor,
                d.p_holm, d.num_items,
            )
            for (first, second), d in differences.items()
        ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that could not be scored: in which file, which item (empty: the whole file), and why."""

    file: str
    key: str
    reason: str


@dataclasses.dataclass
class Rescored:
    """All that a rescoring found. `notes` are remarks; only `problems` make it incomplete."""

    figures: list[Figure] = dataclasses.field(default_factory=list)
    comparisons: list[Comparison] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """{complete, figures, comparisons, problems, notes}; every part a list of flat objects."""
        parts = {
            name: [dataclasses.asdict(row) for row in getattr(self, name)]
            for name in ("figures", "comparisons", "problems")
        }
        return {"complete": not self.problems} | parts | {"notes": self.notes}


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """One line for each file and reason, with the first keys by name."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        by_reason.setdefault((problem.file, problem.reason), []).append(problem.key)
    lines = []
    for (file, reason), keys in by_reason.items():
        named = [key for key in keys if key][:MAX_KEYS_NAMED]
        more = f" and {len(keys) - len(named)} more" if len(keys) > len(named) and named else ""
        lines.append(f"{file}: {', '.join(named)}{more}: {reason}" if named else f"{file}: {reason}")
    return lines


def _or_none(number: float) -> float | None:
    return None if math.isnan(number) else float(number)
