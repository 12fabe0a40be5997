"""What the report calls methods, metrics and training curves, and how it prints their values."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """`role`: ours (trained here without pairs), few (from a few pairs), bound (knows the true pairs), base (learns
    nothing from the data), other.
    """

    label: str
    description: str
    role: str


METHODS = {
    "byg": Method("ByG", "trained without edit pairs", "ours"),
    "np_edit": Method("NP-Edit", "trained without edit pairs", "ours"),
    "video4edit": Method("Video4Edit", "last frame of a clip, true pairs", "few"),
    "byg_video": Method("ByG on video", "trained without edited clips", "ours"),
    "customization": Method("NP-Edit", "trained without edit pairs", "ours"),
    "flow_grpo": Method("Flow-GRPO", "rewarded by the judge", "other"),
    "sft": Method("Supervised", "trained on true pairs", "bound"),
    "flowedit": Method("FlowEdit", "no training, both true captions", "base"),
    "sdedit": Method("SDEdit", "redrawn, true target caption", "base"),
    "regenerate": Method("Regenerate", "drawn, true target caption", "base"),
    "zero_shot_i2v": Method("Zero-shot video", "image to video as it is", "base"),
    "warmup": Method("Warm-up", "the shipped adapter as it is", "base"),
    "untrained": Method("Untrained", "the base model as it is", "base"),
    "copy": Method("Copy", "the source, unchanged", "base"),
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column of the scores. `maximum`: the end of its scale (None: open); shares are printed in per cent."""

    label: str
    maximum: float | None
    is_share: bool = False
    higher_is_better: bool = True


METRICS = {  # one line for each, in the order of the tables' columns; what a run hasn't measured has no column
    "whole_scene_right": Metric("Exactly right", 1.0, True),
    "edit_success": Metric("Edit done", 1.0, True),
    "preservation": Metric("Rest kept", 1.0, True),
    "frames_right": Metric("Frames right", 1.0, True),
    "judge_overall": Metric("Judge overall", 10.0),
    "judge_success": Metric("Judge: success", 10.0),
    "judge_over_editing": Metric("Judge: over-editing", 10.0),
    "judge_naturalness": Metric("Judge: naturalness", 10.0),
    "judge_artifacts": Metric("Judge: artifacts", 10.0),
    "judge_prompt_following": Metric("Judge: prompt followed", 10.0),
    "judge_identity": Metric("Judge: same object", 10.0),
    "judge_imgedit": Metric("Judge: ImgEdit (1 to 5)", 5.0),
    "judge_imgedit_first": Metric("Judge: ImgEdit, first of three", 5.0),
    "judge_imgedit_second": Metric("Judge: ImgEdit, second", 5.0),
    "judge_imgedit_third": Metric("Judge: ImgEdit, third", 5.0),
    "judge_p_right": Metric("Judge: right, probability", 1.0, True),
    "judge_p_done": Metric("Judge: done, probability", 1.0, True),
    "judge_p_kept": Metric("Judge: kept, probability", 1.0, True),
    "psnr_unedited": Metric("PSNR where nothing changes, dB", None),
    "l1": Metric("L1 to the source", None, higher_is_better=False),
    "psnr": Metric("PSNR to the source, dB", None),
    "ssim": Metric("SSIM to the source", None),
    "flicker_added": Metric("Flicker beyond the source's", None, higher_is_better=False),
    "temporal_flickering": Metric("Temporal flickering, 1: none", None),
    "temporal_flickering_source": Metric("Temporal flickering of the source", None),
    "motion_fidelity": Metric("Motion fidelity", None),
    "motion_fidelity_official": Metric("Motion fidelity, official", None),
    "dynamic_degree": Metric("Dynamic", 1.0, True),
    "aesthetic": Metric("Aesthetic", None),
    "clip_directional": Metric("CLIP directional", None),
    "clip_score": Metric("CLIPScore", None),
    "dino": Metric("DINO similarity", None),
    "dinov2": Metric("DINOv2 similarity", None),
    "dinov2_masked": Metric("MDINOv2-I", None),
    "tifa": Metric("TIFA", None),
    "geometric_score": Metric("Geometric score", None),
}
JUDGED = ("judge_overall", "judge_imgedit", "judge_p_right")  # what a judge says in all
PRIMARY = ("whole_scene_right", *JUDGED)  # methods are ranked by the first


def method(name: str) -> Method:
    return METHODS.get(name, Method(name.replace("_", " "), "", "base"))


def value(metric: str, number: float | None) -> str:
    """A metric's value in print; an en dash where there is none."""
    if number is None:
        return "–"
    kind = METRICS[metric]
    if kind.is_share:
        return f"{100 * number:.0f}%"
    return f"{number:.1f}" if kind.maximum or abs(number) >= 10 else f"{number:.3f}"


def signed(number: float, digits: int) -> str:
    return f"{number:+.{digits}f}".replace("-", "\u2212")


def interval(metric: str, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    if METRICS[metric].is_share:
        return f"{100 * low:.0f} to {100 * high:.0f}".replace("-", "\u2212")
    return f"{value(metric, low)} to {value(metric, high)}"


def p_value(number: float | None) -> str:
    if number is None:
        return "–"
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


LEARNED_FROM = {  # by what the items are: how an editor of ours learned
    "edits": "plain images and instructions that a vision-language model wrote about them",
    "clips": "clips that the base model drew itself, each in one style, and instructions to give them another",
    "settings": "plain images and settings that a vision-language model thought of for their objects",
}
EXACTLY_RIGHT = {
    "edits": "the edit is done and that nothing else has changed",
    "clips": "the edit is done and that nothing else has changed, in every frame",
    "settings": "the object stands in the setting that was asked for and is still the same one",
}
