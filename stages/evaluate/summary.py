"""From the per-sample table to every published figure: no image, model or accelerator is needed.

Each figure is a mean over items (micro) with the number of scored items beside the number expected. Rows of the
edit type `macro` are the unweighted means over edit types of these types' means, as GEdit-Bench and ImgEdit-Bench
report them; in a run's results the judges' are `judge_overall_macro` and `judge_imgedit_macro`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stages.evaluate.paired_tests import paired_differences
from stages.evaluate.statistics import Interval, agreement, bootstrap_mean, macro_mean, proportion

ALL = "all"
MACRO = "macro"
YES_NO_METRICS = ("whole_scene_right", "edit_success", "preservation")
JUDGE_METRICS = (
    "judge_overall",
    "judge_success",
    "judge_over_editing",
    "judge_naturalness",
    "judge_artifacts",
    "judge_prompt_following",
    "judge_identity",
    "judge_imgedit",
    "judge_imgedit_first",
    "judge_imgedit_second",
    "judge_imgedit_third",
    "judge_p_right",
    "judge_p_done",
    "judge_p_kept",
)
JUDGE_OVERALLS = ("judge_overall", "judge_imgedit", "judge_p_right")  # by judge: 0 to 10, 1 to 5, 0 to 1
PIXEL_METRICS = ("psnr_unedited", "l1", "psnr", "ssim")
CLIP_METRICS = ("frames_right", "flicker_added")  # of clips alone
VIDEO_METRICS = (  # of clips alone, too: stages/evaluate/motion
    "temporal_flickering",
    "temporal_flickering_source",
    "motion_fidelity",
    "motion_fidelity_official",
    "dynamic_degree",
    "aesthetic",
)
PERCEPTION_METRICS = (
    "clip_directional", "clip_score", "dino", "dinov2", "dinov2_masked", "tifa", "geometric_score"
)  # fmt: skip
METRICS = YES_NO_METRICS + JUDGE_METRICS + PIXEL_METRICS + CLIP_METRICS + VIDEO_METRICS + PERCEPTION_METRICS
LOWER_IS_BETTER = ("l1", "flicker_added")
SHARES = (*YES_NO_METRICS, "dynamic_degree")  # of items: their intervals are Wilson's
COMPARED_METRICS = (*YES_NO_METRICS, *JUDGE_OVERALLS)
JUDGE_THRESHOLD = 5.0  # a judge's score from here on counts as yes, where it is held against the oracle
QUESTIONS = (  # the judge's score, the oracle's answer to the same question, and the score that counts as yes
    ("judge_success", "edit_success", JUDGE_THRESHOLD),
    ("judge_over_editing", "preservation", JUDGE_THRESHOLD),
    ("judge_p_done", "edit_success", 0.5),
    ("judge_p_kept", "preservation", 0.5),
    ("judge_p_right", "whole_scene_right", 0.5),
    ("judge_prompt_following", "edit_success", JUDGE_THRESHOLD),
    ("judge_identity", "preservation", JUDGE_THRESHOLD),
)
OF_CUSTOMIZATION = {"judge_p_done": "whole_scene_right"}  # it is asked for the very object in its new setting

SCORES_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("source_id", pa.string()),
        ("method", pa.string()),
        ("edit_type", pa.string()),
        *((metric, pa.float64()) for metric in METRICS),
        ("seconds", pa.float64()),
        ("judge_sc_text", pa.string()),
        ("judge_pq_text", pa.string()),
        ("judge_model", pa.string()),
        ("judge_prompt_version", pa.string()),
        ("judge_prompt_hash", pa.string()),
        ("tifa_answers", pa.string()),
        ("source_sha256", pa.string()),
        ("image_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("unscored", pa.string()),
    ]
)


def part_schema(names: Sequence[str]) -> pa.Schema:
    """That of a table with some of the scores' columns."""
    return pa.schema([SCORES_SCHEMA.field(name) for name in names])


SUMMARY_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("edit_type", pa.string()),
        ("metric", pa.string()),
        ("mean", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("num_items", pa.int64()),
        ("num_clusters", pa.int64()),
        ("num_expected", pa.int64()),
    ]
)
COMPARISONS_SCHEMA = pa.schema(
    [
        ("first", pa.string()),
        ("second", pa.string()),
        ("edit_type", pa.string()),
        ("metric", pa.string()),
        ("difference", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("p_value", pa.float64()),
        ("p_floor", pa.float64()),  # the smallest that so many sources or drawn sign patterns can give
        ("p_holm", pa.float64()),  # corrected for the pairs of methods that are compared on this metric and edit type
        ("num_items", pa.int64()),
        ("num_clusters", pa.int64()),
    ]
)
AGREEMENT_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("judge_metric", pa.string()),
        ("oracle_metric", pa.string()),
        ("threshold", pa.float64()),
        ("agreement", pa.float64()),
        ("kappa", pa.float64()),
        ("num_items", pa.int64()),
        ("both_yes", pa.int64()),
        ("only_first", pa.int64()),
        ("only_second", pa.int64()),
        ("both_no", pa.int64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class ScoreColumns:
    """The scores as arrays `[rows]`; a missing number is NaN."""

    method: np.ndarray
    edit_type: np.ndarray
    item_id: np.ndarray
    source_id: np.ndarray
    values: dict[str, np.ndarray]

    @staticmethod
    def of(scores: pa.Table) -> ScoreColumns:
        names = {
            name: np.array(scores[name].to_pylist(), dtype=object)
            for name in ("method", "edit_type", "item_id", "source_id")
        }
        values = {
            metric: np.array([math.nan if v is None else v for v in scores[metric].to_pylist()], dtype=np.float64)
            for metric in METRICS
        }
        return ScoreColumns(**names, values=values)

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(self.method))

    @property
    def edit_types(self) -> list[str]:
        return [ALL, *sorted(set(self.edit_type))]

    def rows(self, method: str, edit_type: str) -> np.ndarray:
        """Indices of a method's rows of an edit type, in the order of their items."""
        chosen = self.method == method
        if edit_type != ALL:
            chosen &= self.edit_type == edit_type
        indices = np.flatnonzero(chosen)
        return indices[np.argsort(self.item_id[indices], kind="stable")]


def _generator(seed: int, *names: str) -> np.random.Generator:
    """One per figure, so that a further method or metric moves no other figure's interval."""
    return np.random.default_rng([seed, zlib.crc32("/".join(names).encode())])


def summarise(scores: pa.Table, *, seed: int, confidence: float, num_resamples: int) -> pa.Table:
    """Mean and interval of every method, edit type and metric that has a score: SUMMARY_SCHEMA."""
    columns = ScoreColumns.of(scores)
    options: dict[str, Any] = {"confidence": confidence, "num_resamples": num_resamples}
    rows: list[dict[str, Any]] = []

    def add(method: str, edit_type: str, metric: str, num_expected: int, interval: Interval) -> None:
        if interval.num_items:
            names = {"method": method, "edit_type": edit_type, "metric": metric, "num_expected": num_expected}
            rows.append(names | dataclasses.asdict(interval))

    for method in columns.methods:
        for edit_type in columns.edit_types:
            chosen = columns.rows(method, edit_type)
            for metric in METRICS:
                estimate: Callable[..., Interval] = proportion if metric in SHARES else bootstrap_mean
                values, sources = columns.values[metric][chosen], columns.source_id[chosen].astype(str)
                interval = estimate(values, sources, _generator(seed, method, edit_type, metric), **options)
                add(method, edit_type, metric, len(chosen), interval)
        chosen = columns.rows(method, ALL)
        types, sources = columns.edit_type[chosen].astype(str), columns.source_id[chosen].astype(str)
        for metric in METRICS:
            generator = _generator(seed, method, MACRO, metric)
            interval = macro_mean(columns.values[metric][chosen], types, sources, generator, **options)
            add(method, MACRO, metric, len(chosen), interval)
    return pa.Table.from_pylist([_without_nan(row) for row in rows], SUMMARY_SCHEMA)


def compare(scores: pa.Table, *, seed: int, confidence: float, num_resamples: int) -> pa.Table:
    """Every two methods on the items that both have: COMPARISONS_SCHEMA, `difference` is first minus second.

    The pairs of one edit type and metric are a family, whose p-values are corrected together.
    """
    columns = ScoreColumns.of(scores)
    rows: list[dict[str, Any]] = []
    for edit_type in columns.edit_types:
        chosen = {method: columns.rows(method, edit_type) for method in columns.methods}
        items = {method: list(columns.item_id[indices]) for method, indices in chosen.items()}
        for first, second in itertools.pairwise(columns.methods):
            if items[first] != items[second]:
                raise ValueError(f"{first} and {second} have rows for different items")
        sources = columns.source_id[next(iter(chosen.values()))].astype(str) if chosen else np.array([])
        for metric in COMPARED_METRICS:
            values = {method: columns.values[metric][indices] for method, indices in chosen.items()}
            family = paired_differences(
                values, sources, lambda *pair, names=(edit_type, metric): _generator(seed, *pair, *names),
                confidence=confidence, num_resamples=num_resamples,
            )  # fmt: skip
            rows += [
                {"first": first, "second": second, "edit_type": edit_type, "metric": metric} | dataclasses.asdict(found)
                for (first, second), found in family.items()
            ]
    return pa.Table.from_pylist([_without_nan(row) for row in rows], COMPARISONS_SCHEMA)


def judge_agreement(scores: pa.Table) -> pa.Table:
    """How often the judge, at a threshold of 5 of 10 or of even odds, answers as the oracle does, over all methods
    and for each.
    """
    columns = ScoreColumns.of(scores)
    rows: list[dict[str, Any]] = []
    other = OF_CUSTOMIZATION if set(columns.edit_type) == {"customization"} else {}
    for method in [ALL, *columns.methods]:
        chosen = np.arange(len(columns.method)) if method == ALL else columns.rows(method, ALL)
        for judge_metric, oracle_metric, threshold in QUESTIONS:
            oracle_metric = other.get(judge_metric, oracle_metric)
            judged = columns.values[judge_metric][chosen]
            yes = np.where(np.isnan(judged), np.nan, judged >= threshold)
            result = agreement(yes, columns.values[oracle_metric][chosen])
            if result.num_items:
                rows.append(
                    {
                        "method": method,
                        "judge_metric": judge_metric,
                        "oracle_metric": oracle_metric,
                        "threshold": threshold,
                    }
                    | dataclasses.asdict(result)
                )
    return pa.Table.from_pylist([_without_nan(row) for row in rows], AGREEMENT_SCHEMA)


def results(summary: pa.Table, methods: Sequence[str], num_expected: int) -> dict[str, dict[str, float | int | None]]:
    """{method: {metric: mean}} for the run's summary. A metric that was not measured is None, never 0.

    `num_items` counts the items with a score by the oracle, where there is none by the judge, else by any metric.
    """
    means: dict[str, dict[str, float | int | None]] = {}
    for method in methods:
        rows = [row for row in summary.to_pylist() if row["method"] == method]
        overall = {row["metric"]: row for row in rows if row["edit_type"] == ALL}
        macro = {row["metric"]: row["mean"] for row in rows if row["edit_type"] == MACRO}
        judged = next((overall[metric] for metric in JUDGE_OVERALLS if metric in overall), {"num_items": 0})
        most = max(overall.values(), key=lambda row: row["num_items"], default=judged)
        counted = overall.get("whole_scene_right") or (judged if judged["num_items"] else most)
        means[method] = {metric: overall[metric]["mean"] if metric in overall else None for metric in METRICS}
        means[method] |= {
            "judge_overall_macro": macro.get("judge_overall"),
            "judge_imgedit_macro": macro.get("judge_imgedit"),
            "num_items": counted["num_items"],
            "num_judged": judged["num_items"],
            "num_expected": num_expected,
        }
    return means


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
