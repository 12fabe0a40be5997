"""Which stages each profile makes: of pictures, of clips, or of both."""

import pytest

from cluster.config import apply_settings, build_configs, find_profile, read_profile
from cluster.dag import leading_to, narrowed, ordered
from pipelines.cli import PROFILES
from pipelines.full import STAGES

CLIPS = {
    "video_captions", "video_prompts", "clips", "verify_clips", "encode_clips", "video_benchmark", "video_validation",
    "train_byg_video", "edit_video", "evaluate_video",
}  # fmt: skip


def made(profile: str, *settings: str, targets: tuple[str, ...] = ()) -> set[str]:
    found = read_profile(find_profile(profile, PROFILES))
    targets = targets or found.targets or ("report",)
    stages = leading_to(STAGES, targets)
    values = apply_settings(found.values, settings)
    configs = build_configs({stage.name: stage.config for stage in ordered(stages)}, values)
    return {stage.name for stage in leading_to(narrowed(stages, configs), targets)}


@pytest.mark.parametrize("profile", ["starter-long", "np-edit", "video4edit", "ablation"])
def test_profiles_of_pictures_make_nothing_of_clips(profile):
    assert not made(profile) & CLIPS


def test_the_starter_makes_everything_that_is_reported():
    rest = {"ablation", "ablation_np_edit", "ablation_video4edit", "rollout_instructions"}
    rest |= {"ingest_pairs", "ingest_videos", "propose", "encode_proposals"}
    rest |= {"ingest_benchmark", "ingest_video_benchmark", "ingest_customization_benchmark"}
    assert made("starter") == {stage.name for stage in STAGES} - rest


def test_the_profile_of_clips_makes_nothing_of_pictures():
    assert made("byg-video") == CLIPS | {"report"}


def test_a_profile_may_have_both_and_methods_without_training_need_none():
    both = made("byg-video", "edit.methods=[byg,copy]")
    assert both >= CLIPS | {"train_byg", "caption", "edit", "evaluate"}
    untrained = made("byg-video", "edit_video.methods=[copy,sdedit]")
    assert untrained == {"video_benchmark", "video_validation", "edit_video", "evaluate_video", "report"}
    settled = made("byg-video", "edit_video.methods=[copy,sdedit]", "edit_video.sdedit_strengths=[0.6]")
    assert settled == untrained - {"video_validation"}


@pytest.mark.parametrize("kind", ["", "_video", "_customization"])
def test_one_kind_of_edits_may_be_the_target(kind, tmp_path):
    (tmp_path / "one.yaml").write_text(f"edit{kind}: {{methods: [copy]}}")
    wanted = {f"{kind}_benchmark".removeprefix("_"), f"edit{kind}", f"evaluate{kind}"}
    assert made(str(tmp_path / "one.yaml"), targets=(f"evaluate{kind}",)) == wanted


def test_real_data_take_the_place_of_made_up_ones():
    pairs = made("video4edit", "ingest_pairs.sources.omniedit=/data/omniedit")
    assert "ingest_pairs" in pairs and "pairs" not in pairs
    assert "ingest_pairs" not in made("video4edit")
    videos = made("byg-video", "ingest_videos.source=/data/videoufo")
    assert videos == (CLIPS | {"report", "ingest_videos"}) - {"video_captions"}
    assert "scenes" not in made("np-edit", "ingest.source=/data/openimages") and "scenes" in made("np-edit")


def test_benchmarks_on_disk_take_the_place_of_the_scene_worlds():
    others = made("np-edit", "ingest_benchmark.source=/data/gedit", "edit.methods=[]", "edit.folders.x.path=/data/x")
    assert others == {"ingest_benchmark", "edit", "evaluate", "report"}
    one = made("starter", "ingest_customization_benchmark.source=/data/dreambooth")
    assert "ingest_customization_benchmark" in one and "customization_benchmark" not in one
    assert {"benchmark", "video_benchmark"} <= one
    clips = made("byg-video", "ingest_video_benchmark.source=/data/videos")
    assert "ingest_video_benchmark" in clips and "video_benchmark" not in clips


@pytest.mark.parametrize(
    ("profile", "stages"),
    [
        ("gedit", {"ingest_benchmark", "edit", "evaluate"}),
        ("imgedit", {"ingest_benchmark", "edit", "evaluate"}),
        ("long-tail", {"ingest_benchmark", "edit", "evaluate"}),
        ("dreambooth", {"ingest_customization_benchmark", "edit_customization", "evaluate_customization"}),
        ("video-style", {"ingest_video_benchmark", "edit_video", "evaluate_video"}),
    ],
)
def test_a_benchmarks_profile_trains_nothing(profile, stages):
    assert made(profile) == stages | {"report"}


def test_np_edit_learns_from_its_own_proposals_where_the_profile_says_so():
    assert {"caption", "encode"} <= made("np-edit") and not {"propose", "encode_proposals"} & made("np-edit")
    proposed = made("np-edit-data")
    assert proposed == (made("np-edit") | {"propose", "encode_proposals"}) - {"caption", "encode"}
    both = made("np-edit-data", "edit.methods=[np_edit,byg,flow_grpo]")
    assert both >= {"caption", "encode", "propose", "encode_proposals", "train_byg", "train_flow_grpo"}
    ablated = made("ablation-np-edit", "ablation_np_edit.train.tuples=propose")
    assert {"propose", "encode_proposals"} <= ablated and not {"caption", "encode"} & ablated
