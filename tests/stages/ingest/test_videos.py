"""VideoUFO and UltraVideo in their published layouts: captions, and clips of MP4 files."""

import csv
import io
import tarfile

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from stages.caption.rows import StoredRows
from stages.caption.video.clips import even_frames
from stages.ingest.frames import UnusableVideo, sample_frames, write_clip
from stages.ingest.videos import IngestVideosConfig, ingest_videos, ingest_videos_sources
from stages.train.backbones.clip_files import read_clip
from tests.stages.ingest.context import make_context
from tests.stages.ingest.pictures import add_to_tar, table_rows

pytestmark = pytest.mark.usefixtures("local_ray")


def mp4(num_frames=24, rate=24, size=(64, 48)):
    """A video whose frame n has the gray value 5 n."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 5 * index, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def grays(frames):
    return [float(np.asarray(frame).mean()) / 5 for frame in frames]


def videoufo(folder, num=12):
    """WenhaoWang/VideoUFO: one CSV file, and tars of MP4 files."""
    folder.mkdir()
    with open(folder / "VideoUFO.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "Topic", "Brief Caption", "Detailed Caption", "Start Time", "End Time"])
        for index in range(num):
            writer.writerow([f"clip_{index:03d}", "cats", "a cat", f"A cat, number {index},\nwalks.", 0, 5])
        writer.writerow(["clip_000", "cats", "a cat", "the same again", 0, 5])
        writer.writerow(["clip_900", "cats", "a cat", " ", 0, 5])
        writer.writerow(["clip_901", "short"])
    with tarfile.open(folder / "VideoUFO_0.tar", "w") as archive:
        add_to_tar(archive, "clip_001.mp4", mp4())
        add_to_tar(archive, "x/clip_002.mp4", mp4(10))
        add_to_tar(archive, "clip_003.mp4", b"no video")
    (folder / "clip_004.mp4").write_bytes(mp4(rate=12))
    return folder


def read(tmp_path, source, name="run", **options):
    context = make_context(tmp_path / name, "ingest_videos")
    ingest_videos({}, IngestVideosConfig(source=str(source), num_workers=1, **options), context)
    return context


def test_captions_are_what_video_prompts_reads(tmp_path):
    context = read(tmp_path, videoufo(tmp_path / "v"), num_captions=5)
    stored = StoredRows(context.out, "caption_id", ("caption",))
    assert len(stored.keys) == 5 and list(stored.keys) == sorted(stored.keys)
    number = int(stored.keys[0][-3:])
    assert stored.read(stored.keys[0]) == {"caption": f"A cat, number {number}, walks."}
    letters = {row["source"]: row["reason"] for row in table_rows(context, "dead_letters")}
    assert sorted(letters.values()) == [
        "empty_field: the row has no caption", "unreadable: 2 fields, the first line has 6"
    ]  # fmt: skip
    assert context.figures["num_rows"] == 14 and context.figures["num_dead_letters"] == 2
    every = read(tmp_path, tmp_path / "v", "all", num_captions=99)
    assert every.rows == 12 and every.figures["num_rows_repeated"] == 1
    other = read(tmp_path, tmp_path / "v", "other", num_captions=5, seed=1)
    assert set(StoredRows(other.out, "caption_id", ("caption",)).keys) != set(stored.keys)


def test_clips_of_the_videos_that_are_there(tmp_path):
    options = dict(clips=True, num_frames=8, frames_per_second=8, height=16, width=32)
    context = read(tmp_path, videoufo(tmp_path / "v"), **options)
    assert len(StoredRows(context.out, "caption_id", ("caption",)).keys) == 4
    clips = {row["caption_id"]: row for row in table_rows(context, "clips")}
    assert set(clips) == {"clip_001", "clip_004"}
    frames = read_clip(clips["clip_001"]["clip"])
    assert len(frames) == 8 and frames[0].size == (32, 16)
    assert np.allclose(grays(frames), [0, 3, 6, 9, 12, 15, 18, 21], atol=1)
    assert len(even_frames(clips["clip_004"]["clip"], 4)) == 4
    letters = {row["caption_id"]: row["reason"] for row in table_rows(context, "dead_letters")}
    assert letters["clip_002"] == "too_short: it ends after 4 of 8 frames, 0.1250 s apart"
    assert letters["clip_003"].startswith("corrupt: ")
    assert context.figures["num_clips"] == 2 and context.figures["num_rows_without_video"] == 9


def test_ultravideo_and_other_names(tmp_path):
    folder = tmp_path / "u"
    folder.mkdir()
    table = {"clip_id": ["a.mp4", "b.mp4"], "Brief Description": ["x", "y"], "Summarized Description": ["A.", "B."]}
    with open(folder / "short.csv", "w", newline="") as file:
        csv.writer(file).writerows([list(table), *zip(*table.values(), strict=True)])
    pq.write_table(pa.table({**table, "Summarized Description": ["C.", "D."], "clip_id": [7, 8]}), folder / "l.parquet")
    rows = {}
    context = read(tmp_path, folder, layout="ultravideo")
    for key in (stored := StoredRows(context.out, "caption_id", ("caption",))).keys:
        rows[key] = stored.read(key)["caption"]
    assert rows == {"a.mp4": "A.", "b.mp4": "B.", "7": "C.", "8": "D."}
    with pytest.raises(
        UserError, match=r"layout captions: caption_id and caption.*short.csv: clip_id, Brief.*id_column"
    ):
        read(tmp_path, folder, "none", layout="captions")
    named = read(tmp_path, folder, "named", layout="captions", id_column="clip_id", caption_column="Brief Description")
    assert named.rows == 4


def test_clips_of_ultravideo(tmp_path):
    (tmp_path / "u" / "short").mkdir(parents=True)
    (tmp_path / "u" / "short.csv").write_text("clip_id,Summarized Description\na.mp4,A.\nb,B.\nc,C.\n")
    for name in ("a", "b"):
        (tmp_path / "u" / "short" / f"{name}.mp4").write_bytes(mp4())
    options = dict(layout="ultravideo", clips=True, num_frames=4, frames_per_second=8, height=16, width=32)
    context = read(tmp_path, tmp_path / "u", **options)
    assert [row["caption_id"] for row in table_rows(context, "clips")] == ["a.mp4", "b"]
    assert context.figures["num_rows_without_video"] == 1
    (tmp_path / "u" / "more.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"more.zip is packed, so its videos can't be read in place. Unpack it"):
        read(tmp_path, tmp_path / "u", "packed", **options)
    assert read(tmp_path, tmp_path / "u", "captions", layout="ultravideo").rows == 3
    (tmp_path / "u" / "more.zip").rename(tmp_path / "u" / "more.tar")
    (tmp_path / "u" / "more.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"^.*/more.tar is not a readable tar file"):
        read(tmp_path, tmp_path / "u", "broken", **options)


def test_frames_are_those_shown_at_the_times():
    frames = sample_frames(io.BytesIO(mp4(24, 24)), 12, 12, (64, 48), 10_000)
    assert np.allclose(grays(frames), np.arange(0, 24, 2), atol=1)
    doubled = sample_frames(io.BytesIO(mp4(6, 6)), 12, 12, (64, 48), 10_000)
    assert np.allclose(grays(doubled), np.repeat(np.arange(6), 2), atol=1)
    clip = read_clip(write_clip(frames, 12))
    assert [np.asarray(a).tolist() for a in clip] == [np.asarray(b).tolist() for b in frames]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "corrupt"),
        (b"RIFF" + bytes(200), "corrupt"),
        (mp4()[:1500], "unreadable"),
        (mp4(4), "too_short"),
        (mp4(size=(256, 256)), "too large"),
    ],
)
def test_unusable_videos(data, reason):
    with pytest.raises(UnusableVideo, match=f"^{reason}"):
        sample_frames(io.BytesIO(data), 12, 12, (64, 48), 10_000)


def test_errors_and_the_fingerprint(tmp_path):
    with pytest.raises(UserError, match="no source is set"):
        read(tmp_path, "")
    (tmp_path / "VideoUFO.csv").write_text("ID,Detailed Caption\n1,\n")
    with pytest.raises(UserError, match=r"none of the 1 rows .* gives a caption \(1 can't be read\)"):
        read(tmp_path, tmp_path)
    assert ingest_videos_sources(IngestVideosConfig(source="v")) == ["v"]
    assert ingest_videos_sources(IngestVideosConfig()) == []
