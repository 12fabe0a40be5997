"""The evaluate stage: scores every edit of every method, and derives every figure from the table of
scores.
"""

from __future__ import annotations

import collections
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster.artifacts import Artifact
from cluster.dag import Context
from cluster.folder import Folder
from cluster.shards import run_shards
from cluster.vllm import get_engine
from stages.evaluate.discrimination import discrimination
from stages.evaluate.judge_replies import NOISE, REPLIES, judge_noise
from stages.evaluate.judges.tasks import get_judge
from stages.evaluate.judging import judge_files
from stages.evaluate.measures import MeasureShard
from stages.evaluate.motion.measure import MotionMeasure
from stages.evaluate.perception.scores import geometric_score
from stages.evaluate.perception.settings import PerceptionSettings
from stages.evaluate.settings import EvaluateConfig, EvaluateVideoConfig
from stages.evaluate.summary import SCORES_SCHEMA, compare, judge_agreement, part_schema, results, summarise
from stages.evaluate.tables import (
    Benchmark,
    EditsFile,
    check_edits,
    find_benchmark,
    find_edits,
    read_items,
)

PERCEIVED_COLUMNS = (
    "item_id", "method", "clip_directional", "clip_score", "dino", "dinov2", "dinov2_masked", "unscored"
)  # fmt: skip
TIFA_COLUMNS = ("item_id", "method", "tifa", "tifa_answers", "unscored")


def evaluate_edits(inputs: Mapping[str, Artifact], config: EvaluateConfig, context: Context) -> None:
    """Writes `scores.parquet` (one row per item and method) and, from it alone, the tables in `figures/`.

    Needs a benchmark (the artifact of that name, or the tables named so in another) and edits (every table
    with the columns of `edits`). An item without a usable edit, or whose answers can't be read, is unscored
    with a reason: never 0. What a judge said, at every pass and attempt, is in `judge_replies.parquet`.

    Raises:
        UserError: no benchmark, no edits, or edits of unknown or doubled items.
    """
    stage, benchmark = find_benchmark(inputs)
    items = read_items(benchmark)
    files = find_edits(inputs)
    methods = check_edits(files, items)
    context.log_input(stage, inputs[stage].fingerprint, len(items))

    measures = {f"measures/{name}": file for name, file in files.items()}
    motion = config.motion if isinstance(config, EvaluateVideoConfig) else None
    length = inputs[stage].manifest.config.get("num_frames")
    work = MeasureShard(benchmark, measures, config.metrics, context.out, motion and MotionMeasure(motion), length)
    num_gpus = motion.num_gpus if motion else 0
    run_shards(list(measures), work, context=context, num_workers=config.num_workers, num_gpus=num_gpus)
    if config.judge is not None:
        judge = get_judge(config.judge_task, config.judge_prompts)
        judge_files(files, benchmark, judge, config, context, lambda: get_engine(config.judge, context))
    if config.perception is not None:
        _perceive(files, benchmark, config.perception, length, context)

    scores = _join(context.out, items, methods)
    context.out.write_table("scores.parquet", scores)
    options = {"seed": config.seed, "confidence": config.confidence, "num_resamples": config.num_resamples}
    summary = summarise(scores, **options)
    context.out.write_table("figures/summary.parquet", summary)
    context.out.write_table("figures/comparisons.parquet", compare(scores, **options))
    context.out.write_table("figures/agreement.parquet", judge_agreement(scores))
    context.out.write_table("figures/discrimination.parquet", discrimination(scores, **options))
    if config.judge is not None and config.judge_passes > 1:
        context.out.write_table(NOISE, judge_noise(judge, context.out.read_table(REPLIES)))
    means = results(summary, methods, len(items))
    figures = {config.prefix + method: values for method, values in means.items()}
    context.set_rows(scores.num_rows)
    incomplete = _incomplete(scores, "clips" if isinstance(config, EvaluateVideoConfig) else "pictures")
    if config.judge is not None:
        incomplete += _silent(scores, judge.overall, "judge ")
    if config.perception is not None and config.perception.tifa is not None:
        incomplete += _silent(scores, "tifa", "tifa: ")
    for line in incomplete:
        context.incident(f"{context.stage}: {line}")
    context.set_figures({"results": figures, "num_unscored": _num_unscored(scores), "incomplete": incomplete})
    for method, values in figures.items():
        context.log_metrics({f"{method}/{name}": v for name, v in values.items() if v is not None}, step=0)


def evaluate_sources(config: EvaluateConfig) -> list[str]:
    """The models and the judge's prompts: their content belongs to the stage's fingerprint.

    Raises UserError where `judge_prompts` lacks the official words.
    """
    sources: list[str] = []
    if config.judge is not None:
        sources += [*config.judge.source(), *get_judge(config.judge_task, config.judge_prompts).prompts.sources]
    if isinstance(config, EvaluateVideoConfig) and config.motion is not None:
        sources += config.motion.sources()
    if config.perception is not None:
        sources += config.perception.sources()
    return list(dict.fromkeys(sources))


def _perceive(
    files: Mapping[str, EditsFile],
    benchmark: Benchmark,
    settings: PerceptionSettings,
    num_frames: int | None,
    context: Context,
) -> None:
    """Lets the models look at the edits of every file that isn't done."""
    from stages.evaluate.perception.shard import PerceiveShard
    from stages.evaluate.perception.tifa_shards import ask_tifa

    if settings.sees:
        shards = {f"perception/{name}": file for name, file in files.items()}
        work = PerceiveShard(benchmark, shards, settings, part_schema(PERCEIVED_COLUMNS), context.out, num_frames)
        run_shards(list(shards), work, context=context, num_workers=settings.num_workers, num_gpus=settings.num_gpus)
    if settings.tifa is not None:
        shards = {f"tifa/{name}": file for name, file in files.items()}
        ask_tifa(shards, benchmark, settings.tifa, part_schema(TIFA_COLUMNS), context)


def _join(out: Folder, items: Mapping[str, Mapping[str, Any]], methods: Sequence[str]) -> pa.Table:
    """One row for every method and benchmark item, with what is known about it."""
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    for name in out.list(".parquet", recursive=True):
        if posixpath.dirname(name).split("/")[0] in ("measures", "judge", "perception", "tifa"):
            for row in out.read_table(name).to_pylist():
                known = parts.setdefault((row["item_id"], row["method"]), {})
                reasons = [reason for reason in (known.get("unscored"), row["unscored"]) if reason]
                known |= row | {"unscored": "; ".join(dict.fromkeys(reasons)) or None}
    for known in parts.values():
        if known.get("tifa") is not None and known.get("dinov2_masked") is not None:
            known["geometric_score"] = geometric_score(known["tifa"], known["dinov2_masked"])
    rows = []
    for method in methods:
        for item_id, item in items.items():
            absent = {"unscored": item.get("unscored", "missing: the method gave no image")}
            rows.append(dict(item) | {"method": method} | parts.get((item_id, method), absent))
    return pa.Table.from_pylist(rows, SCORES_SCHEMA)


def _incomplete(scores: pa.Table, what: str) -> list[str]:
    """A line for each method that lacks a picture (clip) of an item, its source's or its edit's; a judge's silence is
    none.
    """
    lines = []
    reasons: dict[str, list[tuple[str, str]]] = {}
    for method, item_id, reason in zip(
        *(scores[name].to_pylist() for name in ("method", "item_id", "unscored")), strict=True
    ):
        found = reasons.setdefault(method, [])
        if reason and reason.startswith(("benchmark:", "image:", "missing:")):
            found.append((item_id, reason))
    for method, found in reasons.items():
        if found:
            num_items = sum(name == method for name in scores["method"].to_pylist())
            lines.append(
                f"{method} has {what} of {num_items - len(found)} of {num_items} items; {found[0][0]}: {found[0][1]}"
            )
    return lines


def _silent(scores: pa.Table, metric: str, prefix: str) -> list[str]:
    """A line if a model that was asked for a metric has given it to no edit at all, with the most frequent reason."""
    parts = [part for reason in scores["unscored"].to_pylist() if reason for part in reason.split("; ")]
    reasons = collections.Counter(part for part in parts if part.startswith(prefix))
    if scores[metric].null_count < scores.num_rows or not reasons:
        return []
    ((reason, count),) = reasons.most_common(1)
    return [f"none of {scores.num_rows} edits has a {metric}; the reason of {count}: {reason}"]


def _num_unscored(scores: pa.Table) -> int:
    return sum(reason is not None for reason in scores["unscored"].to_pylist())
