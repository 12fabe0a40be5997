"""Published benchmarks on disk: identities, counts, what is refused, and that what is missing stays in every figure."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from cluster.errors import UserError
from stages.edit.benchmark import batches, item_ids_of
from stages.ingest.benchmarks.listing import BENCHMARK_SCHEMA, CLIPS_SCHEMA, choose, published
from stages.ingest.benchmarks.stage import (
    IngestBenchmarkConfig,
    IngestCustomizationBenchmarkConfig,
    IngestVideoBenchmarkConfig,
    ingest_benchmark,
    ingest_benchmark_sources,
)
from stages.starter import stages as starter
from tests.stages.ingest.context import make_context
from tests.stages.ingest.pictures import bomb, noise, png, table_rows
from tests.stages.ingest.published import gedit_rows, write_dreambooth, write_gedit, write_imgedit


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the stage in this process; returns its context."""

    def in_process(shards, work, *, context, **options):
        for shard in shards:
            work(shard)

    monkeypatch.setattr("stages.ingest.benchmarks.stage.run_shards", in_process)

    def call(source, kind=IngestBenchmarkConfig, name="out", **settings):
        context = make_context(tmp_path / name, "ingest_benchmark")
        ingest_benchmark({}, kind(source=str(source), **settings), context)
        return context

    return call


@pytest.fixture(scope="module")
def gedit(tmp_path_factory):
    return write_gedit(tmp_path_factory.mktemp("gedit"), gedit_rows())


def test_the_tables_are_those_that_the_scene_world_writes():
    assert BENCHMARK_SCHEMA == starter.BENCHMARK_SCHEMA and CLIPS_SCHEMA == starter.VIDEO_BENCHMARK_SCHEMA


def test_the_published_counts_add_up():
    for name, total in {"gedit_en": 606, "imgedit": 737, "dreambooth": 750, "video_style": 119}.items():
        counts = published(name)
        assert sum(counts.by_type.values()) == counts.num_items == total
    assert set(published("gedit_cn").by_type) == set(published("gedit_en").by_type)
    assert len(published("long_tail").by_type) == 12 and published("long_tail").num_items == 487


def test_gedit_one_language_and_each_item_by_task_language_and_key(gedit, run):
    context = run(gedit, layout="gedit")
    rows = table_rows(context, "benchmark")
    assert len(rows) == 606 == context.rows and context.figures["title"] == "GEdit-Bench, English"
    assert context.figures["num_items"] == context.figures["num_expected"] == 606 and not context.figures["problems"]
    assert {row["item_id"] for row in rows} >= {f"{kind}/en/{0:032x}" for kind in published("gedit_en").by_type}
    row = next(row for row in rows if row["item_id"] == f"subject-add/en/{5:032x}")
    assert (row["edit_type"], row["instruction"]) == ("subject-add", "do subject-add 5")
    metadata = {"benchmark": "gedit", "task_type": "subject-add", "language": "en", "key": f"{5:032x}"}
    assert json.loads(row["metadata"]) == metadata | {"intersection": True}
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), noise(5, (24, 16)))
    assert len({row["source_id"] for row in rows}) == 7
    ids = item_ids_of(context.out)
    found = [item.item_id for items, _ in batches(context.out, ids[:40], 8) for item in items]
    assert sorted(found) == sorted(ids[:40])


def test_gedit_chinese_and_the_intersection_are_sets_of_their_own(gedit):
    def listed(**settings):
        return choose(IngestBenchmarkConfig(source=str(gedit), layout="gedit", gedit=settings).listing(), None)

    chinese = listed(language="cn")
    assert len(chinese.items) == 606 and not chinese.problems
    assert all("/cn/" in item.item_id and item.instruction.startswith("做") for item in chinese.items)
    shared = listed(part="intersection")
    assert all(item.metadata["intersection"] for item in shared.items) and not shared.problems
    assert {item.item_id for item in shared.items} < {item.item_id for item in listed().items}


def test_a_trial_subset_is_called_one_and_is_the_first_of_each_type(gedit, run, tmp_path):
    context = run(gedit, layout="gedit", trial=2)
    assert context.figures["title"] == "GEdit-Bench, English, trial subset of 22 items"
    assert context.figures["num_expected"] == 22 and set(context.figures["by_type"].values()) == {2}
    small = write_gedit(tmp_path / "small", gedit_rows(per_type=2)[::-1])  # whatever the order of the rows
    again = run(small, layout="gedit", trial=2, name="again")
    assert table_rows(context, "benchmark") == table_rows(again, "benchmark")
    with pytest.raises(UserError, match="2 of 40 items of type 'background_change'; 2 of 40 .*and 7 more"):
        run(small, layout="gedit", trial=3, name="third")


def test_what_a_copy_lacks_is_refused_or_counts_as_missing(run, tmp_path):
    rows = [row for row in gedit_rows() if not (row["task_type"] == "text_change" and row["key"] > f"{95:032x}")]
    broken = next(row for row in rows if row["instruction"] == "do style_change 4")
    broken["input_image"] = {"bytes": b"\x89PNG", "path": None}
    folder = write_gedit(tmp_path / "copy", rows)
    with pytest.raises(
        UserError, match="isn't the whole of GEdit-Bench, English: 96 of 99 items of type 'text_change'"
    ):
        run(folder, layout="gedit")
    context = run(folder, layout="gedit", incomplete="name", name="named")
    assert context.figures["num_items"] == 602 and context.figures["num_expected"] == 606
    missing = {row["item_id"]: row["reason"] for row in table_rows(context, "missing")}
    assert len(missing) == 4 and missing[f"style_change/en/{4:032x}"].startswith(("corrupt:", "unreadable:"))
    assert sum(reason.startswith("absent:") for reason in missing.values()) == 3
    assert context.out.read_json("benchmark.json")["num_expected"] == 606


def test_gedit_in_another_form_is_refused(run, tmp_path):
    rows = gedit_rows(per_type=1)

    def refused(change, name):
        changed = [change(dict(row)) for row in rows]
        return write_gedit(tmp_path / name, changed)

    with pytest.raises(UserError, match="ingest_benchmark: .*no Parquet file"):
        run(tmp_path / "nothing", layout="gedit")
    with pytest.raises(UserError, match="no column 'key'"):
        run(refused(lambda row: {k: v for k, v in row.items() if k != "key"}, "column"), layout="gedit")
    with pytest.raises(UserError, match="row 0: instruction is None"):
        run(refused(lambda row: row | {"instruction": None}, "text"), layout="gedit")
    with pytest.raises(UserError, match="can't name a file"):
        run(refused(lambda row: row | {"key": "../../x"}, "path"), layout="gedit")
    with pytest.raises(UserError, match="instruction_language is 'de'"):
        run(refused(lambda row: row | {"instruction_language": "de"}, "language"), layout="gedit")
    with pytest.raises(UserError, match=r"has item 'background_change/en/0+' 2 times"):
        run(write_gedit(tmp_path / "twice", rows + rows), layout="gedit")


def test_imgedit(run, tmp_path):
    folder = write_imgedit(tmp_path / "imgedit")
    listing = IngestBenchmarkConfig(source=str(folder), layout="imgedit").listing()
    choice = choose(listing, None)
    assert len(choice.items) == 737 and listing.num_sources == 171 and not choice.problems
    context = run(folder, layout="imgedit", trial=1)
    rows = table_rows(context, "benchmark")
    assert len(rows) == 9 and {row["edit_type"] for row in rows} == set(published("imgedit").by_type)
    row = next(row for row in rows if row["edit_type"] == "extract")
    assert row["item_id"] == "0" and row["instruction"] == " do extract 0. "  # as it is published
    # a plain JPEG stays as it is
    assert row["image"] == (folder / "singleturn" / json.loads(row["metadata"])["id"]).read_bytes()


def test_imgedit_that_lacks_something(run, tmp_path):
    folder = write_imgedit(tmp_path / "imgedit")
    entries = json.loads((folder / "basic_edit.json").read_text())

    def changed(name, text):
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        return {"layout": "imgedit", "imgedit": {"edit_json": str(path)}}

    fewer = {key: entry for key, entry in entries.items() if entry["edit_type"] != "action"}
    with pytest.raises(UserError, match="0 of 36 items of type 'action'"):
        run(folder, **changed("fewer", json.dumps(fewer)))
    older = {
        key: entry | {"edit_type": entry["edit_type"].replace("adjust", "alter")} for key, entry in entries.items()
    }
    config = IngestBenchmarkConfig(source=str(folder), **changed("older", json.dumps(older)))
    assert not choose(config.listing(), None).problems
    assert str(tmp_path / "older.json") in ingest_benchmark_sources(config)
    with pytest.raises(UserError, match="names the picture '../secret.jpg', which is no path within a folder"):
        run(folder, **changed("path", json.dumps({"1": entries["1"] | {"id": "../secret.jpg"}})))
    with pytest.raises(UserError, match="can't be read as JSON .*key '1' is there twice"):
        run(folder, **changed("twice", '{"1": {}, "1": {}}'))
    with pytest.raises(UserError, match="entry '1' lacks one of id, prompt, edit_type"):
        run(folder, **changed("field", json.dumps({"1": {"id": "animal/1.jpg"}})))
    with pytest.raises(UserError, match="has no folder elsewhere of pictures"):
        run(folder, **changed("elsewhere", json.dumps({"1": entries["1"] | {"id": "elsewhere/1.jpg"}})))
    with pytest.raises(UserError, match="there is no basic_edit.json"):
        run(folder / "singleturn", layout="imgedit")
    lost = entries["0"]["id"]
    (folder / "singleturn" / lost).unlink()
    with pytest.raises(UserError, match=f"item '0': missing: there is no singleturn/{lost}"):
        run(folder, layout="imgedit", trial=1)


def test_dreambooth_every_subject_with_the_prompts_of_its_kind(run, tmp_path):
    folder = write_dreambooth(tmp_path / "dreambooth")
    config = IngestCustomizationBenchmarkConfig(source=str(folder), layout="dreambooth")
    choice = choose(config.listing(), None)
    assert len(choice.items) == 750 and not choice.problems
    items = {item.item_id: item for item in choice.items}
    assert items["cat2/00/24"].tgt_caption == "a cat in live place 24"
    toy = items["thing_03/00/07"]
    assert toy.tgt_caption == "a stuffed toy in object place 7" and toy.src_caption == "a stuffed toy"
    assert toy.instruction.endswith("in a different setting and pose: a stuffed toy in object place 7")
    settings = {"reference": 2, "instruction_template": "{prompt}"}
    other = {item.item_id: item for item in choose(config.model_copy(update={"dreambooth": config.dreambooth.model_copy(
        update=settings)}).listing(), None).items}  # fmt: skip
    assert other["cat2/02/24"].instruction == "a cat in live place 24" and other["cat2/02/24"].file == "cat2/02.jpg"
    context = run(folder, IngestCustomizationBenchmarkConfig, trial=3)
    assert [row["edit_type"] for row in table_rows(context, "benchmark")] == ["live"] * 3 + ["object"] * 3


def test_dreambooth_that_lacks_something(run, tmp_path):
    kind = IngestCustomizationBenchmarkConfig
    with pytest.raises(UserError, match="500 of 525 items of type 'object'; 29 of 30 source pictures"):
        run(write_dreambooth(tmp_path / "subject", subjects=29), kind)
    with pytest.raises(UserError, match="24 prompts for object subjects; there should be 25"):
        run(write_dreambooth(tmp_path / "prompts", num_prompts=24), kind)
    told = "cat holds 00.jpg, 01.jpg, 02.jpg; a subject has 4 to 6, numbered from 00.jpg on; .* and 26 more"
    with pytest.raises(UserError, match=told):
        run(write_dreambooth(tmp_path / "pictures", num_pictures=3), kind)
    lost = write_dreambooth(tmp_path / "lost", num_pictures=5)
    (lost / "dataset" / "cat2" / "00.jpg").unlink()  # another picture doesn't take its place
    with pytest.raises(UserError, match="DreamBooth: cat2 holds 01.jpg, 02.jpg, 03.jpg, 04.jpg; a subject has 4 to 6"):
        run(lost, kind)
    context = run(lost, kind, name="lost", incomplete="name")
    missing = {row["item_id"]: row["reason"] for row in table_rows(context, "missing")}
    assert missing == {f"cat2/00/{n:02d}": "missing: there is no cat2/00.jpg" for n in range(25)}
    assert (context.figures["num_items"], context.figures["num_expected"]) == (725, 750)
    with pytest.raises(UserError, match="has no prompts_and_classes.txt"):
        run(tmp_path / "prompts" / "dataset" / "cat", kind)
    place = write_dreambooth(tmp_path / "code") / "dataset" / "prompts_and_classes.txt"
    place.write_text(place.read_text().replace("in object place 3", "{0.__class__}"))
    with pytest.raises(UserError, match=r"line \d+: .*has other places than \{0\} and \{1\}"):
        run(tmp_path / "code", kind)


def test_a_table_of_ones_own(run, tmp_path):
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(png(1, (24, 16)))
    turned = Image.fromarray(noise(2, (16, 24)))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "images" / "b.webp", lossless=True, exif=exif)
    head = "item_id,image,edit_type,instruction,tgt_caption,photographer\n"

    def table(*lines):
        (folder / "items.csv").write_text(head + "\n".join(lines), encoding="utf-8", errors="surrogateescape")
        return folder

    first, second = "one,images/a.png,add,add a hat,a hat,Ann", "two,images/b.webp,add,add a bow,,"
    context = run(table(first, second), layout="table")
    rows = {row["item_id"]: row for row in table_rows(context, "benchmark")}
    assert rows["one"]["tgt_caption"] == "a hat" and json.loads(rows["one"]["metadata"]) == {"photographer": "Ann"}
    assert Image.open(io.BytesIO(rows["two"]["image"])).size == (24, 16)  # upright
    assert context.figures["title"] == "items of mine" and context.figures["num_expected"] == 2
    for bad, told in (
        ("three,../a.png,add,x,,", "line 3: image '../a.png' is no path"),
        ("three,images/a.png,add,,,", "line 3: instruction is empty"),
        ("one,images/a.png,add,x,,", "line 3: line 2 has item_id 'one', too"),
        ("three,images/a.png", "line 3: unreadable: 2 fields, the first line has 6"),
        ('three,images/a.png,add,"x,,', "line 3: unreadable: a quote before it doesn't end"),
        ("three,images/c.png,add,x,,", "item 'three': missing: there is no images/c.png"),
        ("three,images/a.png,add,fa\udce7ade,,", "line 3: instruction .* has characters that aren't UTF-8"),
    ):
        with pytest.raises(UserError, match=told):
            run(table(first, bad), layout="table", name=bad[:9])
    for data, told in (
        (b"item_id,image,instruction\n", "no column 'edit_type'; its columns are item_id, image, instruction"),
        (b"", "no column 'item_id'; its columns are none. It is comma-separated"),
        (head.replace(",", ";").encode(), "no column 'item_id'; its columns are item_id;image"),
        (head.encode("utf-16"), "items.csv isn't UTF-8"),
        (head.replace("tgt_caption", "tgt_captoin").encode(), "has a column 'tgt_captoin'; did you mean 'tgt_caption'"),
        (head.replace("photographer", "image").encode(), "has the column 'image' twice"),
        (head.encode(), "items.csv has no rows"),
    ):
        (folder / "items.csv").write_bytes(data)
        with pytest.raises(UserError, match=told):
            run(folder, layout="table")
    (folder / "images" / "cut.png").write_bytes(png(1, (24, 16))[:300])
    (folder / "images" / "bomb.png").write_bytes(bomb())
    table(first, "two,images/cut.png,add,x,,", "three,images/bomb.png,add,x,,")
    with pytest.raises(UserError, match=r"'three': too large: .*bomb.png\); item 'two': corrupt: .*images/cut.png\)"):
        run(folder, layout="table")
    context = run(folder, layout="table", name="named", incomplete="name")
    assert (context.figures["num_items"], context.figures["num_expected"]) == (1, 3)


def test_configuration(tmp_path):
    assert ingest_benchmark_sources(IngestBenchmarkConfig()) == []
    with pytest.raises(UserError, match="no source is set"):
        ingest_benchmark({}, IngestBenchmarkConfig(), make_context(tmp_path, "ingest_benchmark"))
    for settings in ({"layout": "gedt"}, {"trial": 0}, {"gedit": {"language": "both"}}):
        with pytest.raises(ValidationError):
            IngestBenchmarkConfig(source="x", **settings)
    with pytest.raises(ValidationError, match="layout is set and no source"):
        IngestBenchmarkConfig(layout="gedit")
    with pytest.raises(ValidationError):
        IngestCustomizationBenchmarkConfig(source="x", layout="gedit")
    with pytest.raises(ValidationError, match="it has no {prompt}"):
        IngestCustomizationBenchmarkConfig(source="x", dreambooth={"instruction_template": "draw it"})
    video = IngestVideoBenchmarkConfig()
    assert (video.num_frames, video.height, video.width) == (81, 480, 832)  # the paper's
