"""Clips are scored frame by frame, and their figures come by the same statistics as the pictures'."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from stages.edit.shard import EDITS_SCHEMA
from stages.evaluate.metrics import clip_metrics, flicker, pixel_metrics
from stages.evaluate.settings import EvaluateVideoConfig
from stages.evaluate.stage import evaluate_edits
from stages.report.data import gather
from stages.report.page import render_page
from stages.starter import clip_edits, clips
from stages.starter.stages import VideoBenchmarkConfig, make_video_benchmark, sample_clip_edits
from stages.train.backbones.clip_files import write_clip
from tests.artifacts import committed
from tests.stages.ingest.context import make_context
from tests.stages.report.example_run import RUN_ID, build_run

NUM_ITEMS = 28  # every kind of clip, still ones among them, by day and by night


def rendered(clip: clips.Clip) -> list[Image.Image]:
    return [Image.fromarray(np.round(frame * 255).astype(np.uint8)) for frame in clips.render_clip(clip)]


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """The artifacts of benchmark, edits and evaluation."""
    context = make_context(tmp_path, "video_benchmark")
    make_video_benchmark({}, VideoBenchmarkConfig(num_items=NUM_ITEMS), context)
    edits, rows = make_context(tmp_path, "edit_video"), []
    for index, edit in enumerate(sample_clip_edits("video_benchmark", NUM_ITEMS, 0)):
        source, target = rendered(edit.clip), rendered(edit.target)
        made = {"byg_video": target, "copy": source, "half": [*source[:2], *target[2:]]}
        for method, frames in made.items():
            row = {"item_id": f"video_benchmark-0-{index:05d}", "method": method, "seconds": 0.1}
            rows.append(row | {"image": write_clip(frames[-1:]), "clip": write_clip(frames)})
    rows[0]["clip"] = b"broken"
    edits.out.write_table("edits/all.parquet", pa.Table.from_pylist(rows, EDITS_SCHEMA))

    def in_process(shards, work, **options):
        for shard in shards:
            work(shard)

    monkeypatch.setattr("stages.evaluate.stage.run_shards", in_process)
    given = {"video_benchmark": committed(context.out, "video_benchmark")}
    given |= {"edit_video": committed(edits.out, "edit_video")}
    evaluation = make_context(tmp_path, "evaluate_video")
    evaluate_edits(given, EvaluateVideoConfig(num_resamples=100), evaluation)
    return given | {"evaluate_video": committed(evaluation.out, "evaluate_video")}, evaluation.figures


def test_all_frames_must_be_right(evaluated):
    artifacts, figures = evaluated
    results = {name.removeprefix("video/"): values for name, values in figures["results"].items()}
    assert results["byg_video"]["whole_scene_right"] == results["byg_video"]["frames_right"] == 1
    assert (results["copy"]["edit_success"], results["copy"]["preservation"]) == (0, 1)
    assert results["half"]["whole_scene_right"] == 0 and results["half"]["preservation"] == 1
    assert results["half"]["frames_right"] == pytest.approx(0.6)
    assert results["copy"]["flicker_added"] == 0 and results["copy"]["l1"] == 0
    assert results["half"]["flicker_added"] > 0.02
    rows = artifacts["evaluate_video"].folder.read_table("scores.parquet").to_pylist()
    first = next(row for row in rows if row["method"] == "byg_video")
    assert first["unscored"].startswith("image: ") and first["whole_scene_right"] is None
    assert (figures["num_unscored"], results["byg_video"]["num_items"]) == (1, NUM_ITEMS - 1)


def test_pixel_metrics_are_means_over_the_frames():
    edit = sample_clip_edits("video_benchmark", 3, 1)[2]
    source, target = ([np.asarray(f) for f in rendered(clip)] for clip in (edit.clip, edit.target))
    found = clip_metrics(target, source)
    wanted = [pixel_metrics(a, b) for a, b in zip(target, source, strict=True)]
    for name in ("l1", "psnr", "ssim"):
        assert found[name] == pytest.approx(np.mean([row[name] for row in wanted]))
    assert found["flicker_added"] == flicker(target) - flicker(source)


def test_flicker_is_the_mean_difference_of_neighbours():
    frames = np.zeros((3, 2, 2, 3), dtype=np.uint8)
    frames[1] = 51
    assert flicker(frames) == pytest.approx(0.2)
    assert flicker(frames[[0, 0, 0]]) == flicker(frames[:1]) == 0


def test_a_clip_of_another_length_is_no_clip_of_the_world():
    edit = sample_clip_edits("video_benchmark", 1, 0)[0]
    with pytest.raises(ValueError, match="3 frames, where the clip has 5"):
        clip_edits.score_clip(edit, [np.asarray(f) for f in rendered(edit.target)][:3])


def test_the_report_has_clips_that_play_beside_pictures_or_alone(evaluated, tmp_path):
    artifacts, _ = evaluated
    pictures = build_run(str(tmp_path / "root"), num_items=12)
    both = gather(pictures | artifacts, str(tmp_path / "root"), RUN_ID, 4)
    page = render_page(both, "both")
    assert "of unseen edits exactly right" in page and "of unseen clips exactly right" in page
    assert page.index('id="gallery"') < page.index('id="clips"') < page.index('id="gallery-clips"')
    assert {"scores", "clips_scores", "clips_summary"} <= both.tables.keys()
    alone = render_page(gather(artifacts, str(tmp_path), "none", 4), "alone")
    assert "<h1>An editor that never saw an edited example gets <em>100%</em> of unseen clips" in alone
    assert "exactly right means that the edit is done and that nothing else has changed, in every frame" in alone
    assert 'id="clips"' not in alone and alone.count('class="gallery"') == 1
    assert alone.count("data:image/webp;base64,") >= 4 * 3  # sources and edits; one edit can't be read
    assert len(both.others[0].gallery) == 4 and {"frames_right", "flicker_added"} <= {
        m for _, _, m in both.others[0].summary
    }
