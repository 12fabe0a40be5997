"""OpenImages as it is published: JPEGs named by their ids, and CSV files that tell of them.

The CSV files of a folder are told apart by their columns, not by their names. The list of images has millions of rows:
it is read once, row by row, and what belongs to pictures that are there is written beside each shard.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from stages.ingest.csv_rows import BadRows, csv_header, csv_lines, csv_rows
from stages.ingest.sources import Entry

IMAGE_COLUMNS = {"ImageID", "OriginalURL"}
LABEL_COLUMNS = {"ImageID", "LabelName", "Confidence"}
CLASS_COLUMNS = ["LabelName", "DisplayName"]
KEPT_COLUMNS = (
    "Subset", "OriginalURL", "OriginalLandingURL", "License", "AuthorProfileURL", "Author", "Title", "Rotation",
)  # fmt: skip
MIN_CONFIDENCE = 0.5  # people's labels are 0 or 1, a model's lie between
DRAWN = frozenset({"Art", "Cartoon", "Clip art", "Drawing", "Illustration", "Painting", "Sketch"})
_CHUNK_ROWS = 10_000
_SCHEMA = pa.schema([("source", pa.string()), ("metadata", pa.string())])


def describe_shards(
    folder: Folder, shards: Mapping[str, Sequence[Entry]], context: Context
) -> tuple[BadRows, dict[str, int]]:
    """Writes what the CSV files say about each shard's pictures to `described/NNNNN.parquet`; returns the rows that
    can't be read, and counts.

    `metadata` has the columns KEPT_COLUMNS, the picture's `labels` in words, and `photorealistic: false` where one of
    them is in DRAWN. Rows of pictures that aren't there are counted and left out; of several rows about one picture
    the first counts.

    Raises:
        UserError: there is no list of images among the CSV files, or one of them is broken.
    """
    files = _files_by_kind(folder)
    wanted = {_image_id(entry) for entries in shards.values() for entry in entries}
    bad = BadRows()
    path = context.scratch / "openimages.sqlite"
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as index:
        index.execute("PRAGMA journal_mode = OFF")
        index.execute("CREATE TABLE images (id TEXT PRIMARY KEY, metadata TEXT) WITHOUT ROWID")
        index.execute("CREATE TABLE labels (id TEXT, label TEXT, PRIMARY KEY (id, label)) WITHOUT ROWID")
        counts = {"num_csv_rows": 0, "num_csv_rows_without_image": 0}
        images = _images(folder, files["images"], wanted, bad, counts, context)
        index.executemany("INSERT OR IGNORE INTO images VALUES (?, ?)", images)
        labels = _labels(folder, files["labels"], wanted, bad, context)
        index.executemany("INSERT OR IGNORE INTO labels VALUES (?, ?)", labels)
        names = dict(_classes(folder, files["classes"], bad))
        num_described = 0
        for shard, entries in shards.items():
            context.check()
            described = _described(index, [_image_id(entry) for entry in entries], names)
            rows = [
                {"source": entry.source, "metadata": json.dumps(described[_image_id(entry)], sort_keys=True)}
                for entry in entries
                if _image_id(entry) in described
            ]
            num_described += len(rows)
            context.out.write_table(described_name(shard), pa.Table.from_pylist(rows, _SCHEMA))
    path.unlink()
    counts["num_images_without_csv_row"] = sum(map(len, shards.values())) - num_described
    return bad, counts


def described_name(shard: str) -> str:
    return shard.replace("samples/", "described/")


def read_described(out: Folder, shard: str) -> dict[str, dict[str, Any]]:
    """What the CSV files say about a shard's pictures, by entry."""
    columns = out.read_table(described_name(shard)).to_pydict()
    return {
        source: json.loads(metadata) for source, metadata in zip(columns["source"], columns["metadata"], strict=True)
    }


def _files_by_kind(folder: Folder) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {"images": [], "labels": [], "classes": []}
    names = [name for name in folder.list(recursive=True) if name.lower().endswith(".csv")]
    for name in names:
        header = csv_header(folder, name)
        if set(header) >= IMAGE_COLUMNS:
            files["images"].append(name)
        elif set(header) >= LABEL_COLUMNS:
            files["labels"].append(name)
        elif header == CLASS_COLUMNS or (len(header) == 2 and header[0].startswith("/m/")):
            files["classes"].append(name)  # until version 7 these had no first line with names
    if not files["images"]:
        raise UserError(
            f"ingest: none of the {len(names)} CSV files in {folder.url} has the columns ImageID and OriginalURL, as "
            "OpenImages' list of images has (for example validation-images-with-rotation.csv). Put it there, or read "
            "the pictures without it: --set ingest.layout=folder."
        )
    return files


def _image_id(entry: Entry) -> str:
    return posixpath.basename(entry.source).split(".")[0]


def _images(
    folder: Folder, names: Sequence[str], wanted: set[str], bad: BadRows, counts: dict[str, int], context: Context
) -> Iterator[tuple[str, str]]:
    for name in names:
        for number, row in csv_rows(folder, name, bad):
            if number % _CHUNK_ROWS == 0:
                context.check()
            counts["num_csv_rows"] += 1
            if not row["ImageID"]:
                bad.add(folder, name, number, "unreadable: no ImageID")
            elif row["ImageID"] in wanted:
                metadata = {column: row[column] for column in KEPT_COLUMNS if row.get(column)}
                yield row["ImageID"], json.dumps(metadata)
            else:
                counts["num_csv_rows_without_image"] += 1


def _labels(
    folder: Folder, names: Sequence[str], wanted: set[str], bad: BadRows, context: Context
) -> Iterator[tuple[str, str]]:
    for name in names:
        for number, row in csv_rows(folder, name, bad):
            if number % _CHUNK_ROWS == 0:
                context.check()
            if row["ImageID"] not in wanted:
                continue
            try:
                sure = float(row["Confidence"]) >= MIN_CONFIDENCE
            except ValueError:
                bad.add(folder, name, number, f"unreadable: Confidence {row['Confidence'][:40]!r} is no number")
                continue
            if sure:
                yield row["ImageID"], row["LabelName"]


def _classes(folder: Folder, names: Sequence[str], bad: BadRows) -> Iterator[tuple[str, str]]:
    for name in names:
        for number, fields in csv_lines(folder, name, bad):
            if len(fields) == 2:
                yield fields[0], fields[1]
            elif fields:
                bad.add(folder, name, number, f"unreadable: {len(fields)} fields, not two")


def _described(index: sqlite3.Connection, ids: Sequence[str], names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    described = {}
    for image_id in ids:
        found = index.execute("SELECT metadata FROM images WHERE id = ?", (image_id,)).fetchone()
        labels = index.execute("SELECT label FROM labels WHERE id = ?", (image_id,)).fetchall()
        words = sorted(names.get(label, label) for (label,) in labels)
        if found:
            described[image_id] = json.loads(found[0]) | ({"labels": words} if words else {})
            if not DRAWN.isdisjoint(words):
                described[image_id]["photorealistic"] = False
    return described
