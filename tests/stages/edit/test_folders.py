"""Pictures that somebody else's editor made: found in every layout, and each thing that is wrong with one is said."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError

from cluster import record
from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.benchmark import given_benchmark, scaled
from stages.edit.settings import EditConfig, EditCustomizationConfig, edit_sources
from stages.edit.stage import edit_images
from stages.evaluate.settings import EvaluateConfig
from stages.evaluate.stage import evaluate_edits
from stages.ingest.benchmarks.listing import BENCHMARK_SCHEMA
from stages.report.data import gather
from stages.report.results import lead
from tests.artifacts import committed
from tests.stages.ingest.context import RUN_ID, make_context
from tests.stages.ingest.pictures import bomb, png

SIZE = (24, 16)
ITEMS = [f"{kind}/en/{key}" for kind in ("style_change", "text_change") for key in ("k0", "k1", "k2", "k3")]


def row(item_id, seed):
    values = dict.fromkeys(BENCHMARK_SCHEMA.names, "") | {"item_id": item_id, "source_id": f"s{seed}"}
    return values | {"edit_type": item_id.split("/")[0], "image": png(seed, SIZE), "metadata": "{}"}


@pytest.fixture
def benchmark(tmp_path):
    """Eight items in two tables, and one that the copy of the benchmark lacks."""
    folder = Folder(tmp_path / "ingest_benchmark")
    rows = [row(item_id, index) for index, item_id in enumerate(ITEMS)]
    for index in range(2):
        table = pa.Table.from_pylist(rows[4 * index : 4 * index + 4], BENCHMARK_SCHEMA)
        folder.write_table(f"benchmark/{index:05d}.parquet", table)
    missing = {"item_id": "text_change/absent-000", "source_id": "x", "edit_type": "text_change"}
    missing |= {"outcome": "missing", "reason": "absent: the copy has fewer"}
    folder.write_table("missing/absent.parquet", pa.Table.from_pylist([missing]))
    folder.write_json("benchmark.json", {"title": "GEdit-Bench, trial subset of 9 items", "num_expected": 9})
    return committed(folder, "ingest_benchmark")


@pytest.fixture
def run(benchmark, tmp_path, monkeypatch):
    def in_process(shards, work, *, context, **options):
        for shard in shards:
            work(shard)

    monkeypatch.setattr("stages.edit.stage.run_shards", in_process)
    monkeypatch.setattr("stages.evaluate.stage.run_shards", in_process)

    def call(name="edit", methods=(), **settings):
        context = make_context(tmp_path / name, "edit")
        edit_images({"ingest_benchmark": benchmark}, EditConfig(methods=methods, shard_size=3, **settings), context)
        return context

    return call


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def edits(context):
    names = [name for name in context.out.list(".parquet", recursive=True) if name.startswith("edits/")]
    return {(row["method"], row["item_id"]): row for name in names for row in context.out.read_table(name).to_pylist()}


def test_both_layouts_are_read_to_the_byte(run, tmp_path):
    for index, item_id in enumerate(ITEMS):
        write(tmp_path / "gedit", f"fullset/{item_id}.png", png(50 + index, SIZE))
        write(tmp_path / "gedit", f"fullset/{item_id}_SRCIMG.png", png(index, SIZE))
        write(tmp_path / "plain", f"{item_id}.JPG", png(70 + index, (48, 32), "JPEG"))  # twice the size, same shape
    folders = {name: {"path": str(tmp_path / name)} for name in ("gedit", "plain")}
    context = run(folders=folders)
    rows = edits(context)
    assert len(rows) == 16 == context.rows and not record.read_incidents(Folder(context.root), RUN_ID)
    for index, item_id in enumerate(ITEMS):
        assert rows["gedit", item_id]["image"] == png(50 + index, SIZE) and rows["gedit", item_id]["reason"] is None
        assert rows["plain", item_id]["image"] == png(70 + index, (48, 32), "JPEG")
    assert {str(tmp_path / name) for name in folders} <= set(edit_sources(EditConfig(methods=(), folders=folders)))


def test_what_is_wrong_with_a_picture_is_said_and_it_is_unscored(run, benchmark, tmp_path):
    folder = tmp_path / "theirs"
    for index, item_id in enumerate(ITEMS[:6]):
        write(folder, f"{item_id}.png", png(index, SIZE))
    write(folder, f"{ITEMS[1]}.webp", png(9, SIZE, "WEBP"))
    write(folder, f"{ITEMS[2]}.png", png(9, (16, 16)))
    write(folder, f"{ITEMS[3]}.png", b"not a picture")
    write(folder, f"{ITEMS[4]}.png", png(4, SIZE)[:200])
    write(folder, f"{ITEMS[7]}.png", bomb())
    write(folder, "style_change/en/k9.png", png(9, SIZE))
    context = run(methods=("copy",), folders={"theirs": {"path": str(folder)}})
    reasons = {item_id: row["reason"] for (method, item_id), row in edits(context).items() if method == "theirs"}
    assert reasons[ITEMS[0]] is None and reasons[ITEMS[5]] is None
    assert reasons[ITEMS[1]] == f"two_images: {ITEMS[1]}.png and {ITEMS[1]}.webp are both for this item"
    assert reasons[ITEMS[2]] == f"wrong_size: {ITEMS[2]}.png has 16x16 pixels, its source 24x16"
    assert reasons[ITEMS[3]] == f"undecodable: {ITEMS[3]}.png is no PNG, JPEG or WebP"
    assert reasons[ITEMS[4]].startswith(f"undecodable: {ITEMS[4]}.png (")
    assert reasons[ITEMS[6]] == f"missing: {folder} has no {ITEMS[6]}.png"
    assert reasons[ITEMS[7]].startswith(f"undecodable: {ITEMS[7]}.png (Image size (3600000000 pixels) exceeds limit")
    told = sorted(incident["text"] for incident in record.read_incidents(Folder(context.root), RUN_ID))
    assert [text.removeprefix("edit.folders.theirs: ") for text in told] == [
        f"1 items have two pictures ({ITEMS[1]}.png and {ITEMS[1]}.webp); unscored.",
        "1 of 8 items have no picture; unscored.",
        "1 pictures belong to no item, such as style_change/en/k9.png.",
    ]

    evaluation = make_context(tmp_path / "scored", "evaluate")
    given = {"ingest_benchmark": benchmark, "edit": committed(context.out, "edit")}
    evaluate_edits(given, EvaluateConfig(num_resamples=100), evaluation)
    scores = {(row["method"], row["item_id"]): row for row in evaluation.out.read_table("scores.parquet").to_pylist()}
    assert scores["theirs", ITEMS[2]]["unscored"] == f"image: {reasons[ITEMS[2]]}"
    assert scores["theirs", ITEMS[0]]["l1"] == 0 and scores["theirs", ITEMS[2]]["l1"] is None
    assert scores["copy", "text_change/absent-000"]["unscored"] == "benchmark: absent: the copy has fewer"
    summary = evaluation.out.read_table("figures/summary.parquet").to_pylist()
    counts = {row["method"]: (row["num_items"], row["num_expected"])
              for row in summary if (row["metric"], row["edit_type"]) == ("l1", "all")}  # fmt: skip
    assert counts == {"copy": (8, 9), "theirs": (2, 9)}
    lines = evaluation.figures["incomplete"]
    assert lines[0].startswith("copy has pictures of 8 of 9 items; text_change/absent-000: benchmark: absent")
    assert lines[1].startswith("theirs has pictures of 2 of 9 items; ")
    report = gather(given | {"evaluate": committed(evaluation.out, "evaluate")}, evaluation.root, RUN_ID, 0)
    assert report.num_expected == 9 and "on GEdit-Bench, trial subset of 9 items." in lead(report)


def test_other_shapes_may_be_taken_as_the_official_scripts_do(run, tmp_path):
    for item_id in ITEMS:
        write(tmp_path / "square", f"{item_id}.png", png(1, (16, 16)))
    context = run(folders={"square": {"path": str(tmp_path / "square"), "other_shapes": "resize"}})
    assert all(row["reason"] is None for row in edits(context).values())


def test_a_folder_of_something_else_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"edit.folders.x.path: .*no picture of any of the 8 items"):
        run(folders={"x": {"path": str(tmp_path / "nowhere")}})
    write(tmp_path / "imgedit", "1082.png", png(1, SIZE))
    with pytest.raises(UserError, match="such as 1082.png: is it another benchmark's"):
        run(folders={"x": {"path": str(tmp_path / "imgedit")}})
    for settings in ({"copy": {"path": "x"}}, {"a/b": {"path": "x"}}, {"x": {"paht": "x"}}):
        with pytest.raises(ValidationError):
            EditConfig(folders=settings)
    assert EditCustomizationConfig(folders={"theirs": {"path": "x"}}).all_methods == ("theirs",)


def test_a_method_that_draws_from_captions_needs_them(run):
    with pytest.raises(UserError, match="method flowedit draws from captions, and item .* has no src_caption"):
        run(methods=("copy", "flowedit"), flowedit_starts=(0.7,))


def test_pictures_are_scaled_to_sides_that_models_take():
    for size in ((640, 480), (333, 1000), (30, 20)):
        image = scaled(Image.new("RGB", size), 512 * 512)
        assert image.width % 32 == 0 == image.height % 32
        assert abs(image.width * image.height / 512**2 - 1) < 0.1
        assert abs(image.width / image.height * size[1] / size[0] - 1) < 0.1
    same = Image.new("RGB", (512, 512))
    assert scaled(same, 512 * 512) is same


def test_a_benchmark_on_disk_takes_the_place_of_the_scene_worlds(benchmark):
    assert given_benchmark({"benchmark": 1, "ingest_benchmark": benchmark}, "") is benchmark
    assert given_benchmark({"video_benchmark": benchmark}, "video_") is benchmark


def test_copies_keep_their_size_where_others_are_scaled(run):
    pixels = [
        np.asarray(Image.open(io.BytesIO(row["image"])))
        for row in edits(run(methods=("copy",), num_pixels=4096)).values()
    ]
    assert all(picture.shape == (16, 24, 3) for picture in pixels)
