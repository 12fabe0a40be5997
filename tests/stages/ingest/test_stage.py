import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.artifacts import Artifact, commit
from cluster.errors import UserError
from cluster.folder import Folder
from stages.ingest.stage import SAMPLES_SCHEMA, IngestConfig, ingest_images, ingest_sources
from tests.stages.ingest.context import make_context
from tests.stages.ingest.pictures import add_to_tar, png, table_rows

pytestmark = pytest.mark.usefixtures("local_ray")


def ingest(tmp_path, source, **options):
    context = make_context(tmp_path, "ingest")
    ingest_images({}, IngestConfig(source=str(source), num_workers=1, **options), context)
    return context


def samples(context, folder="samples"):
    return table_rows(context, folder)


@pytest.fixture
def folder(tmp_path):
    """Every kind of file that a folder can hold."""
    source = tmp_path / "photos"
    (source / "more").mkdir(parents=True)
    (source / "a.png").write_bytes(png(0))
    (source / "b.JPG").write_bytes(png(1, format="JPEG"))
    (source / "c.webp").write_bytes(png(2, format="WEBP", lossless=True))
    (source / "more" / "d.jpeg").write_bytes(png(3, format="JPEG"))
    (source / "again.png").write_bytes(png(0, compress_level=1))
    (source / "broken.png").write_bytes(png(4, (90, 90))[:3000])
    (source / "empty.jpg").write_bytes(b"")
    (source / "huge.png").write_bytes(png(5, (101, 100)))
    (source / "text.png").write_text("no image")
    (source / "moving.gif").write_bytes(png(6, format="GIF"))
    (source / "readme.txt").write_text("left alone")
    (source / ".hidden.png").write_bytes(png(7))
    return source


def test_folder_of_everything(tmp_path, folder):
    context = ingest(tmp_path, folder, max_pixels=10_000)
    rows = samples(context)
    assert [row["source"] for row in rows] == ["a.png", "b.JPG", "c.webp", "more/d.jpeg"]
    assert all(row["outcome"] == "ok" and row["reason"] is None for row in rows)
    assert len({row["sample_id"] for row in rows}) == 4
    first = Image.open(io.BytesIO(rows[0]["image"]))
    assert (first.format, first.mode, first.size) == ("PNG", "RGB", (10, 8))
    assert (rows[0]["width"], rows[0]["height"]) == (10, 8)
    letters = {row["source"]: row["reason"] for row in samples(context, "dead_letters")}
    assert {source: reason.split(":")[0] for source, reason in letters.items()} == {
        "again.png": "duplicate",
        "broken.png": "corrupt",
        "empty.jpg": "empty",
        "huge.png": "too large",
        "moving.gif": "unsupported",
        "text.png": "unreadable",
    }
    assert letters["again.png"].endswith("a.png")
    assert context.rows == 4
    assert context.figures["num_dead_letters"] == 6
    for name in context.out.list(".parquet", recursive=True):
        assert context.out.read_table(name).schema == SAMPLES_SCHEMA


def test_duplicates_across_shards_and_any_number_of_entries_in_a_shard(tmp_path, folder):
    whole = ingest(tmp_path / "whole", folder, max_pixels=10_000)
    parts = ingest(tmp_path / "parts", folder, max_pixels=10_000, shard_size=1)
    assert samples(parts) == samples(whole)
    by_source = {row["source"]: row for row in samples(whole, "dead_letters")}
    assert {row["source"]: row for row in samples(parts, "dead_letters")} == by_source


def test_a_second_attempt_goes_on_and_ends_the_same(tmp_path, folder):
    context = ingest(tmp_path, folder, max_pixels=10_000, shard_size=3)
    files = {name: context.out.read_bytes(name) for name in context.out.list(recursive=True)}
    lost = sorted(name for name in files if name.startswith("samples/"))[1]
    context.out.remove(lost)
    again = ingest(tmp_path, folder, max_pixels=10_000, shard_size=3)
    assert {name: again.out.read_bytes(name) for name in again.out.list(recursive=True)} == files


def test_resize_reduces_the_longest_side_and_keeps_the_id(tmp_path, folder):
    small = ingest(tmp_path / "small", folder, max_pixels=10_000, resize=5)
    whole = ingest(tmp_path / "whole", folder, max_pixels=10_000)
    assert [(row["width"], row["height"]) for row in samples(small)] == [(5, 4)] * 4
    assert [row["sample_id"] for row in samples(small)] == [row["sample_id"] for row in samples(whole)]


def test_parquet_with_bytes_and_with_structs(tmp_path):
    source = tmp_path / "tables"
    source.mkdir()
    plain = pa.table({"image": [png(0), None, png(1)], "label": ["cat", "dog", None], "vector": [[1.0], [2.0], [3.0]]})
    pq.write_table(plain, source / "a.parquet", row_group_size=2)
    structs = [{"bytes": png(2), "path": "x.png"}, {"bytes": None, "path": "y.png"}]
    pq.write_table(pa.table({"image": structs}), source / "b.parquet")
    context = ingest(tmp_path, source, shard_size=2)
    rows = samples(context)
    assert [row["source"] for row in rows] == ["a.parquet#0", "a.parquet#2", "b.parquet#0"]
    assert [json.loads(row["metadata"]) for row in rows] == [{"label": "cat"}, {}, {"path": "x.png"}]
    letters = samples(context, "dead_letters")
    assert [(row["source"], row["reason"].split(":")[0]) for row in letters] == [
        ("a.parquet#1", "empty"),
        ("b.parquet#1", "empty"),
    ]


def test_one_parquet_file_and_its_column(tmp_path):
    pq.write_table(pa.table({"picture": [png(0)]}), tmp_path / "one.parquet")
    assert len(samples(ingest(tmp_path, tmp_path / "one.parquet", image_column="picture"))) == 1
    with pytest.raises(UserError, match="no column 'image'; its columns are picture"):
        ingest(tmp_path / "again", tmp_path / "one.parquet")


def test_webdataset(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        add_to_tar(archive, "k/0001.png", png(0))
        add_to_tar(archive, "k/0001.json", b'{"label": 3}')
        add_to_tar(archive, "k/0002.txt", b"a red circle\n")
        add_to_tar(archive, "k/0002.jpg", png(1, format="JPEG"))
        add_to_tar(archive, "k/0003.source.png", png(2))
        add_to_tar(archive, "k/0004.png", b"")
        add_to_tar(archive, "../../escape.png", png(3))
        link = tarfile.TarInfo("k/0005.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    context = ingest(tmp_path, tmp_path / "set.tar")
    rows = {row["source"]: row for row in samples(context)}
    assert set(rows) == {
        "set.tar/k/0001.png", "set.tar/k/0002.jpg", "set.tar/k/0003.source.png", "set.tar/../../escape.png"
    }  # fmt: skip
    assert json.loads(rows["set.tar/k/0001.png"]["metadata"]) == {"label": 3}
    assert json.loads(rows["set.tar/k/0002.jpg"]["metadata"]) == {"text": "a red circle"}
    assert [row["reason"].split(":")[0] for row in samples(context, "dead_letters")] == ["empty"]
    assert not list(tmp_path.rglob("*.png")) and not (tmp_path / "../../escape.png").exists()


def test_a_member_larger_than_any_image_is_not_read(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        add_to_tar(archive, "a.png", png(0))
        add_to_tar(archive, "b.png", bytes(3 << 20))
    context = ingest(tmp_path, tmp_path / "set.tar", max_pixels=1000)
    assert [row["reason"].split(":")[0] for row in samples(context, "dead_letters")] == ["too large"]


def test_images_of_the_scenes_stage(tmp_path):
    folder = Folder(tmp_path / "scenes" / "ffff")
    folder.write_bytes("images/0.png", png(0))
    folder.write_bytes("held_out/1.png", png(1))
    manifest = commit(
        folder, stage="scenes", version="1", fingerprint="ffff", config={}, identity={}, parents={},
        run_id="r", code_version="test",
    )  # fmt: skip
    context = make_context(tmp_path, "ingest")
    ingest_images({"scenes": Artifact("scenes", "ffff", folder, manifest)}, IngestConfig(num_workers=1), context)
    assert [row["source"] for row in samples(context)] == ["0.png"]


def test_only_an_outside_source_belongs_to_the_fingerprint():
    assert ingest_sources(IngestConfig(source="photos")) == ["photos"]
    assert ingest_sources(IngestConfig()) == []


def test_user_errors_name_the_path_and_what_to_do(tmp_path):
    with pytest.raises(UserError, match="there is no .*nowhere.*--set ingest.source"):
        ingest(tmp_path, tmp_path / "nowhere")
    with pytest.raises(UserError, match="no source is set"):
        ingest(tmp_path, "")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(UserError, match="texts holds no images"):
        ingest(tmp_path, tmp_path / "texts")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("x")
    with pytest.raises(UserError, match="none of the 1 images .* unreadable"):
        ingest(tmp_path, tmp_path / "bad")
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="compressed tar"):
        ingest(tmp_path, tmp_path / "a.tar.gz")
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match="not a readable tar"):
        ingest(tmp_path, tmp_path / "a.tar")
    (tmp_path / "a.parquet").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match="not a readable Parquet"):
        ingest(tmp_path, tmp_path / "a.parquet")
