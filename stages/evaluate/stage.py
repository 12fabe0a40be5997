"""The evaluate stage: scores every edit of every method, and derives every figure from the table of
scores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field, field_validator, model_validator

from cluster.artifacts import Artifact
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.folder import Folder
from cluster.shards import run_shards
from cluster.vllm import EngineSettings, get_engine
from stages.evaluate.judge_replies import NOISE, REPLIES, judge_noise
from stages.evaluate.judges.tasks import get_judge
from stages.evaluate.judging import judge_files
from stages.evaluate.metrics import (
    clip_metrics,
    clip_oracle,
    is_scene_edit,
    num_clip_frames,
    pixel_metrics,
    scene_oracle,
)
from stages.evaluate.motion.config import MotionConfig
from stages.evaluate.motion.frame_scores import temporal_flickering
from stages.evaluate.motion.measure import ClipPair, MotionMeasure
from stages.evaluate.perception.scores import geometric_score
from stages.evaluate.perception.settings import PerceptionSettings
from stages.evaluate.summary import SCORES_SCHEMA, VIDEO_METRICS, compare, judge_agreement, results, summarise
from stages.evaluate.tables import (
    Benchmark,
    EditsFile,
    check_edits,
    find_benchmark,
    find_edits,
    pairs,
    read_image,
    read_items,
)
from stages.train.backbones.clip_files import clip_seconds, read_clip


class EvaluateConfig(StageConfig):
    """What scores the edits, and how sure the figures are."""

    prefix: ClassVar[str] = ""
    """Of the methods' names in a run's figures, which other stages' stand beside."""

    metrics: tuple[Literal["scene_oracle", "pixels"], ...] = Field(
        ("scene_oracle", "pixels"),
        description="scene_oracle scores the items whose metadata describes an edit of the scene world.",
    )
    judge: EngineSettings | None = Field(None, description="The vision-language model that judges, or none.")
    judge_task: Literal["viescore", "viescore_subject", "imgedit", "yes_no"] = Field(
        "viescore", description="What it is asked, see docs/evaluation.md."
    )
    judge_prompts: str | None = Field(
        None, description="A checkout of the benchmark's repository, whose official words are used instead of our own."
    )
    judge_attempts: int = Field(3, ge=1, description="Calls until an unreadable answer stays unscored.")
    judge_passes: int = Field(1, ge=1, description="Times that every edit is judged; more than one show the noise.")
    perception: PerceptionSettings | None = Field(None, description="The models of further metrics, or none.")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    num_resamples: int = Field(2000, ge=100, description="Of the bootstrap and the permutation test.")
    seed: int = 0
    num_workers: int = runtime(2, ge=1)

    @model_validator(mode="after")
    def _fits_the_task(self) -> EvaluateConfig:
        if self.judge_task == "yes_no" and self.judge_passes > 1:
            raise ValueError("judge_passes: yes_no reads probabilities, which are the same in every pass; leave it 1")
        if self.judge_task == "yes_no" and self.judge_prompts:
            raise ValueError("judge_prompts: yes_no has no official words; leave it out")
        return self


class EvaluateVideoConfig(EvaluateConfig):
    """The same for clips, all frames of which the metrics see; no judge looks at them."""

    prefix: ClassVar[str] = "video/"

    judge: None = Field(None, description="None looks at clips.")
    motion: MotionConfig | None = Field(None, description="Video metrics that need models, or none of them.")

    @field_validator("perception")
    @classmethod
    def _asks_about_no_clips(cls, value: PerceptionSettings | None) -> PerceptionSettings | None:
        if value is not None and value.tifa is not None:
            raise ValueError("tifa asks about pictures, not about clips: leave it out")
        return value


class EvaluateCustomizationConfig(EvaluateConfig):
    """The same for objects in other settings, which a judge is asked about in other words."""

    prefix: ClassVar[str] = "customization/"

    judge_task: Literal["viescore_subject", "yes_no"] = Field(
        "viescore_subject", description="What the judge is asked, see docs/evaluation.md."
    )


@dataclasses.dataclass(frozen=True)
class MeasureShard:
    """Pixel metrics and oracle for the edits of one file."""

    benchmark: Benchmark
    files: Mapping[str, EditsFile]
    metrics: Sequence[str]
    out: Folder
    motion: MotionMeasure | None = None

    def __call__(self, shard: str) -> None:
        rows = []
        for item, edit in pairs(self.benchmark, self.files[shard]):
            rows.append({"item_id": item["item_id"], "method": edit["method"]} | self._measure(item, edit))
        self.out.write_table(shard, pa.Table.from_pylist(rows, _part_schema(MEASURED_COLUMNS)))

    def _measure(self, item: Mapping[str, Any], edit: Mapping[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "seconds": edit["seconds"],
            "source_sha256": hashlib.sha256(item["image"]).hexdigest(),
            "image_sha256": hashlib.sha256(edit["image"] or b"").hexdigest(),
        }
        if edit.get("reason"):
            return row | {"unscored": f"image: {edit['reason']}"}
        try:
            source = read_image(item["image"])
            image = read_image(edit["image"] or b"")
            if item.get("clip"):
                return row | {"width": image.width, "height": image.height} | self._measure_clip(item, edit)
        except (OSError, ValueError, SyntaxError) as error:
            return row | {"unscored": f"image: {' '.join(str(error).split())[:200]}"}
        row |= {"width": image.width, "height": image.height}
        # as GEdit-Bench does, the edit is brought to its source's size before it is compared
        edited = np.asarray(image if image.size == source.size else image.resize(source.size, Image.Resampling.LANCZOS))
        original = np.asarray(source)
        if "pixels" in self.metrics:
            row |= pixel_metrics(edited, original)
        if "scene_oracle" in self.metrics and is_scene_edit(item["metadata"]):
            row |= scene_oracle(edited, original, item["metadata"])
        return row

    def _measure_clip(self, item: Mapping[str, Any], edit: Mapping[str, Any]) -> dict[str, Any]:
        """Of an edited clip. Raises as `read_clip` does, and ValueError where the edit has another size."""
        given, known = (item["clip"], edit.get("clip")), num_clip_frames(item["metadata"])
        num_frames = known or max(len(read_clip(data)) for data in given)
        source, edited = ([np.asarray(frame) for frame in read_clip(data, num_frames)] for data in given)
        row: dict[str, Any] = {}
        if "pixels" in self.metrics:
            row |= clip_metrics(edited, source)
        if "scene_oracle" in self.metrics and known:
            row |= clip_oracle(edited, item["metadata"])
        row["temporal_flickering"] = temporal_flickering(edited)
        row["temporal_flickering_source"] = temporal_flickering(source)
        reasons = ["temporal_flickering: the clip has a single frame"] if num_frames == 1 else []
        if self.motion is not None:
            pair = ClipPair(item["item_id"], edit["method"], source, edited, clip_seconds(edit["clip"]))
            scores, undefined = self.motion(pair)
            row, reasons = row | scores, reasons + undefined
        return row | {"unscored": "; ".join(reasons) or None}


MEASURED_COLUMNS = (
    "item_id", "method", "edit_success", "preservation", "whole_scene_right", "psnr_unedited", "l1", "psnr",
    "ssim", "frames_right", "flicker_added", *VIDEO_METRICS, "seconds", "source_sha256", "image_sha256", "width",
    "height", "unscored",
)  # fmt: skip
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
    work = MeasureShard(benchmark, measures, config.metrics, context.out, motion and MotionMeasure(motion))
    num_gpus = motion.num_gpus if motion else 0
    run_shards(list(measures), work, context=context, num_workers=config.num_workers, num_gpus=num_gpus)
    if config.judge is not None:
        judge = get_judge(config.judge_task, config.judge_prompts)
        judge_files(files, benchmark, judge, config, context, lambda: get_engine(config.judge, context))
    if config.perception is not None:
        _perceive(files, benchmark, config.perception, context)

    scores = _join(context.out, items, methods)
    context.out.write_table("scores.parquet", scores)
    options = {"seed": config.seed, "confidence": config.confidence, "num_resamples": config.num_resamples}
    summary = summarise(scores, **options)
    context.out.write_table("figures/summary.parquet", summary)
    context.out.write_table("figures/comparisons.parquet", compare(scores, **options))
    context.out.write_table("figures/agreement.parquet", judge_agreement(scores))
    if config.judge is not None and config.judge_passes > 1:
        context.out.write_table(NOISE, judge_noise(judge, context.out.read_table(REPLIES)))
    means = results(summary, methods, len(items))
    figures = {config.prefix + method: values for method, values in means.items()}
    context.set_rows(scores.num_rows)
    incomplete = _incomplete(scores)
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
    files: Mapping[str, EditsFile], benchmark: Benchmark, settings: PerceptionSettings, context: Context
) -> None:
    """Lets the models look at the edits of every file that isn't done."""
    from stages.evaluate.perception.shard import PerceiveShard
    from stages.evaluate.perception.tifa_shards import ask_tifa

    if settings.sees:
        shards = {f"perception/{name}": file for name, file in files.items()}
        work = PerceiveShard(benchmark, shards, settings, _part_schema(PERCEIVED_COLUMNS), context.out)
        run_shards(list(shards), work, context=context, num_workers=settings.num_workers, num_gpus=settings.num_gpus)
    if settings.tifa is not None:
        shards = {f"tifa/{name}": file for name, file in files.items()}
        ask_tifa(shards, benchmark, settings.tifa, _part_schema(TIFA_COLUMNS), context)


def _part_schema(names: Sequence[str]) -> pa.Schema:
    return pa.schema([SCORES_SCHEMA.field(name) for name in names])


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


def _incomplete(scores: pa.Table) -> list[str]:
    """A line for each method that lacks a picture of an item, its source's or its edit's; a judge's silence is none."""
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
                f"{method} has pictures of {num_items - len(found)} of {num_items} items; {found[0][0]}: {found[0][1]}"
            )
    return lines


def _num_unscored(scores: pa.Table) -> int:
    return sum(reason is not None for reason in scores["unscored"].to_pylist())
