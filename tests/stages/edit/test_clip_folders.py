"""Clips that somebody else's editor made: real video files and folders of frames, and what is wrong with one."""

import io

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cluster import record
from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.settings import EditVideoConfig, edit_sources
from stages.edit.stage import edit_images
from stages.evaluate import export
from stages.evaluate.settings import EvaluateVideoConfig
from stages.evaluate.stage import evaluate_edits
from stages.ingest.benchmarks.listing import CLIPS_SCHEMA
from stages.ingest.frames import write_clip
from stages.train.backbones.clip_files import clip_seconds, read_clip
from tests.artifacts import committed
from tests.stages.ingest.context import RUN_ID, make_context
from tests.stages.ingest.pictures import noise, png

SIZE, NUM_FRAMES, RATE = (48, 32), 6, 16
ITEMS = [f"cartoon/{index}" for index in range(11)]


def frames(seed, size=SIZE, num_frames=NUM_FRAMES):
    """Noise, the last two frames alike."""
    pictures = [Image.fromarray(noise(100 * seed + index, size)) for index in range(num_frames - 1)]
    return [*pictures, pictures[-1]]


def video(pictures, codec="libx264", container="mp4", **options):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode())
    return buffer.getvalue()


def lossless(pictures):
    return video(pictures, "libx264rgb", qp="0")


def exact(data, num_frames=NUM_FRAMES):
    return np.stack([np.asarray(frame) for frame in read_clip(data, num_frames)])


def stacked(pictures):
    return np.stack([np.asarray(picture) for picture in pictures])


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def benchmark(tmp_path):
    """Eleven clips of six frames, at 16 a second."""
    rows = [
        dict.fromkeys(CLIPS_SCHEMA.names, "")
        | {"item_id": item_id, "source_id": item_id, "edit_type": "cartoon", "metadata": "{}"}
        | {"image": png(100 * index, SIZE), "clip": write_clip(frames(index), RATE)}
        for index, item_id in enumerate(ITEMS)
    ]
    folder = Folder(tmp_path / "ingest_video_benchmark" / "ffff")
    folder.write_table("benchmark/00000.parquet", pa.Table.from_pylist(rows, CLIPS_SCHEMA))
    folder.write_json("benchmark.json", {"title": "videos", "num_expected": len(ITEMS)})
    return committed(folder, "ingest_video_benchmark", {"num_frames": NUM_FRAMES})


@pytest.fixture
def run(benchmark, tmp_path, monkeypatch):
    def in_process(shards, work, *, context, **options):
        for shard in shards:
            work(shard)

    monkeypatch.setattr("stages.edit.stage.run_shards", in_process)
    monkeypatch.setattr("stages.evaluate.stage.run_shards", in_process)

    def call(name="edit", methods=(), **settings):
        context = make_context(tmp_path / name, "edit_video")
        config = EditVideoConfig(methods=methods, num_frames=NUM_FRAMES, **settings)
        edit_images({"ingest_video_benchmark": benchmark}, config, context)
        return context, config

    return call


def edits(context):
    names = [name for name in context.out.list(".parquet", recursive=True) if name.startswith("edits/")]
    return {(row["method"], row["item_id"]): row for name in names for row in context.out.read_table(name).to_pylist()}


def told(context):
    return sorted(incident["text"] for incident in record.read_incidents(Folder(context.root), RUN_ID))


def test_every_form_of_a_clip_is_read(run, tmp_path):
    folder = tmp_path / "theirs"
    clips = {item_id: frames(50 + index) for index, item_id in enumerate(ITEMS)}
    for item_id, pictures in clips.items():
        write(folder, f"{item_id}.mp4", lossless(pictures))
    (folder / f"{ITEMS[1]}.mp4").rename(folder / f"{ITEMS[1]}.MOV")
    (folder / f"{ITEMS[2]}.mp4").unlink()
    for index, picture in enumerate(clips[ITEMS[2]]):  # 9, 10, 11, ...: in the order of the numbers
        write(folder, f"{ITEMS[2]}/frame{index + 7}.png", _png(picture))
    (folder / f"{ITEMS[3]}.mp4").unlink()
    gray = [Image.new("RGB", SIZE, (60 * index, 60 * index, 60 * index)) for index in range(4)]
    write(folder, f"{ITEMS[3]}.webm", video([*gray, *gray[:2]], "libvpx-vp9", "webm", crf="10"))
    twice = [picture.resize((96, 64), Image.Resampling.NEAREST) for picture in clips[ITEMS[4]]]
    write(folder, f"{ITEMS[4]}.mp4", lossless(twice))
    context, config = run(folders={"theirs": {"path": str(folder)}})
    rows = edits(context)
    assert len(rows) == 11 and not told(context) and str(folder) in edit_sources(config)
    assert not [row["reason"] for row in rows.values() if row["reason"]]
    for item_id in (*ITEMS[:3], *ITEMS[5:]):
        row = rows["theirs", item_id]
        assert np.array_equal(exact(row["clip"]), stacked(clips[item_id]))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), np.asarray(clips[item_id][-1]))
    assert clip_seconds(rows["theirs", ITEMS[0]]["clip"]) == pytest.approx(NUM_FRAMES / RATE, abs=0.001)
    assert clip_seconds(rows["theirs", ITEMS[2]]["clip"]) == pytest.approx(NUM_FRAMES * 0.16)  # pictures tell no rate
    webm = exact(rows["theirs", ITEMS[3]]["clip"])
    assert np.abs(webm.mean((1, 2, 3)) - [0, 60, 120, 180, 0, 60]).max() < 4
    scaled = [picture.resize(SIZE, Image.Resampling.BICUBIC) for picture in twice]
    assert np.array_equal(exact(rows["theirs", ITEMS[4]]["clip"]), stacked(scaled))


def _png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_what_is_wrong_with_a_clip_is_said_and_it_is_unscored(run, benchmark, tmp_path):
    folder = tmp_path / "theirs"
    for item_id in ITEMS[:9]:
        write(folder, f"{item_id}.mp4", lossless(frames(7)))
    write(folder, f"{ITEMS[1]}/00000.png", png(1, SIZE))
    write(folder, f"{ITEMS[2]}.mp4", video(frames(7, (32, 32))))
    write(folder, f"{ITEMS[3]}.mp4", video(frames(7, num_frames=5)))
    write(folder, f"{ITEMS[4]}.mp4", video(frames(7, num_frames=9)))
    write(folder, f"{ITEMS[5]}.mp4", b"not a video")
    write(folder, f"{ITEMS[6]}.mp4", lossless(frames(7))[:-300])
    write(folder, f"{ITEMS[9]}.mp4", lossless(frames(7)).replace(b"avc1", b"zzzz"))
    (folder / f"{ITEMS[7]}.mp4").unlink()
    for index in range(NUM_FRAMES):
        write(folder, f"{ITEMS[7]}/{index:05d}.png", png(index, SIZE if index < 4 else (24, 16)))
    (folder / f"{ITEMS[8]}.mp4").unlink()
    write(folder, f"{ITEMS[8]}/00000.png", png(0, SIZE))
    write(folder, f"{ITEMS[8]}/cover.png", png(0, SIZE))
    write(folder, "cartoon/other.mp4", b"x")
    context, _ = run(methods=("copy",), folders={"theirs": {"path": str(folder)}})
    reasons = {item_id: row["reason"] for (method, item_id), row in edits(context).items() if method == "theirs"}
    assert reasons[ITEMS[0]] is None
    assert reasons[ITEMS[1]] == "two_clips: cartoon/1.mp4 and cartoon/1/ are both for this item"
    assert reasons[ITEMS[2]] == "wrong_size: cartoon/2.mp4 has 32x32 pixels, its source 48x32"
    assert reasons[ITEMS[3]] == "wrong_length: cartoon/3.mp4 has 5 frames, its source 6"
    assert reasons[ITEMS[4]] == "wrong_length: cartoon/4.mp4 has 9 frames, its source 6"
    assert reasons[ITEMS[5]] == "undecodable: cartoon/5.mp4 (Invalid data found when processing input)"
    assert reasons[ITEMS[6]] == "undecodable: cartoon/6.mp4 (End of file)"
    assert reasons[ITEMS[7]] == "wrong_size: cartoon/7/ has frames of 48x32 and of 24x16 pixels"
    assert reasons[ITEMS[8]].startswith("undecodable: cartoon/8/cover.png has no number at its end")
    assert reasons[ITEMS[9]] == "undecodable: cartoon/9.mp4 (no decoder for it)"
    assert reasons[ITEMS[10]] == f"missing: {folder} has no cartoon/10.mp4"
    assert [text.removeprefix("edit_video: ") for text in told(context)] == [
        "edit_video.folders.theirs: 1 clips belong to no item, such as cartoon/other.mp4.",
        "edit_video.folders.theirs: 1 items have two clips (cartoon/1.mp4 and cartoon/1/); unscored.",
        "edit_video.folders.theirs: 1 of 11 items have no clip; unscored.",
    ]

    evaluation = make_context(tmp_path / "scored", "evaluate_video")
    given = {"ingest_video_benchmark": benchmark, "edit_video": committed(context.out, "edit_video")}
    evaluate_edits(given, EvaluateVideoConfig(num_resamples=100), evaluation)
    scores = {(row["method"], row["item_id"]): row for row in evaluation.out.read_table("scores.parquet").to_pylist()}
    assert scores["theirs", ITEMS[3]]["unscored"] == f"image: {reasons[ITEMS[3]]}"
    assert scores["theirs", ITEMS[0]]["l1"] > 0 and scores["theirs", ITEMS[0]]["unscored"] is None
    assert scores["copy", ITEMS[0]]["l1"] == 0
    assert evaluation.figures["incomplete"] == [
        f"theirs has clips of 1 of 11 items; cartoon/1: image: {reasons[ITEMS[1]]}"
    ]
    summary = evaluation.out.read_table("figures/summary.parquet").to_pylist()
    counts = {row["method"]: (row["num_items"], row["num_expected"])
              for row in summary if (row["metric"], row["edit_type"]) == ("l1", "all")}  # fmt: skip
    assert counts == {"copy": (11, 11), "theirs": (1, 11)}


def test_other_shapes_may_be_squeezed(run, tmp_path):
    for item_id in ITEMS:
        write(tmp_path / "square", f"{item_id}.mp4", lossless(frames(1, (32, 32))))
    context, _ = run(folders={"square": {"path": str(tmp_path / "square"), "other_shapes": "resize"}})
    assert {frame.size for row in edits(context).values() for frame in read_clip(row["clip"])} == {SIZE}


def test_a_folder_of_something_else_is_refused(run, tmp_path):
    write(tmp_path / "pictures", f"{ITEMS[0]}.png", png(1, SIZE))
    with pytest.raises(
        UserError, match=r"edit_video.folders.x.path: .*no clip of any .* cartoon/0.mp4. .*such as cart"
    ):
        run(folders={"x": {"path": str(tmp_path / "pictures")}})


def test_what_is_exported_is_read_again_to_the_bit(run, benchmark, tmp_path, capsys):
    for index, item_id in enumerate(ITEMS[:10]):
        write(tmp_path / "theirs", f"{item_id}.mp4", video(frames(20 + index)))
    context, config = run(methods=("copy",), folders={"theirs": {"path": str(tmp_path / "theirs")}})
    committed(context.out, "edit_video", config.model_dump(mode="json"))
    stages = {
        name: {"status": "ran", "artifact": str(url), "fingerprint": url.split("/")[-1]}
        for name, url in (("edit_video", context.out.url), ("ingest_video_benchmark", benchmark.folder.url))
    }
    Folder(tmp_path / "runs" / "r1").write_json("summary.json", {"run_id": "r1", "stages": stages})
    summary, out = str(tmp_path / "runs" / "r1" / "summary.json"), tmp_path / "out"
    arguments = ["--run", summary, "--stage", "edit_video", "--layout", "items", "--out", str(out)]
    assert export.main(arguments) == 1
    said = capsys.readouterr().out
    assert f"{out}/copy: 11 of 11 clips\n" in said and "10 of 11 clips; without a clip is cartoon/10 (missing:" in said
    assert {path.suffix for path in out.rglob("*.*")} == {".mp4"}
    again, _ = run(
        "again",
        folders={name: {"path": str(out / name.removesuffix("-again"))} for name in ("theirs-again", "copy-again")},
    )
    first, second = edits(context), edits(again)
    for (method, item_id), row in first.items():
        other = second[f"{method}-again", item_id]
        if row["clip"] is None:
            assert other["reason"].startswith("missing:")
            continue
        assert np.array_equal(exact(row["clip"]), exact(other["clip"])) and row["image"] == other["image"]
        assert clip_seconds(row["clip"]) == clip_seconds(other["clip"])
