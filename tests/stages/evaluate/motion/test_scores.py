"""The columns of the video metrics in the table of scores; what there was before stays as it was."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.numpy import save_file

from stages.edit.shard import EDITS_SCHEMA
from stages.evaluate.motion.config import AestheticConfig, MotionConfig
from stages.evaluate.settings import EvaluateVideoConfig
from stages.evaluate.stage import evaluate_edits
from stages.evaluate.summary import CLIP_METRICS, PIXEL_METRICS, VIDEO_METRICS, YES_NO_METRICS
from stages.starter import clips
from stages.starter.stages import VideoBenchmarkConfig, make_video_benchmark, sample_clip_edits
from stages.train.backbones.clip_files import write_clip
from tests.artifacts import committed
from tests.stages.evaluate.motion.models import write_clip_model, write_head
from tests.stages.ingest.context import make_context

NUM_ITEMS = 3


def rendered(clip):
    return [Image.fromarray(np.round(frame * 255).astype(np.uint8)) for frame in clips.render_clip(clip)]


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """The scores and figures of clips that stay as they are, or stop at their first frame, under a configuration."""
    context = make_context(tmp_path, "video_benchmark")
    make_video_benchmark({}, VideoBenchmarkConfig(num_items=NUM_ITEMS), context)
    edits, rows = make_context(tmp_path, "edit_video"), []
    for index, edit in enumerate(sample_clip_edits("video_benchmark", NUM_ITEMS, 0)):
        source = rendered(edit.clip)
        for method, frames in {"copy": source, "stopped": source[:1] * len(source)}.items():
            row = {"item_id": f"video_benchmark-0-{index:05d}", "method": method, "seconds": 0.1}
            rows.append(row | {"image": write_clip(frames[-1:]), "clip": write_clip(frames)})
    edits.out.write_table("edits/all.parquet", pa.Table.from_pylist(rows, EDITS_SCHEMA))
    given = {"video_benchmark": committed(context.out, "video_benchmark")}
    given |= {"edit_video": committed(edits.out, "edit_video")}
    monkeypatch.setattr("stages.evaluate.stage.run_shards", lambda shards, work, **options: [work(s) for s in shards])

    def evaluated(name, motion):
        evaluation = make_context(tmp_path / name, "evaluate_video")
        evaluate_edits(given, EvaluateVideoConfig(num_resamples=100, motion=motion), evaluation)
        scores = evaluation.out.read_table("scores.parquet").to_pylist()
        return {(row["method"], row["item_id"][-1]): row for row in scores}, evaluation.figures

    return evaluated


def test_temporal_flickering_is_always_there(evaluate):
    rows, figures = evaluate("off", None)
    for (method, item), row in rows.items():
        assert row["temporal_flickering_source"] == rows["copy", item]["temporal_flickering"]
        assert row["temporal_flickering"] - row["temporal_flickering_source"] == pytest.approx(-row["flicker_added"])
        assert method == "copy" or row["temporal_flickering"] == 1.0
        assert all(row[name] is None for name in VIDEO_METRICS[2:]) and row["unscored"] is None
    results = figures["results"]
    assert results["video/stopped"]["temporal_flickering"] == 1.0
    assert results["video/stopped"]["temporal_flickering_source"] < 1.0
    assert results["video/copy"]["dynamic_degree"] is None


def test_what_is_asked_for(evaluate, tmp_path):
    before, figures_before = evaluate("off", None)
    generator = np.random.default_rng(0)
    for index in range(NUM_ITEMS - 1):  # the last item has none
        tracks = generator.normal(size=(5, 6, 2)).cumsum(axis=0)
        still = np.zeros((5, 6, 2))
        for place, values in {"source": tracks, "edited/copy": tracks, "edited/stopped": still}.items():
            path = tmp_path / "tracks" / place / f"video_benchmark-0-{index:05d}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"tracks": values}, path)
    aesthetic = AestheticConfig(clip=write_clip_model(tmp_path), head=write_head(tmp_path))
    metrics = ("motion_fidelity", "aesthetic")
    motion = MotionConfig(metrics=metrics, tracks=str(tmp_path / "tracks"), aesthetic=aesthetic)
    rows, figures = evaluate("on", motion)
    first, last = rows["copy", "0"], rows["copy", "2"]
    assert first["motion_fidelity"] == 1.0 and 0 < first["motion_fidelity_official"] < 1
    assert first["unscored"] is None and isinstance(first["aesthetic"], float)
    assert last["motion_fidelity"] is None and last["motion_fidelity_official"] is None
    assert last["unscored"].startswith("motion_fidelity: there are no tracks source/video_benchmark-0-00002")
    assert isinstance(last["aesthetic"], float)
    stopped = rows["stopped", "0"]
    assert stopped["motion_fidelity"] == 0.0 and stopped["motion_fidelity_official"] is None
    assert stopped["unscored"].startswith("motion_fidelity_official: a point stands still")
    results = figures["results"]["video/copy"]
    assert results["motion_fidelity"] == 1.0 and results["dynamic_degree"] is None
    known = (*YES_NO_METRICS, *PIXEL_METRICS, *CLIP_METRICS, "num_items", "num_expected")
    for method, values in figures_before["results"].items():
        assert {name: values[name] for name in known} == {name: figures["results"][method][name] for name in known}
    assert before["copy", "0"]["image_sha256"] == first["image_sha256"]
