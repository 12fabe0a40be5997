"""ByG's two benchmarks, built after the paper's recipe and read back."""

import collections
import io
import json
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from cluster.errors import UserError
from stages.ingest.benchmarks import build
from stages.ingest.benchmarks.listing import choose, published
from stages.ingest.benchmarks.recipes import GENERATED_VIDEOS, REAL_VIDEOS, STYLES, long_tail_rows, video_style_rows
from stages.ingest.benchmarks.stage import IngestBenchmarkConfig, IngestVideoBenchmarkConfig, ingest_benchmark
from stages.train.backbones.clip_files import read_clip
from tests.stages.ingest.context import make_context
from tests.stages.ingest.pictures import noise, png, table_rows


def long_tail(num_stylized=183, num_photos=200, num_images=335, num_edits=487, seed=0, captions=None):
    stylized = {style: [f"{style}/{index}.png" for index in range(place, num_stylized, 6)]
                for place, style in enumerate(STYLES)}  # fmt: skip
    photos = [f"photo-{index}.jpg" for index in range(num_photos)]
    return long_tail_rows(photos, stylized, captions or {}, num_images=num_images, num_edits=num_edits, seed=seed)


@pytest.mark.parametrize("num_stylized", [183, 259, 297])
def test_long_tail_has_the_papers_totals_however_many_pictures_are_stylized(num_stylized):
    rows = long_tail(num_stylized)
    assert len(rows) == 487 and len({row["file"] for row in rows}) == 335
    assert {row["edit_type"] for row in rows} == set(published("long_tail").by_type)
    assert len({row["item_id"] for row in rows}) == 487
    styles = collections.Counter(row["edit_type"] for row in rows if row["edit_type"].startswith("to_"))
    assert max(styles.values()) - min(styles.values()) <= 2
    photos = collections.Counter(row["file"] for row in rows if row["edit_type"].startswith("to_"))
    assert max(photos.values()) - min(photos.values()) <= 1


def test_long_tail_draws_by_the_seed_and_says_both_ways():
    assert long_tail() == long_tail() != long_tail(seed=1)
    rows = long_tail(captions={f"photo-{index}.jpg": "A dog on a beach." for index in range(200)})
    there = next(row for row in rows if row["edit_type"] == "to_lego")
    assert there["instruction"] == "Turn the image into Lego style"
    assert there["reverse_instruction"] == "Turn the image into a photorealistic one"
    assert there["src_caption"] == "A dog on a beach, photorealistic style"
    assert there["tgt_caption"] == "A dog on a beach, Lego style"
    back = next(row for row in rows if row["edit_type"] == "from_lego")
    assert back["instruction"] == "Turn the image into a photorealistic one" and back["src_caption"] == ""


def test_long_tail_that_cannot_be():
    with pytest.raises(UserError, match="235 photographs are needed, and there are 200"):
        long_tail(100)
    with pytest.raises(UserError, match="leave 5 photographs and 157 edits of them; each photograph gets 1 to 6"):
        long_tail(330)
    with pytest.raises(UserError, match="no pictures in the style 'lego'"):
        long_tail(5)
    with pytest.raises(UserError, match="There is no style 'oil'"):
        long_tail_rows([], {"oil": ["a"]}, {}, num_images=2, num_edits=2, seed=0)


def test_videos_of_each_style_get_the_papers_edits():
    videos = {style: [f"{style}/{index:02d}.mp4" for index in range(30)]
              for style in ("cartoon", "photorealistic", "cgi")}  # fmt: skip
    rows = video_style_rows(videos, videos, {}, seed=0)
    assert collections.Counter(row["edit_type"] for row in rows) == published("video_style").by_type
    assert len(rows) == 119 == len({row["item_id"] for row in rows})
    ours = [row for row in rows if row["edit_type"] == "cgi_to_cartoon"]
    assert {row["instruction"] for row in ours} == {"Turn the video to cartoon style"}
    with pytest.raises(UserError, match="10 real videos of style 'cgi' are needed, and there are 9"):
        video_style_rows(videos | {"cgi": videos["cgi"][:9]}, videos, {}, seed=0)


def in_process(shards, work, *, context, **options):
    for shard in shards:
        work(shard)


def test_build_and_read_long_tail(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("stages.ingest.benchmarks.stage.run_shards", in_process)
    photos, stylized, out = tmp_path / "photos", tmp_path / "stylized", tmp_path / "out"
    photos.mkdir()
    for index in range(4):
        (photos / f"{index}.jpg").write_bytes(png(index, (16, 16), "JPEG"))
    (photos / "1.txt").write_text("a street\n")
    for index, style in enumerate(STYLES):
        (stylized / style).mkdir(parents=True)
        (stylized / style / "s.png").write_bytes(png(100 + index, (16, 16)))
    command = ["long_tail", "--photos", str(photos), "--stylized", str(stylized), "--out", str(out)]
    assert build.main([*command, "--photos", str(tmp_path / "none")]) == 1
    assert f"--photos: {tmp_path}/none holds no pictures" in capsys.readouterr().err
    (photos / "2.txt").write_bytes("fa\u00e7ade".encode("latin-1"))
    assert build.main(command) == 1 and "2.txt isn't UTF-8 (byte 2)" in capsys.readouterr().err
    (photos / "2.txt").unlink()
    assert build.main(command) == 1 and "329 photographs are needed, and there are 4" in capsys.readouterr().err
    assert build.main([*command, "--num-images", "10", "--num-edits", "30"]) == 0
    assert "30 edits of 10 images; to_gta_v 4, " in capsys.readouterr().out
    assert build.main([*command, "--num-images", "10", "--num-edits", "30"]) == 1
    assert "items.csv is there already" in capsys.readouterr().err
    config = IngestBenchmarkConfig(source=str(out), layout="long_tail")
    assert choose(config.listing(), None).problems == ["30 of 487 items", "10 of 335 source pictures"]
    context = make_context(tmp_path, "ingest_benchmark")
    ingest_benchmark({}, config.model_copy(update={"trial": 1}), context)
    assert context.figures["title"] == "long-tail styles, trial subset of 12 items"
    rows = {row["edit_type"]: row for row in table_rows(context, "benchmark")}
    assert Image.open(io.BytesIO(rows["from_lego"]["image"])).tobytes() == noise(105, (16, 16)).tobytes()
    table = (out / "items.csv").read_text()
    assert table.count('"a street, photorealistic style"') == 6


def write_video(path, seed, num_frames=9):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for index in range(num_frames):
            frame = np.full((32, 64, 3), (seed * 20 + index) % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def test_build_and_read_videos(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("stages.ingest.benchmarks.stage.run_shards", in_process)
    write_video(tmp_path / "one.mp4", 1)
    for origin, counts in (("real", REAL_VIDEOS), ("generated", GENERATED_VIDEOS)):
        for style, num in counts.items():
            (tmp_path / origin / style).mkdir(parents=True)
            for index in range(num):
                shutil.copy(tmp_path / "one.mp4", tmp_path / origin / style / f"{index}.mp4")
    command = ["video_style", "--real", str(tmp_path / "real"), "--generated", str(tmp_path / "generated")]
    assert build.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "119 edits of 109 videos" in capsys.readouterr().out
    config = IngestVideoBenchmarkConfig(source=str(tmp_path / "out"))
    assert choose(config.listing(), None).problems == []
    (tmp_path / "real" / "cgi" / "0.mp4").unlink()
    assert build.main([*command, "--out", str(tmp_path / "fewer")]) == 1
    assert "10 real videos of style 'cgi'" in capsys.readouterr().err
    context = make_context(tmp_path, "ingest_video_benchmark")
    small = {"trial": 1, "num_frames": 5, "frames_per_second": 8.0, "height": 32, "width": 48}
    config = config.model_copy(update=small)
    ingest_benchmark({}, config, context)
    rows = table_rows(context, "benchmark")
    assert {row["edit_type"] for row in rows} == set(published("video_style").by_type)
    frames = read_clip(rows[0]["clip"], 5)
    assert frames[0].size == (48, 32) and json.loads(rows[0]["metadata"])["origin"] in ("real", "generated")
    assert np.array_equal(np.asarray(frames[0]), np.asarray(Image.open(io.BytesIO(rows[0]["image"]))))
    with pytest.raises(UserError, match="too_short: it ends after 9 of 11 frames"):
        ingest_benchmark({}, config.model_copy(update={"num_frames": 11}), make_context(tmp_path / "long", "x"))
