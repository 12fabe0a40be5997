"""The whole job: images -> edit tuples -> latents -> an editor trained without pairs -> benchmark -> report.

Read this file first: every stage of the project is named here, with what it needs and where it runs.

    python pipelines/full.py --profile starter
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
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
from stages.evaluate.stage import (
    EvaluateConfig,
    EvaluateCustomizationConfig,
    EvaluateVideoConfig,
    evaluate_edits,
    evaluate_sources,
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
from stages.train.stage import (
    TrainByGConfig,
    TrainByGVideoConfig,
    TrainCustomizationConfig,
    TrainFlowGRPOConfig,
    TrainNPEditConfig,
    TrainSFTConfig,
    TrainVideo4EditConfig,
    train,
    train_sources,
)

# these only coordinate: the actors that they start ask for CPUs, GPUs and labels
COORDINATE = Resources(cpus=0)
VLLM = Resources(cpus=0, label="vllm")
TRAIN = Resources(cpus=0, label="train")

# made-up data, or real data where a profile names its place
PAIRS = ("pairs", "ingest_pairs")
CAPTIONS = ("video_captions", "ingest_videos")

# what an edit stage needs: items to edit, others to choose settings by, and whatever its methods were trained to
UNPAIRED = ("train_byg", "train_np_edit", "train_flow_grpo")  # they learn from the captions of plain pictures
TRAININGS = (*UNPAIRED, "train_video4edit", "train_sft")
PICTURES = ("benchmark", "validation", *TRAININGS)
CLIPS = ("video_benchmark", "video_validation", "train_byg_video")
OBJECTS = ("customization_benchmark", "train_customization")
REPORTED = {
    "edit": ("evaluate", "edit", "benchmark", *TRAININGS, "caption", "ingest"),
    "edit_video": (
        "evaluate_video", "edit_video", "video_benchmark", "train_byg_video", "verify_clips", "video_prompts",
    ),
    "edit_customization": (
        "evaluate_customization", "edit_customization", "customization_benchmark", "train_customization", "customize",
    ),
}  # fmt: skip


def is_used(configs: Mapping[str, Any], need: str) -> bool:
    """A training is made if its method is one that edits, and the report tells of what edits."""
    trained = set().union(*(trained_stages(config) for config in configs.values() if isinstance(config, EditSettings)))
    if need.startswith("train_"):
        return need in trained
    learners = {"caption": UNPAIRED, "ingest": UNPAIRED, "customize": ("train_customization",)}
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
        case "evolve":
            return configs["rollout"].captions == "evolve"
    return True


# fmt: off
STAGES = (
    # training data: pictures alone
    Stage("scenes", "1", make_scenes, ScenesConfig),
    Stage("ingest", "1", ingest_images, IngestConfig, ("scenes",), COORDINATE, ingest_sources, is_given),
    Stage("caption", "1", caption_images, CaptionConfig, ("ingest",), VLLM, caption_sources),
    Stage("encode", "2", encode_tuples, EncodeConfig, ("ingest", "caption"), COORDINATE, encode_sources),
    # held-out pictures with the edits asked of them; the oracle alone reads their truth
    Stage("benchmark", "1", make_benchmark, BenchmarkConfig),
    Stage("validation", "1", make_benchmark, ValidationConfig),
    # the editors, and the bound that true pairs would give; each only if edit.methods has it
    Stage("train_byg", "1", train, TrainByGConfig, ("encode", "validation"), TRAIN, train_sources),
    Stage("train_np_edit", "1", train, TrainNPEditConfig, ("encode", "validation"), TRAIN, train_sources),
    Stage("train_flow_grpo", "1", train, TrainFlowGRPOConfig, ("encode", "validation"), TRAIN, train_sources),
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
    Stage("evaluate", "1", evaluate_edits, EvaluateConfig, ("edit", "benchmark"), VLLM, evaluate_sources),
    # ByG on video: clips that the base model draws in one style each, and an editor that gives them another
    Stage("video_captions", "1", make_video_captions, VideoCaptionsConfig),
    Stage("ingest_videos", "1", ingest_videos, IngestVideosConfig, (), COORDINATE, ingest_videos_sources),
    Stage("video_prompts", "1", write_video_prompts, VideoPromptsConfig, CAPTIONS, VLLM, prompts_sources, is_given),
    Stage("clips", "1", make_clips, ClipsConfig, ("video_prompts",), COORDINATE, clips_sources),
    Stage("verify_clips", "1", verify_clips, VerifyClipsConfig, ("clips",), VLLM, verify_clips_sources),
    Stage("encode_clips", "1", encode_clips, EncodeClipsConfig, ("clips", "verify_clips"), COORDINATE, encode_sources),
    Stage("video_benchmark", "1", make_video_benchmark, VideoBenchmarkConfig),
    Stage("video_validation", "1", make_video_benchmark, VideoValidationConfig),
    Stage("train_byg_video", "1", train, TrainByGVideoConfig,
          ("encode_clips", "video_validation"), TRAIN, train_sources),
    Stage("edit_video", "1", edit_images, EditVideoConfig, CLIPS, COORDINATE, edit_sources, is_used),
    Stage("evaluate_video", "1", evaluate_edits, EvaluateVideoConfig, ("edit_video", "video_benchmark"), COORDINATE),
    # NP-Edit's customization: a picture's object in another setting
    Stage("customize", "1", customize_images, CustomizeConfig, ("ingest",), VLLM, customize_sources),
    Stage("encode_customization", "2", encode_tuples, EncodeConfig,
          ("ingest", "customize"), COORDINATE, encode_sources),
    Stage("customization_benchmark", "1", make_customization_benchmark, CustomizationBenchmarkConfig),
    Stage("customization_validation", "1", make_customization_benchmark, CustomizationValidationConfig),
    Stage("train_customization", "1", train, TrainCustomizationConfig,
          ("encode_customization", "customization_validation"), TRAIN, train_sources),
    Stage("edit_customization", "1", edit_images, EditCustomizationConfig, OBJECTS, COORDINATE, edit_sources, is_used),
    Stage("evaluate_customization", "1", evaluate_edits, EvaluateCustomizationConfig,
          ("edit_customization", "customization_benchmark"), COORDINATE),
    # one page about all of it
    Stage("report", "1", write_report, ReportConfig, sum(REPORTED.values(), ()), uses=is_used),
    # only where a profile names one as its target: a method without one part at a time
    Stage("ablation", "1", ablate, ByGAblationConfig, ("encode", "benchmark"), COORDINATE, ablation_sources),
    Stage("ablation_np_edit", "1", ablate, NPEditAblationConfig, ("encode", "benchmark"), COORDINATE, ablation_sources),
    Stage("rollout_instructions", "1", roll_out, InstructionRolloutConfig, PAIRS, COORDINATE, encode_sources, is_given),
    Stage("ablation_video4edit", "1", ablate, Video4EditAblationConfig,
          ("rollout", "rollout_instructions", "benchmark"), COORDINATE, ablation_sources),
)
# fmt: on

if __name__ == "__main__":
    raise SystemExit(main(STAGES, default_targets=("report",), costed=tuple(ENGINES)))
