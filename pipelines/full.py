"""The whole job: images -> edit tuples -> latents -> an editor trained without pairs -> benchmark -> report.

Read this file first: every stage of the project is named here, with what it needs and where it runs.

    python pipelines/full.py --profile starter
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python pipelines/full.py` sees only pipelines/

from cluster.dag import Resources, Stage
from pipelines.cli import main
from stages.ablation.stage import (
    ByGAblationConfig,
    NPEditAblationConfig,
    Video4EditAblationConfig,
    ablate,
    ablation_sources,
)
from stages.caption.customization.stage import CustomizeConfig, customize_images, customize_sources
from stages.caption.engines import ENGINES
from stages.caption.evolution.stage import EvolveConfig, evolve_captions, evolve_sources
from stages.caption.proposals.stage import ProposeConfig, propose_edits, propose_sources
from stages.caption.stage import CaptionConfig, caption_images, caption_sources
from stages.caption.video.prompts import VideoPromptsConfig, prompts_sources, write_video_prompts
from stages.caption.video.verify import VerifyClipsConfig, verify_clips, verify_clips_sources
from stages.edit.settings import (
    EditConfig,
    EditCustomizationConfig,
    EditSettings,
    EditVideoConfig,
    edit_sources,
    trained_stages,
)
from stages.edit.stage import edit_images
from stages.encode.clip_rows import EncodeClipsConfig, encode_clips
from stages.encode.clips import ClipsConfig, clips_sources, make_clips
from stages.encode.rollouts import InstructionRolloutConfig, RolloutConfig, roll_out
from stages.encode.stage import EncodeConfig, encode_pairs, encode_sources, encode_tuples
from stages.evaluate.settings import EvaluateConfig, EvaluateCustomizationConfig, EvaluateVideoConfig
from stages.evaluate.stage import evaluate_edits, evaluate_sources
from stages.ingest.benchmarks.stage import (
    IngestBenchmarkConfig,
    IngestCustomizationBenchmarkConfig,
    IngestVideoBenchmarkConfig,
    ingest_benchmark,
    ingest_benchmark_sources,
)
from stages.ingest.pairs import IngestPairsConfig, ingest_pairs, ingest_pairs_sources
from stages.ingest.stage import IngestConfig, ingest_images, ingest_sources
from stages.ingest.videos import IngestVideosConfig, ingest_videos, ingest_videos_sources
from stages.report.stage import ReportConfig, write_report
from stages.starter.customization_benchmark import (
    CustomizationBenchmarkConfig,
    CustomizationValidationConfig,
    make_customization_benchmark,
)
from stages.starter.stages import (
    BenchmarkConfig,
    PairsConfig,
    ScenesConfig,
    ValidationConfig,
    VideoBenchmarkConfig,
    VideoCaptionsConfig,
    VideoValidationConfig,
    make_benchmark,
    make_pairs,
    make_scenes,
    make_video_benchmark,
    make_video_captions,
)
from stages.train.settings import (
    TrainByGConfig,
    TrainByGVideoConfig,
    TrainCustomizationConfig,
    TrainFlowGRPOConfig,
    TrainNPEditConfig,
    TrainSFTConfig,
    TrainVideo4EditConfig,
)
from stages.train.stage import train, train_sources

# these only coordinate: the actors that they start ask for CPUs, GPUs and labels
COORDINATE = Resources(cpus=0)
VLLM = Resources(cpus=0, label="vllm")
TRAIN = Resources(cpus=0, label="train")

# made-up data, or real data where a profile names its place
PAIRS = ("pairs", "ingest_pairs")
CAPTIONS = ("video_captions", "ingest_videos")
ITEMS = ("benchmark", "ingest_benchmark")
CLIP_ITEMS = ("video_benchmark", "ingest_video_benchmark")
OBJECT_ITEMS = ("customization_benchmark", "ingest_customization_benchmark")

# encoded rows by the stage that wrote their edit tuples
ROWS = {"caption": "encode", "propose": "encode_proposals"}

# what an edit stage needs: items to edit, others to choose settings by, and whatever its methods were trained to
UNPAIRED = ("train_byg", "train_np_edit", "train_flow_grpo")  # they learn from the captions of plain pictures
TRAININGS = (*UNPAIRED, "train_video4edit", "train_sft")
PICTURES = (*ITEMS, "validation", *TRAININGS)
CLIPS = (*CLIP_ITEMS, "video_validation", "train_byg_video")
OBJECTS = (*OBJECT_ITEMS, "train_customization")
CHOOSES_BY = {"validation": "edit", "video_validation": "edit_video"}
REPORTED = {
    "edit": ("evaluate", "edit", *ITEMS, *TRAININGS, *ROWS, "ingest"),
    "edit_video": ("evaluate_video", "edit_video", *CLIP_ITEMS, "train_byg_video", "verify_clips", "video_prompts"),
    "edit_customization": (
        "evaluate_customization", "edit_customization", *OBJECT_ITEMS, "train_customization", "customize",
    ),
}  # fmt: skip


def is_used(configs: Mapping[str, Any], need: str) -> bool:
    """A training is made if its method is one that edits, items to choose a strength by if there are several, and the
    report tells of what edits; of benchmarks, the one that is given.
    """
    if not is_given(configs, need):
        return False
    if need in CHOOSES_BY:
        return configs[CHOOSES_BY[need]].to_choose != {}
    trained = set().union(*(trained_stages(config) for config in configs.values() if isinstance(config, EditSettings)))
    if need.startswith("train_"):
        return need in trained
    learners = {"ingest": UNPAIRED, "customize": ("train_customization",)}
    there = [stage for stage in UNPAIRED if stage in configs]  # a profile's targets may leave some out
    learners |= {name: [stage for stage in there if _tuples(configs[stage]) == name] for name in ROWS}
    learners |= dict.fromkeys(("verify_clips", "video_prompts"), ("train_byg_video",))
    if need in learners:
        return not trained.isdisjoint(learners[need])
    edit = next((edit for edit, stages in REPORTED.items() if need in stages), None)
    return edit is None or bool(configs[edit].all_methods)


def is_given(configs: Mapping[str, Any], need: str) -> bool:
    """Real data are read where their place is given, else the scene world's are made; evolution captions are written
    where the rollouts don't take those that the pairs have.
    """
    match need:
        case "scenes":
            return not configs["ingest"].source
        case "pairs" | "ingest_pairs":
            return bool(configs["ingest_pairs"].sources) == (need == "ingest_pairs")
        case "video_captions" | "ingest_videos":
            return bool(configs["ingest_videos"].source) == (need == "ingest_videos")
        case _ if need.endswith("benchmark"):
            on_disk = f"ingest_{need.removeprefix('ingest_')}"
            return bool(configs[on_disk].source) == (need == on_disk)
        case "evolve":
            return configs["rollout"].captions == "evolve"
    return True


def _tuples(config: Any) -> str:
    """The stage whose edit tuples a training learns from; what it has no choice of needs the way back."""
    return getattr(config, "tuples", "caption")


def learns_from(name: str) -> Callable[[Mapping[str, Any], str], bool]:
    """Of a training, or of an ablation of one: the rows that it reads are those of its `tuples`."""

    def uses(configs: Mapping[str, Any], need: str) -> bool:
        return need not in ROWS.values() or need == ROWS[_tuples(getattr(configs[name], "train", configs[name]))]

    return uses


# fmt: off
STAGES = (
    # training data: pictures alone
    Stage("scenes", "1", make_scenes, ScenesConfig),
    Stage("ingest", "1", ingest_images, IngestConfig, ("scenes",), COORDINATE, ingest_sources, is_given),
    Stage("caption", "1", caption_images, CaptionConfig, ("ingest",), VLLM, caption_sources),
    Stage("encode", "2", encode_tuples, EncodeConfig, ("ingest", "caption"), COORDINATE, encode_sources),
    # NP-Edit's own way to edit tuples: four edits of a picture, each verified
    Stage("propose", "1", propose_edits, ProposeConfig, ("ingest",), VLLM, propose_sources),
    Stage("encode_proposals", "2", encode_tuples, EncodeConfig, ("ingest", "propose"), COORDINATE, encode_sources),
    # held-out pictures with the edits asked of them; the oracle alone reads their truth
    Stage("benchmark", "2", make_benchmark, BenchmarkConfig),
    Stage("ingest_benchmark", "2", ingest_benchmark, IngestBenchmarkConfig, (), COORDINATE, ingest_benchmark_sources),
    Stage("validation", "2", make_benchmark, ValidationConfig),
    # the editors, and the bound that true pairs would give; each only if edit.methods has it
    Stage("train_byg", "1", train, TrainByGConfig, ("encode", "validation"), TRAIN, train_sources),
    Stage("train_np_edit", "1", train, TrainNPEditConfig, (*ROWS.values(), "validation"), TRAIN, train_sources,
          learns_from("train_np_edit")),
    Stage("train_flow_grpo", "1", train, TrainFlowGRPOConfig, (*ROWS.values(), "validation"), TRAIN, train_sources,
          learns_from("train_flow_grpo")),
    Stage("pairs", "2", make_pairs, PairsConfig),
    Stage("ingest_pairs", "1", ingest_pairs, IngestPairsConfig, (), COORDINATE, ingest_pairs_sources),
    Stage("encode_pairs", "1", encode_pairs, EncodeConfig, PAIRS, COORDINATE, encode_sources, is_given),
    Stage("train_sft", "1", train, TrainSFTConfig, ("encode_pairs", "validation"), TRAIN, train_sources),
    # the one that learns from true pairs how a picture becomes its edit
    Stage("evolve", "1", evolve_captions, EvolveConfig, PAIRS, VLLM, evolve_sources, is_given),
    Stage("rollout", "1", roll_out, RolloutConfig, (*PAIRS, "evolve"), COORDINATE, encode_sources, is_given),
    Stage("train_video4edit", "1", train, TrainVideo4EditConfig, ("rollout", "validation"), TRAIN, train_sources),
    # every method on the benchmark, judged and measured
    Stage("edit", "1", edit_images, EditConfig, PICTURES, COORDINATE, edit_sources, is_used),
    Stage("evaluate", "2", evaluate_edits, EvaluateConfig, ("edit", *ITEMS), VLLM, evaluate_sources, is_given),
    # ByG on video: clips that the base model draws in one style each, and an editor that gives them another
    Stage("video_captions", "1", make_video_captions, VideoCaptionsConfig),
    Stage("ingest_videos", "1", ingest_videos, IngestVideosConfig, (), COORDINATE, ingest_videos_sources),
    Stage("video_prompts", "1", write_video_prompts, VideoPromptsConfig, CAPTIONS, VLLM, prompts_sources, is_given),
    Stage("clips", "1", make_clips, ClipsConfig, ("video_prompts",), COORDINATE, clips_sources),
    Stage("verify_clips", "1", verify_clips, VerifyClipsConfig, ("clips",), VLLM, verify_clips_sources),
    Stage("encode_clips", "1", encode_clips, EncodeClipsConfig, ("clips", "verify_clips"), COORDINATE, encode_sources),
    Stage("video_benchmark", "1", make_video_benchmark, VideoBenchmarkConfig),
    Stage("ingest_video_benchmark", "1", ingest_benchmark, IngestVideoBenchmarkConfig,
          (), COORDINATE, ingest_benchmark_sources),
    Stage("video_validation", "1", make_video_benchmark, VideoValidationConfig),
    Stage("train_byg_video", "1", train, TrainByGVideoConfig,
          ("encode_clips", "video_validation"), TRAIN, train_sources),
    Stage("edit_video", "1", edit_images, EditVideoConfig, CLIPS, COORDINATE, edit_sources, is_used),
    Stage("evaluate_video", "2", evaluate_edits, EvaluateVideoConfig,
          ("edit_video", *CLIP_ITEMS), COORDINATE, evaluate_sources, is_given),
    # NP-Edit's customization: a picture's object in another setting
    Stage("customize", "1", customize_images, CustomizeConfig, ("ingest",), VLLM, customize_sources),
    Stage("encode_customization", "2", encode_tuples, EncodeConfig,
          ("ingest", "customize"), COORDINATE, encode_sources),
    Stage("customization_benchmark", "2", make_customization_benchmark, CustomizationBenchmarkConfig),
    Stage("ingest_customization_benchmark", "1", ingest_benchmark, IngestCustomizationBenchmarkConfig,
          (), COORDINATE, ingest_benchmark_sources),
    Stage("customization_validation", "2", make_customization_benchmark, CustomizationValidationConfig),
    Stage("train_customization", "1", train, TrainCustomizationConfig,
          ("encode_customization", "customization_validation"), TRAIN, train_sources),
    Stage("edit_customization", "1", edit_images, EditCustomizationConfig, OBJECTS, COORDINATE, edit_sources, is_used),
    Stage("evaluate_customization", "2", evaluate_edits, EvaluateCustomizationConfig,
          ("edit_customization", *OBJECT_ITEMS), VLLM, evaluate_sources, is_given),
    # one page about all of it
    Stage("report", "1", write_report, ReportConfig, sum(REPORTED.values(), ()), uses=is_used),
    # only where a profile names one as its target: a method without one part at a time
    Stage("ablation", "1", ablate, ByGAblationConfig, ("encode", "benchmark"), COORDINATE, ablation_sources),
    Stage("ablation_np_edit", "1", ablate, NPEditAblationConfig, (*ROWS.values(), "benchmark"), COORDINATE,
          ablation_sources, learns_from("ablation_np_edit")),
    Stage("rollout_instructions", "1", roll_out, InstructionRolloutConfig, PAIRS, COORDINATE, encode_sources, is_given),
    Stage("ablation_video4edit", "1", ablate, Video4EditAblationConfig,
          ("rollout", "rollout_instructions", "benchmark"), COORDINATE, ablation_sources),
)
# fmt: on

if __name__ == "__main__":
    raise SystemExit(main(STAGES, default_targets=("report",), costed=tuple(ENGINES)))
