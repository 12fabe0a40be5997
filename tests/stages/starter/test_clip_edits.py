"""The oracle of clips: right for the true edit, and for nothing else."""

import collections
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from stages.starter import clip_edits, clips, world
from stages.starter.stages import (
    VideoBenchmarkConfig,
    VideoValidationConfig,
    make_video_benchmark,
    sample_clip_edits,
)
from stages.train.backbones.clip_files import read_clip
from tests.stages.ingest.context import make_context

EDITS = sample_clip_edits("video_validation", 56, 3)


def rendered(clip: clips.Clip) -> np.ndarray:
    return np.round(clips.render_clip(clip) * 255).astype(np.uint8)


def test_the_true_clip_is_right_and_the_source_is_kept_but_not_edited():
    for edit in EDITS:
        right = clip_edits.score_clip(edit, rendered(edit.target))
        assert right.whole_scene_right and right.frames_right == 1, edit
        copied = clip_edits.score_clip(edit, rendered(edit.clip))
        assert copied.preservation and not any(copied.done) and copied.frames_right == 0, edit


def test_one_frame_that_is_not_edited_or_not_kept_spoils_the_clip():
    for edit in EDITS[:14]:
        target = rendered(edit.target)
        for index in range(5):
            frames = target.copy()
            frames[index] = rendered(edit.clip)[index]
            score = clip_edits.score_clip(edit, frames)
            assert not score.edit_success and score.preservation and score.frames_right == pytest.approx(0.8)
            frames = target.copy()
            frames[index, 8:12, 8:12] = 255 - frames[index, 8:12, 8:12]
            score = clip_edits.score_clip(edit, frames)
            assert not score.kept[index] and sum(score.kept) == 4 and score.edit_success


def test_a_lost_detail_of_any_kind_is_seen():
    """The light alone, another object's colour, or motion that stops: none of them is named by a text."""
    draw = np.random.default_rng(0)
    for edit in EDITS:
        target = edit.target
        light = world.sample_light(draw)
        if light != target.source.light:
            both = (dataclasses.replace(s, light=light) for s in (target.source, target.target))
            other = clips.Clip(target.kind, *both, target.evolution_caption)
            assert not clip_edits.score_clip(edit, rendered(other)).preservation
        if edit.clip.kind != "still":
            stopped = np.repeat(rendered(target)[:1], 5, axis=0)
            score = clip_edits.score_clip(edit, stopped)
            assert score.kept[0] and not score.preservation


def test_noise_as_an_autoencoder_leaves_it_is_forgiven():
    draw = np.random.default_rng(1)
    for edit in EDITS[:14]:
        noisy = rendered(edit.target) / 255 + draw.normal(0, 0.02, (5, 32, 32, 3))
        assert clip_edits.score_clip(edit, noisy.clip(0, 1)).whole_scene_right


def test_metadata_comes_back_and_is_told_from_a_pictures():
    for edit in EDITS[:14]:
        assert clip_edits.ClipEdit.from_json(edit.to_json()) == edit
        assert clip_edits.is_clip_edit(edit.to_json())
    scene = world.sample_scene(np.random.default_rng(0))
    assert not clip_edits.is_clip_edit(world.sample_edit(scene, np.random.default_rng(0)).to_json())
    assert not clip_edits.is_clip_edit("")


def test_the_benchmark_holds_true_clips_of_all_kinds_and_both_styles(tmp_path):
    context = make_context(tmp_path, "video_benchmark")
    make_video_benchmark({}, VideoBenchmarkConfig(num_items=28), context)
    rows = context.out.read_table("benchmark.parquet").to_pylist()
    edits = [clip_edits.ClipEdit.from_json(row["metadata"]) for row in rows]
    assert collections.Counter((e.clip.kind, e.style) for e in edits) == {
        (kind, style): 2 for kind in clip_edits.CLIP_KINDS for style in world.STYLES
    }
    for row, edit in zip(rows, edits, strict=True):
        frames = [np.asarray(frame) for frame in read_clip(row["clip"], 5)]
        assert np.array_equal(frames, rendered(edit.clip))
        assert np.array_equal(frames[0], np.asarray(Image.open(io.BytesIO(row["image"]))))
        assert row["src_caption"] == edit.clip.caption and row["tgt_caption"] == edit.target.caption
        assert row["src_caption"].endswith(" at night") != row["tgt_caption"].endswith(" at night")
        assert edit.style in row["instruction"] and row["edit_type"] == "style"
    other = make_context(tmp_path, "video_validation")
    make_video_benchmark({}, VideoValidationConfig(num_items=28), other)
    ids = {row["source_id"] for row in other.out.read_table("benchmark.parquet").to_pylist()}
    assert not ids & {row["source_id"] for row in rows}
    with pytest.raises(ValidationError, match="1 \\+ 4 k"):
        VideoBenchmarkConfig(num_frames=6)
