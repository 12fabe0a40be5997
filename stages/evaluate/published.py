"""The figures that papers print, with where they stand and what is known to be wrong with them: `published.yaml`.

Figures carry the names that our own aggregates have, where the paper says enough to tell which one it is.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from stages.evaluate.figures import Figure

FILE = pathlib.Path(__file__).with_suffix(".yaml")
Benchmark = Literal[
    "gedit-bench", "imgedit-bench", "dreambooth", "byg-long-tail-style", "byg-video-style", "imagenhub-ratings",
    "viescore-gemini",
]  # fmt: skip
BENCHMARKS = get_args(Benchmark)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedFigure(_Strict):
    """One number of a paper. `erratum` says what is wrong or unclear about it, if anything is known."""

    benchmark: Benchmark
    task: str
    method: str
    name: str
    value: float
    source: str
    judge: str
    erratum: str = ""


class _Row(_Strict):
    """A row's values stand in the order of its table's columns; null is a gap in the paper."""

    method: str
    task: str | None = None
    values: tuple[float | None, ...]
    errata: dict[str, str] = {}  # by column; "*" is all of them


class _Table(_Strict):
    """`columns` are names of aggregates, or (with `name`) tasks whose aggregate of that name the values are."""

    benchmark: Benchmark
    source: str
    judge: str
    task: str = "all"
    name: str | None = None
    columns: tuple[str, ...]
    rows: tuple[_Row, ...]
    erratum: str = ""

    @model_validator(mode="after")
    def _is_whole(self) -> _Table:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(f"{self.source}: {row.method} has {len(row.values)} values, not {len(self.columns)}")
            if unknown := set(row.errata) - {*self.columns, "*"}:
                raise ValueError(f"{self.source}: {row.method} has errata of unknown columns: {sorted(unknown)}")
        return self

    def figures(self) -> list[PublishedFigure]:
        found = []
        for row in self.rows:
            for column, value in zip(self.columns, row.values, strict=True):
                if value is None:
                    continue
                task = row.task or self.task
                task, name = (column, self.name) if self.name and column != "all" else (task, self.name or column)
                errata = (self.erratum, row.errata.get("*", ""), row.errata.get(column, ""))
                found.append(
                    PublishedFigure(
                        benchmark=self.benchmark, task=task, method=row.method, name=name, value=value,
                        source=self.source, judge=self.judge, erratum=" ".join(e for e in errata if e),
                    )
                )  # fmt: skip
        return found


@functools.cache
def read_published() -> tuple[PublishedFigure, ...]:
    """Every published figure, table by table.

    Raises:
        pydantic.ValidationError: the file is not as it should be.
    """
    tables = [_Table.model_validate(table) for table in yaml.safe_load(FILE.read_text(encoding="utf-8"))]
    return tuple(figure for table in tables for figure in table.figures())


def beside(figures: Sequence[Figure], published: Sequence[PublishedFigure], benchmark: str) -> list[PublishedFigure]:
    """The benchmark's published figures of whose task and aggregate there is one among ours."""
    ours = {(figure.task, figure.name) for figure in figures}
    return [p for p in published if p.benchmark == benchmark and (p.task, p.name) in ours]
