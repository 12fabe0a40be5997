import pyarrow as pa

from cluster.artifacts import MANIFEST, artifact_folder, commit, damage, newest_manifest, read_artifact
from cluster.folder import Folder


def make(root: Folder, fingerprint: str, **fields):
    folder = artifact_folder(root, "numbers", fingerprint)
    folder.write_table("shard-0.parquet", pa.table({"n": [1, 2, 3]}))
    folder.write_table("shard-1.parquet", pa.table({"n": [4, 5]}))
    folder.write_json("extra/note.json", {"a": 1})
    folder.write_text(".lease.json", "{}")
    values = {
        "stage": "numbers",
        "version": "1",
        "fingerprint": fingerprint,
        "config": {"n": 5},
        "identity": {},
    }
    values |= {"parents": {}, "run_id": "r", "code_version": "c"}
    return commit(folder, **(values | fields))


def test_the_manifest_says_what_there_is(folder: Folder):
    manifest = make(folder, "aa")
    assert sorted(manifest.files) == ["extra/note.json", "shard-0.parquet", "shard-1.parquet"]
    artifact = read_artifact(folder, "numbers", "aa")
    assert artifact.manifest == manifest and damage(artifact) is None
    entry = manifest.files["extra/note.json"]
    assert entry.sha256 == artifact.folder.sha256("extra/note.json") and entry.size == 11
    assert manifest.rows == 5 and manifest.table_schemas == {".": {"n": "int64"}}
    assert artifact.folder.read_json(MANIFEST)["schema"] == {".": {"n": "int64"}}


def test_it_is_none_before_the_manifest(folder: Folder):
    artifact_folder(folder, "numbers", "aa").write_text("shard-0.parquet", "x")
    assert read_artifact(folder, "numbers", "aa") is None
    artifact_folder(folder, "numbers", "aa").write_text(MANIFEST, '{"stage": "numb')
    assert read_artifact(folder, "numbers", "aa") is None


def test_rows_can_be_stated(folder: Folder):
    assert make(folder, "aa", rows=17).rows == 17


def test_damage_is_named(folder: Folder):
    make(folder, "aa")
    artifact = read_artifact(folder, "numbers", "aa")
    artifact.folder.write_text("extra/note.json", "longer than it was")
    assert damage(artifact) == "extra/note.json of the artifact has 18 bytes instead of 11"
    artifact.folder.remove("extra/note.json")
    assert damage(artifact) == "extra/note.json is missing from the artifact"


def test_the_newest_is_the_one_made_last(folder: Folder):
    assert newest_manifest(folder, "numbers") is None
    make(folder, "bb")
    make(folder, "aa")
    artifact_folder(folder, "numbers", "cc").write_text("shard-0.parquet", "unfinished")
    assert newest_manifest(folder, "numbers").fingerprint == "aa"
