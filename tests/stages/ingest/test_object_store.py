"""Every reader on an object store: what comes out is what comes of the same files on a disk, to the byte."""

import tarfile
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.folder import Folder
from stages.ingest import pairs, stage, videos
from tests.stages.ingest.context import make_context
from tests.stages.ingest.pictures import add_to_tar, png
from tests.stages.ingest.test_openimages import openimages
from tests.stages.ingest.test_pairs import omniedit
from tests.stages.ingest.test_videos import videoufo

__all__ = ["openimages"]


def anything(folder):
    """Pictures as files, in a table and in a tar; one is broken."""
    folder.mkdir()
    (folder / "a.png").write_bytes(png(0))
    (folder / "b.jpg").write_bytes(png(1, format="JPEG")[:100])
    pq.write_table(pa.table({"image": [png(2), png(3)], "label": ["x", None]}), folder / "c.parquet")
    with tarfile.open(folder / "d.tar", "w") as archive:
        add_to_tar(archive, "0.png", png(4))
        add_to_tar(archive, "0.json", b'{"label": "y"}')
    return folder


@pytest.fixture
def read(tmp_path, s3_endpoint, monkeypatch):
    """Runs a reader on a folder and on its copy in a bucket; what each wrote, by name."""
    for module in (stage, pairs, videos):
        monkeypatch.setattr(module, "run_shards", lambda shards, work, **_: [work(shard) for shard in shards])

    def call(function, config, source):
        bucket = f"readers-{uuid.uuid4().hex}"
        copy = Folder(f"s3://{bucket}/data")
        copy.fs.mkdir(bucket)
        local = Folder(source)
        for name in local.list(recursive=True):
            copy.write_bytes(name, local.read_bytes(name))
        written = []
        for place in (local, copy):
            context = make_context(tmp_path / place.protocol, function.__name__)
            function({}, config(place.url), context)
            written.append({name: context.out.sha256(name) for name in context.out.list(recursive=True)})
        return written

    return call


def test_pictures_tables_and_tars(read, tmp_path):
    local, remote = read(
        stage.ingest_images, lambda url: stage.IngestConfig(source=url, shard_size=3), anything(tmp_path / "any")
    )
    assert local == remote and {"samples/00000.parquet", "dead_letters/00000.parquet"} <= set(local)


def test_openimages(read, openimages):
    local, remote = read(
        stage.ingest_images,
        lambda url: stage.IngestConfig(source=url, layout="openimages", near_duplicates=2),
        openimages,
    )
    assert local == remote and "dead_letters/csv.parquet" in local


def test_pairs(read, tmp_path):
    local, remote = read(
        pairs.ingest_pairs, lambda url: pairs.IngestPairsConfig(sources={"omniedit": url}, num_pairs=6),
        omniedit(tmp_path / "o", 21),
    )  # fmt: skip
    assert local == remote and any(name.startswith("pairs/") for name in local)


def test_videos_are_read_in_place(read, tmp_path):
    def config(url):
        return videos.IngestVideosConfig(
            source=url, clips=True, num_frames=8, frames_per_second=8, height=16, width=32
        )  # fmt: skip

    local, remote = read(videos.ingest_videos, config, videoufo(tmp_path / "v"))
    assert local == remote and any(name.startswith("clips/") for name in local)
