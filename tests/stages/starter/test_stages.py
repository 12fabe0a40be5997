import collections
import io

import numpy as np
from PIL import Image

from stages.evaluate.perception.tifa import own_questions
from stages.starter import oracle, world
from stages.starter.stages import (
    BenchmarkConfig,
    PairsConfig,
    ScenesConfig,
    ValidationConfig,
    VideoCaptionsConfig,
    make_benchmark,
    make_pairs,
    make_scenes,
    make_video_captions,
    sample_edits,
)
from stages.starter.vlm_questions import HAS_OBJECT
from tests.stages.ingest.context import make_context

START, END = HAS_OBJECT.split("{object}")


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


def test_items_ask_about_objects_as_the_truth_answers(tmp_path):
    context = make_context(tmp_path, "benchmark")
    make_benchmark({}, BenchmarkConfig(num_items=24), context)
    for row in context.out.read_table("benchmark.parquet").to_pylist():
        target = {o.name for o in world.Edit.from_json(row["metadata"]).target.objects}
        asked = own_questions(row["metadata"])
        names = [question.text.removeprefix(START).removesuffix(END) for question in asked]
        assert [HAS_OBJECT.format(object=name) for name in names] == [question.text for question in asked]
        assert {q.text: q.answer for q in asked} == {
            HAS_OBJECT.format(object=name): "Yes" if name in target else "No" for name in names
        }
        assert target <= set(names) and len(set(names)) == len(names)
        gone = 1 if row["edit_type"] in ("color", "replace", "remove") else 0
        assert sum(question.answer == "No" for question in asked) == gone


def test_video_captions_tell_of_clips_of_one_style(tmp_path):
    short, long, other = (make_context(tmp_path, name) for name in ("short", "long", "other"))
    make_video_captions({}, VideoCaptionsConfig(num_captions=30), short)
    make_video_captions({}, VideoCaptionsConfig(num_captions=90), long)
    make_video_captions({}, VideoCaptionsConfig(num_captions=30, seed=1), other)
    rows = [context.out.read_table("captions.parquet").to_pylist() for context in (short, long, other)]
    assert rows[1][:30] == rows[0] and len({row["caption_id"] for part in rows[1:] for row in part}) == 120
    captions = [row["caption"] for row in rows[1]]
    assert len(set(captions)) > 80 and not set(captions) & {row["caption"] for row in rows[2]}
    assert not any("night falls" in caption or "day breaks" in caption for caption in captions)
    assert 8 < sum(caption.endswith(" at night") for caption in captions) < 40
    for words in (
        " turns ",
        " fades in ",
        " fades out",
        " shifts from ",
        " morphs into ",
        " moves to ",
        "nothing changes",
    ):
        assert any(words in caption for caption in captions), words


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
