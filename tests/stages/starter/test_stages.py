import collections
import io

import numpy as np
from PIL import Image

from stages.starter import oracle, world
from stages.starter.stages import (
    BenchmarkConfig,
    PairsConfig,
    ScenesConfig,
    ValidationConfig,
    make_benchmark,
    make_pairs,
    make_scenes,
    sample_edits,
)
from tests.stages.ingest.context import make_context


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_scenes_are_pictures_alone_and_are_the_same_after_an_interruption(tmp_path):
    whole, resumed = (make_context(tmp_path / name, "scenes") for name in ("whole", "resumed"))
    make_scenes({}, ScenesConfig(num_scenes=5), whole)
    make_scenes({}, ScenesConfig(num_scenes=3), resumed)  # a longer split begins with a shorter one's items
    make_scenes({}, ScenesConfig(num_scenes=5), resumed)
    names = whole.out.list(recursive=True)
    assert names == [f"images/{i:05d}.png" for i in range(5)] == resumed.out.list(recursive=True)
    assert whole.rows == 5
    for name in names:
        assert whole.out.read_bytes(name) == resumed.out.read_bytes(name)
        image = pixels(whole.out.read_bytes(name))
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert not Image.open(io.BytesIO(whole.out.read_bytes(name))).info  # no text tells what is there


def test_another_seed_gives_other_scenes(tmp_path):
    first, second = (make_context(tmp_path / name, "scenes") for name in "ab")
    make_scenes({}, ScenesConfig(num_scenes=3), first)
    make_scenes({}, ScenesConfig(num_scenes=3, seed=1), second)
    names = first.out.list(".png", recursive=True)
    assert len(names) == 3
    assert all(first.out.read_bytes(name) != second.out.read_bytes(name) for name in names)


def test_pairs_show_the_edit(tmp_path):
    context = make_context(tmp_path, "pairs")
    make_pairs({}, PairsConfig(num_pairs=12), context)
    rows = context.out.read_table("pairs.parquet").to_pylist()
    assert len({row["pair_id"] for row in rows}) == 12
    for row, edit in zip(rows, sample_edits("pairs", 12, 0), strict=True):
        assert row["instruction"] == edit.instruction
        assert oracle.read(pixels(row["source_image"])) == oracle.expected_reading(edit.source)
        assert oracle.score(edit, pixels(row["target_image"])).whole_scene_right


def test_benchmark_is_balanced_and_carries_its_truth(tmp_path):
    context = make_context(tmp_path, "benchmark")
    make_benchmark({}, BenchmarkConfig(num_items=20), context)
    rows = context.out.read_table("benchmark.parquet").to_pylist()
    counts = collections.Counter(row["edit_type"] for row in rows)
    assert set(counts) == set(world.EDIT_TYPES) and max(counts.values()) - min(counts.values()) <= 1
    assert len({row["item_id"] for row in rows}) == len({row["source_id"] for row in rows}) == 20
    for row in rows:
        edit = world.Edit.from_json(row["metadata"])
        assert (row["edit_type"], row["instruction"]) == (edit.edit_type, edit.instruction)
        assert (row["src_caption"], row["tgt_caption"]) == (edit.src_caption, edit.tgt_caption)
        assert np.array_equal(pixels(row["image"]), world.render(edit.source))
        assert oracle.score(edit, world.render(edit.target)).whole_scene_right
        assert not oracle.score(edit, world.render(edit.source)).whole_scene_right


def test_no_picture_is_in_two_splits(tmp_path):
    context = {name: make_context(tmp_path, name) for name in ("scenes", "pairs", "benchmark", "validation")}
    make_scenes({}, ScenesConfig(num_scenes=60), context["scenes"])
    make_pairs({}, PairsConfig(num_pairs=60), context["pairs"])
    make_benchmark({}, BenchmarkConfig(num_items=60), context["benchmark"])
    make_benchmark({}, ValidationConfig(num_items=60), context["validation"])
    pairs = context["pairs"].out.read_table("pairs.parquet")
    pictures = [
        [context["scenes"].out.read_bytes(f"images/{index:05d}.png") for index in range(60)],
        pairs["source_image"].to_pylist(),
        pairs["target_image"].to_pylist(),
        context["benchmark"].out.read_table("benchmark.parquet")["image"].to_pylist(),
        context["validation"].out.read_table("benchmark.parquet")["image"].to_pylist(),
    ]
    assert len({data for split in pictures for data in split}) == 5 * 60
