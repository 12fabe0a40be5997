import os
import pickle
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from cluster.folder import Folder


def test_reads_what_it_wrote(folder: Folder):
    table = pa.table({"a": [1, 2], "b": ["x", "y"]})
    folder.write_table("shards/one.parquet", table)
    folder.write_json("value.json", {"b": 1, "a": [None, "é"]})
    folder.write_text("text.txt", "café")
    assert folder.read_table("shards/one.parquet") == table
    assert folder.read_table("shards/one.parquet", columns=["b"]).column_names == ["b"]
    assert folder.read_json("value.json") == {"a": [None, "é"], "b": 1}
    assert folder.read_text("text.txt") == "café"
    assert folder.exists("text.txt") and not folder.exists("other.txt")
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("other.txt")


def test_writing_again_replaces(folder: Folder):
    folder.write_text("a", "long content")
    folder.write_text("a", "short")
    assert folder.read_text("a") == "short"
    assert folder.sizes() == {"a": 5}


def test_lists_relative_names_without_temporary_and_hidden_ones(folder: Folder):
    for name in ("b.parquet", "a.parquet", "deep/er/c.parquet", "d.json", ".lease.json", ".tmp-12-a.parquet"):
        folder.write_text(name, "x")
    assert folder.list(".parquet") == ["a.parquet", "b.parquet"]
    assert folder.list(".parquet", recursive=True) == ["a.parquet", "b.parquet", "deep/er/c.parquet"]
    assert list(folder.sizes()) == ["a.parquet", "b.parquet", "d.json", "deep/er/c.parquet"]
    assert folder.subfolders() == ["deep"]
    assert ".lease.json" in folder.sizes(hidden=True)


def test_tables_are_found_by_their_columns(folder: Folder):
    for name, columns in {"a.parquet": ("x",), "deep/b.parquet": ("x", "y"), "c.parquet": ("y", "x", "z")}.items():
        folder.write_table(name, pa.table({column: [1] for column in columns}))
    folder.write_text("d.json", "{}")
    assert folder.tables_with(("x", "y")) == ["c.parquet", "deep/b.parquet"]


def test_a_folder_that_is_not_there_is_empty(folder: Folder):
    assert folder.list() == [] and folder.subfolders() == [] and folder.sizes() == {}
    folder.remove("nothing")
    folder.clear()


def test_clear_leaves_only_the_lease(folder: Folder):
    for name in ("a", "deep/b", ".attempt.json", ".lease.json"):
        folder.write_text(name, "x")
    folder.clear()
    assert list(folder.sizes(hidden=True)) == [".lease.json"]


def test_files_go_in_and_come_out(folder: Folder, tmp_path: Path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "sub" / "weights.bin").write_bytes(os.urandom(3_000_000))
    for name in ("config.json", "sub/weights.bin"):
        folder.put_file(source / name, f"model/{name}")
    assert folder.list(recursive=True) == ["model/config.json", "model/sub/weights.bin"]
    local = folder.local("model")
    assert (local / "sub" / "weights.bin").read_bytes() == (source / "sub" / "weights.bin").read_bytes()
    assert folder.sha256("model/config.json") == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    folder.put_file(source / "config.json", "again.json")
    assert folder.read_text("again.json") == "{}"


def test_a_write_without_room_leaves_nothing_and_says_where(tmp_path: Path):
    """With the limit that the system has for files of a process: writing past it fails as on a full disk."""
    folder = Folder(tmp_path / "root")
    folder.write_text("a", "old")
    source = tmp_path / "source"
    source.write_bytes(bytes(5000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        for write in (lambda: folder.write_text("a", "new" * 2000), lambda: folder.put_file(source, "a")):
            with pytest.raises(
                UserError, match=rf"^{tmp_path}/root/a can't be written: File too large, .* MB are free"
            ):
                write()
            with pytest.raises(OSError):
                write()
            assert os.listdir(folder.url) == ["a"] and folder.read_text("a") == "old"
        with pytest.raises(IsADirectoryError):
            Folder(tmp_path).write_text("root", "another error is told as it is")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_killed_writers_left_is_removed(tmp_path: Path):
    folder = Folder(tmp_path)
    for name in ("a", "deep/b", ".attempt.json", ".lease.json", "deep/.tmp-12-b", ".tmp-34-.lease.json"):
        folder.write_text(name, "x")
    folder.remove_temporary()
    assert list(folder.sizes(hidden=True)) == [".attempt.json", ".lease.json", ".tmp-34-.lease.json", "a", "deep/b"]


def test_equal_tables_give_equal_bytes(tmp_path: Path):
    folder = Folder(tmp_path)
    for name in ("one", "two"):
        folder.write_table(name, pa.table({"a": list(range(1000))}))
    assert folder.sha256("one") == folder.sha256("two")


def test_travels_and_knows_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert Folder("runs").url == str(tmp_path / "runs") == Folder(f"file://{tmp_path}/runs").url
    folder = pickle.loads(pickle.dumps(Folder("memory://a/b/")))
    assert folder == Folder("memory://a/b") and folder.path("c") == "memory://a/b/c"
    assert folder.sub("x").url == "memory://a/b/x"


def test_large_rows_are_written_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, table = Folder(tmp_path), pa.table({"picture": [bytes([number]) * 100 for number in range(50)]})
    folder.write_table("small.parquet", table)
    monkeypatch.setattr("cluster.folder._ROW_GROUP_BYTES", 1000)
    folder.write_table("large.parquet", table)
    sizes = {}
    for name in ("small.parquet", "large.parquet"):
        metadata = pq.ParquetFile(folder.path(name)).metadata
        sizes[name] = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        assert folder.read_table(name) == table
    assert sizes == {"small.parquet": [50], "large.parquet": [8] * 6 + [2]}
