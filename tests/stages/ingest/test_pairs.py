"""Edit pairs in the layouts in which they are published: what is drawn, what is refused, and that nothing is lost."""

import collections
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from cluster.folder import Folder
from stages.caption.evolution.prompt import edit_types
from stages.caption.rows import StoredRows
from stages.encode.rows import pair_rows
from stages.ingest.pair_layouts import EDIT_TYPES_FILE, edit_type_of
from stages.ingest.pair_shares import TYPE_SHARES, allot
from stages.ingest.pairs import PAIRS_SCHEMA, IngestPairsConfig, ingest_pairs, ingest_pairs_sources
from stages.ingest.sources import parquet_rows
from tests.stages.ingest.context import make_context
from tests.stages.ingest.pictures import add_to_tar, noise, png, table_rows

pytestmark = pytest.mark.usefixtures("local_ray")

# one instruction of each type, as people write them
WORDS = {
    "add": "Add a small boat to the lake", "remove": "remove the dog", "replace": "turn the cat into a fox",
    "background": "Change the background to a beach", "color": "make the car red",
    "material": "make the chair wooden", "text": 'The sign should say "OPEN"', "motion": "have the man raise his arm",
    "portrait": "make the woman smile", "style": "turn it into a watercolor painting", "tone": "make it sunset",
}  # fmt: skip
TASKS = ("addition", "removal", "swap", "background", "env", "style", "attribute_modification")


def image(seed, **options):
    """Hugging Face's struct of a picture."""
    return {"bytes": png(seed, **options), "path": f"{seed}.png"}


def omniedit(folder, num=42, start=0):
    """TIGER-Lab/OmniEdit-Filtered-1.2M: Parquet files data/train-*.parquet."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "omni_edit_id": f"task_obj_{index}", "task": TASKS[index % len(TASKS)], "src_img": image(2 * index),
            "edited_img": image(2 * index + 1), "edited_prompt_list": [list(WORDS.values())[index % 11], "longer"],
            "width": 10, "height": 8, "sc_score_1": 8, "sc_score_2": 9, "sc_reasoning": "good", "pq_score": 7,
            "o_score": 7.5,
        }
        for index in range(start, start + num)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"train-{start:05d}.parquet", row_group_size=5)
    return folder


def hqedit(folder, num=44):
    """UCSC-VLAA/HQ-Edit."""
    folder.mkdir(parents=True)
    rows = [
        {
            "input": "a lake", "input_image": image(1000 + 2 * index), "edit": list(WORDS.values())[index % 11],
            "inverse_edit": "undo it", "output": "a lake, edited", "output_image": image(1001 + 2 * index),
        }
        for index in range(num)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet", row_group_size=10)
    return folder


def ultraedit(folder, num=44):
    """BleachNick/UltraEdit."""
    folder.mkdir(parents=True)
    rows = [
        {
            "clip_sim_source": 0.3, "source_caption": "a lake", "target_caption": "a lake, edited",
            "source_image": image(2000 + 2 * index), "edited_image": image(2001 + 2 * index),
            "mask_image": None, "edit_prompt": list(WORDS.values())[index % 11], "edit_object": "lake",
        }
        for index in range(num)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "free-00000.parquet")
    return folder


def read(tmp_path, sources, name="run", num_workers=1, **options):
    context = make_context(tmp_path / name, "ingest_pairs")
    sources = {layout: str(path) for layout, path in sources.items()}
    ingest_pairs({}, IngestPairsConfig(sources=sources, num_workers=num_workers, **options), context)
    return context


def test_three_data_sets_balanced_as_in_the_paper(tmp_path):
    sources = {
        "omniedit": omniedit(tmp_path / "o", 77), "hqedit": hqedit(tmp_path / "h"),
        "ultraedit": ultraedit(tmp_path / "u"),
    }  # fmt: skip
    context = read(tmp_path, sources, num_pairs=33, type_shares=dict.fromkeys(WORDS, 1.0))
    rows = table_rows(context, "pairs")
    assert collections.Counter(row["edit_type"] for row in rows) == dict.fromkeys(WORDS, 3)
    datasets = collections.Counter(json.loads(row["metadata"])["dataset"] for row in rows)
    assert datasets == {"omniedit": 11, "hqedit": 11, "ultraedit": 11}
    assert len({row["pair_id"] for row in rows}) == 33
    for name in context.out.list(".parquet", recursive=True):
        if name.startswith("pairs/"):
            assert context.out.read_table(name).schema == PAIRS_SCHEMA
    row = next(row for row in rows if row["pair_id"].startswith("omniedit/"))
    number = int(row["pair_id"].split("#")[1])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["source_image"]))), noise(2 * number))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["target_image"]))), noise(2 * number + 1))
    assert json.loads(row["metadata"])["pq_score"] == 7
    # what the next stages read is these pairs, and nothing else
    stored = StoredRows(context.out, "pair_id", ("edit_type", "instruction", "source_image", "target_image"))
    assert set(stored.keys) == {row["pair_id"] for row in rows}
    assert len(pair_rows(context.out, ("instruction",)).rows) == 33
    assert context.figures["num_pairs"] == context.rows == 33 and context.figures["notes"] == []


def test_neither_workers_nor_shards_nor_a_second_attempt_change_what_is_drawn(tmp_path):
    sources = {"omniedit": omniedit(tmp_path / "o"), "hqedit": hqedit(tmp_path / "h")}
    omniedit(tmp_path / "o", 42, start=42)
    one = read(tmp_path, sources, "one", num_pairs=40)
    many = read(tmp_path, dict(reversed(sources.items())), "many", num_pairs=40, num_workers=3, shard_size=7)
    by_id = {row["pair_id"]: row for row in table_rows(one, "pairs")}
    assert {row["pair_id"]: row for row in table_rows(many, "pairs")} == by_id and len(by_id) == 40
    files = {name: one.out.read_bytes(name) for name in one.out.list(recursive=True)}
    one.out.remove(next(name for name in files if name.startswith("pairs/")))
    again = read(tmp_path, sources, "one", num_pairs=40)
    assert {name: again.out.read_bytes(name) for name in again.out.list(recursive=True)} == files
    other = read(tmp_path, sources, "other", num_pairs=40, seed=1)
    assert {row["pair_id"] for row in table_rows(other, "pairs")} != set(by_id)


def test_bad_rows_are_replaced_and_told_of(tmp_path):
    path = omniedit(tmp_path / "o", 30) / "data" / "train-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows = [row | {"task": "removal"} for row in rows]
    rows[0]["src_img"] = {"bytes": None, "path": "/etc/hostname"}
    rows[1]["edited_img"] = {"bytes": b"no picture", "path": None}
    rows[2]["edited_img"] = rows[2]["src_img"]
    rows[3]["edited_img"] = image(7, size=(30, 8))
    rows[4]["edited_img"] = image(7, size=(200, 160))
    rows[5]["edited_prompt_list"] = []
    pq.write_table(pa.Table.from_pylist(rows), path)
    context = read(tmp_path, {"omniedit": tmp_path / "o"}, num_pairs=30, max_pixels=10_000)
    letters = {int(row["pair_id"].split("#")[1]): row["reason"] for row in table_rows(context, "dead_letters")}
    assert {key: reason.split(":")[0] for key, reason in letters.items()} == {
        0: "empty", 1: "unreadable", 2: "unchanged", 3: "sizes_differ", 4: "too large", 5: "empty_field",
    }  # fmt: skip
    assert letters[1].endswith("(target_image)") and letters[0].endswith("(source_image)")
    assert len(table_rows(context, "pairs")) == 24 and context.figures["num_dead_letters"] == 6
    assert any(note.startswith("ingest_pairs: 24 of 30 pairs") for note in context.figures["notes"])
    some = read(tmp_path, {"omniedit": tmp_path / "o"}, "some", num_pairs=20, max_pixels=10_000)
    assert len(table_rows(some, "pairs")) == 20 and some.figures["notes"] != []
    assert table_rows(some, "pairs")[0].keys() == set(PAIRS_SCHEMA.names)


def test_a_target_of_another_size_is_scaled_to_its_source(tmp_path):
    path = hqedit(tmp_path / "h", 11) / "train-00000-of-00001.parquet"
    rows = [row | {"output_image": image(5, size=(20, 16))} for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), path)
    rows = table_rows(read(tmp_path, {"hqedit": tmp_path / "h"}, num_pairs=11), "pairs")
    assert {Image.open(io.BytesIO(row["target_image"])).size for row in rows} == {(10, 8)}


def test_magicbrush_as_published(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [
        {
            "img_id": f"{index}", "turn_index": 1, "source_img": image(2 * index), "mask_img": image(99),
            "instruction": "remove the dog", "target_img": image(2 * index + 1),
        }
        for index in range(3)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "dev-00000-of-00001.parquet")
    found = table_rows(read(tmp_path, {"magicbrush": tmp_path / "data"}, num_pairs=2), "pairs")
    assert len(found) == 2 and {row["edit_type"] for row in found} == {"remove"}
    assert json.loads(found[0]["metadata"]).keys() == {"dataset", "img_id", "turn_index", "instruction", "path"}
    number = int(found[1]["pair_id"].split("#")[1])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found[1]["target_image"]))), noise(2 * number + 1))


def test_webdataset_tars_have_the_same_names(tmp_path):
    folder = tmp_path / "magicbrush"
    folder.mkdir()
    with tarfile.open(folder / "000.tar", "w") as archive:
        for index in range(4):
            add_to_tar(archive, f"{index}.source_img.png", png(2 * index))
            add_to_tar(archive, f"{index}.target_img.jpg", png(2 * index + 1, format="JPEG"))
            text = b"{" if index == 3 else json.dumps({"img_id": str(index), "instruction": "remove the dog"}).encode()
            add_to_tar(archive, f"{index}.json", text)
        add_to_tar(archive, "4.json", b'{"instruction": "remove it"}')
        add_to_tar(archive, "5.source_img.png", png(0))
        add_to_tar(archive, "../../6.source_img.png", png(0))
        link = tarfile.TarInfo("7.source_img.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    context = read(tmp_path, {"magicbrush": folder}, num_pairs=3)
    rows = table_rows(context, "pairs")
    assert [row["pair_id"] for row in rows] == [f"magicbrush/000.tar#{index}" for index in range(3)]
    assert json.loads(rows[1]["metadata"])["img_id"] == "1"
    letters = {row["pair_id"].split("#")[1]: row["reason"].split(":")[0] for row in table_rows(context, "dead_letters")}
    assert letters == {"3": "unreadable", "4": "missing", "5": "missing", "../../6": "missing"}


def test_errors_name_the_file_the_column_and_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no source is set"):
        read(tmp_path, {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"sources.hqedit: .*empty holds no Parquet file"):
        read(tmp_path, {"hqedit": tmp_path / "empty"})
    with pytest.raises(UserError, match=r"free-00000.parquet has no column 'input_image'.*columns.hqedit.source_image"):
        read(tmp_path, {"hqedit": ultraedit(tmp_path / "u")}, "columns")
    columns = {"hqedit": {"source_image": "source_image", "target_image": "edited_image", "instruction": "edit_prompt"}}
    named = read(tmp_path, {"hqedit": tmp_path / "u"}, "named", num_pairs=11, columns=columns)
    assert len(table_rows(named, "pairs")) == 11
    path = hqedit(tmp_path / "h", 11) / "train-00000-of-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + bytes(len(whole) // 2) + whole[8 + len(whole) // 2 :])
    with pytest.raises(UserError, match="train-00000-of-00001.parquet is a broken Parquet file"):
        read(tmp_path, {"hqedit": tmp_path / "h"}, "broken")
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable Parquet"):
        read(tmp_path, {"hqedit": tmp_path / "h"}, "no table")
    (tmp_path / "h" / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"a.tar.gz is a compressed tar"):
        read(tmp_path, {"hqedit": tmp_path / "h"})
    rows = [{"source_image": png(0), "target_image": png(1), "instruction": "x", "edit_type": "unheard of"}]
    (tmp_path / "own").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own" / "pairs.parquet")
    with pytest.raises(UserError, match=r"none of the 1 rows .* \(none was of a known type\)"):
        read(tmp_path, {"pairs": tmp_path / "own"}, "own")


def test_a_row_group_that_memory_can_not_hold_is_refused(tmp_path, monkeypatch):
    folder = hqedit(tmp_path / "h", 11)
    monkeypatch.setattr("stages.ingest.sources.MAX_GROUP_BYTES", 1000)
    rows = parquet_rows(Folder(folder), "train-00000-of-00001.parquet", {0}, ["edit"])
    assert next(rows)[1] == {"edit": WORDS["add"]}  # texts alone are small
    rows = parquet_rows(Folder(folder), "train-00000-of-00001.parquet", {0}, ["edit", "input_image"])
    with pytest.raises(UserError, match=r"train-00000-of-00001.parquet has a row group of 10 rows and \d+ bytes"):
        next(rows)


def test_tasks_and_words():
    for kind, instruction in WORDS.items():
        assert edit_type_of("ultraedit", None, instruction) == kind
    assert edit_type_of("omniedit", "Addition", "make the car red") == "add"
    assert edit_type_of("omniedit", "attribute_modification", "make the car red") == "color"
    assert edit_type_of("omniedit", "a new task", "remove the dog") == "remove"
    assert edit_type_of("hqedit", None, "do something nice") is None
    assert edit_type_of("pairs", "shape", "anything") == "shape"
    assert set(TYPE_SHARES) <= set(edit_types())
    assert ingest_pairs_sources(IngestPairsConfig(sources={"hqedit": "h"})) == ["h", str(EDIT_TYPES_FILE)]
    assert ingest_pairs_sources(IngestPairsConfig()) == []


def test_both_shares_are_met_where_there_is_enough():
    found = allot(10_000, np.full((11, 3), 9999), list(TYPE_SHARES.values()), [34, 33, 33])
    assert found.sum() == 10_000
    exact = np.array(list(TYPE_SHARES.values())) / sum(TYPE_SHARES.values()) * 10_000
    assert np.abs(found.sum(1) - exact).max() < 1
    assert np.abs(found.sum(0) - [3400, 3300, 3300]).max() <= 2


def test_a_type_without_a_source_is_made_up_for_by_the_others():
    available = np.array([[0, 500, 500], [500, 500, 500], [500, 0, 0]])
    found = allot(300, available, [1, 1, 1], [1, 1, 1])
    assert found.sum(1).tolist() == [100, 100, 100] and (found <= available).all()
    assert found[2].tolist() == [100, 0, 0]
    assert np.abs(found.sum(0) - 100).max() <= 2  # the second type's come from where the others' do not


def test_a_type_with_too_few_gives_all_and_the_others_share_its_place():
    available = np.array([[3, 2], [500, 500], [500, 500]])
    found = allot(305, available, [1, 1, 2], [1, 1])
    assert found.sum(1).tolist() == [5, 100, 200]
    assert allot(100, np.array([[3], [4]]), [1, 1], [1]).tolist() == [[3], [4]]
