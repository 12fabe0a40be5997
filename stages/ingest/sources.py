"""Where images come from: image files, Parquet tables and WebDataset tars in one folder, as a flat list of
entries.

Listing reads names, Parquet footers and tar headers, never pixels. Reading an entry takes bounded memory:
tar members are read in place (nothing is unpacked to disk, links are ignored), Parquet rows in small batches.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
import tarfile
from collections.abc import Container, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError, one_line
from cluster.folder import Folder

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
OTHER_IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".tif", ".tiff")
PACKED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_METADATA_BYTES = 64 * 1024
PARQUET_BATCH_ROWS = 32
PARQUET_BUFFER_BYTES = 1 << 20
MAX_GROUP_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image to be: `source` names it in tables, the rest says where its bytes are."""

    source: str
    file: str
    kind: str  # "image" | "parquet" | "tar" | "unsupported"
    row: int = 0  # of a Parquet file
    offset: int = 0  # of a tar member's bytes in the file
    size: int = 0
    sidecars: tuple[tuple[str, int, int], ...] = ()  # a tar sample's text members: suffix, offset, size


@dataclasses.dataclass(frozen=True)
class RawImage:
    """An entry's bytes (None: it can't be read, `reason` says why) and what else its source says about it."""

    data: bytes | None
    metadata: dict[str, Any]
    reason: str = ""


def open_source(source: str) -> tuple[Folder, str]:
    """The folder of a source (a folder's or one file's path or URL), and the file's name where it is one."""
    if source.lower().endswith((*IMAGE_SUFFIXES, ".parquet", ".tar", *PACKED_TAR_SUFFIXES)):
        parent, name = posixpath.split(source)
        return Folder(parent or "."), name
    return Folder(source), ""


def list_entries(folder: Folder, only: str, image_column: str) -> list[Entry]:
    """All entries of the folder, or of the file `only` in it, sorted by name.

    Raises:
        UserError: a packed tar, a broken tar or Parquet file, or a Parquet file without the image column.
    """
    entries: list[Entry] = []
    for name in [only] if only else folder.list(recursive=True):
        lowered = name.lower()
        if lowered.endswith(IMAGE_SUFFIXES):
            entries.append(Entry(name, name, "image"))
        elif lowered.endswith(OTHER_IMAGE_SUFFIXES):
            entries.append(Entry(name, name, "unsupported"))
        elif lowered.endswith(".parquet"):
            entries.extend(_list_parquet(folder, name, image_column))
        elif lowered.endswith(".tar"):
            entries.extend(_list_tar(folder, name))
        elif lowered.endswith(PACKED_TAR_SUFFIXES):
            raise UserError(
                f"ingest: {folder.path(name)} is a compressed tar, whose members can't be read in place. "
                "Unpack it to a plain .tar first (for example gunzip FILE.tar.gz)."
            )
    return entries


def read_entries(
    folder: Folder, entries: Sequence[Entry], image_column: str, max_bytes: int
) -> Iterator[tuple[Entry, RawImage]]:
    """Each entry with its bytes, in order. What can't be read comes with a reason, never as an exception."""
    position = 0
    while position < len(entries):
        first = entries[position]
        same_file = position
        while same_file < len(entries) and entries[same_file].file == first.file:
            same_file += 1
        group = entries[position:same_file]
        if first.kind == "parquet":
            yield from _read_parquet(folder, group, image_column, max_bytes)
        elif first.kind == "tar":
            yield from _read_tar(folder, group, max_bytes)
        elif first.kind == "unsupported":
            suffix = posixpath.splitext(first.file)[1].lower()
            yield (
                first,
                RawImage(None, {}, f"unsupported: {suffix} files are not read; convert to PNG, JPEG or WebP"),
            )
        else:
            with folder.open(first.file) as stream:
                data = stream.read(max_bytes + 1)
            yield first, _bounded(data, max_bytes, {})
        position = same_file


def _bounded(data: bytes, max_bytes: int, metadata: dict[str, Any]) -> RawImage:
    if len(data) > max_bytes:
        return RawImage(None, metadata, f"too large: over {max_bytes} bytes")
    return RawImage(data, metadata)


def _list_parquet(folder: Folder, name: str, image_column: str) -> Iterator[Entry]:
    try:
        with folder.open(name) as stream:
            parquet = pq.ParquetFile(stream)
            columns, num_rows = parquet.schema_arrow.names, parquet.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"ingest: {folder.path(name)} is not a readable Parquet file ({error}). Remove or repair it."
        ) from None
    if image_column not in columns:
        raise UserError(
            f"ingest: {folder.path(name)} has no column {image_column!r}; its columns are "
            f"{', '.join(columns)}. Name the one that holds the images with --set ingest.image_column=NAME."
        )
    for row in range(num_rows):
        yield Entry(f"{name}#{row}", name, "parquet", row=row)


def _read_parquet(
    folder: Folder, entries: Sequence[Entry], image_column: str, max_bytes: int
) -> Iterator[tuple[Entry, RawImage]]:
    wanted = {entry.row: entry for entry in entries}
    with folder.open(entries[0].file) as stream:
        schema = pq.ParquetFile(stream).schema_arrow
    plain = [field.name for field in schema if field.name != image_column and is_plain(field.type)]
    for row, values in parquet_rows(folder, entries[0].file, wanted, [image_column, *plain]):
        yield wanted[row], raw_image(values, image_column, max_bytes)


def parquet_rows(
    folder: Folder, name: str, wanted: Container[int] | None, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The wanted rows (None: all) of a Parquet file, in order, with their numbers.

    Only row groups with a wanted row are read, one at a time: its pages, which with pictures often hold all of the
    group, stay in memory while its rows are handed out a few at a time. Raises UserError if the file is broken or a
    group is over `MAX_GROUP_BYTES`.
    """
    try:
        with folder.open(name) as stream:
            parquet = pq.ParquetFile(stream, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False)
            first_row = 0
            for group in range(parquet.num_row_groups):
                num_rows = parquet.metadata.row_group(group).num_rows
                if wanted is None or any(row in wanted for row in range(first_row, first_row + num_rows)):
                    _check_group(folder, name, parquet.metadata.row_group(group), columns)
                    row = first_row
                    for batch in parquet.iter_batches(PARQUET_BATCH_ROWS, row_groups=[group], columns=list(columns)):
                        for index in range(batch.num_rows):
                            if wanted is None or row + index in wanted:
                                yield (
                                    row + index,
                                    {column: batch[column][index].as_py() for column in batch.schema.names},
                                )
                        row += batch.num_rows
                first_row += num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{folder.path(name)} is a broken Parquet file ({one_line(error, 200)}). Download it again, or take it out."
        ) from None


def _check_group(folder: Folder, name: str, group: pq.RowGroupMetaData, columns: Sequence[str]) -> None:
    chunks = [group.column(index) for index in range(group.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
    if size > MAX_GROUP_BYTES:
        raise UserError(
            f"{folder.path(name)} has a row group of {group.num_rows} rows and {size} bytes, over {MAX_GROUP_BYTES}; "
            "it would have to be held in memory. Write the file anew with smaller ones (row_group_size=100)."
        )


def is_plain(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
    )


def raw_image(values: dict[str, Any], image_column: str, max_bytes: int) -> RawImage:
    """The picture of a table's row (bytes, or Hugging Face's {bytes, path}), and the row's other values."""
    value = values.pop(image_column)
    metadata = _bounded_metadata(values)
    if isinstance(value, dict):  # Hugging Face's image struct {bytes, path}
        if value.get("path"):
            metadata["path"] = str(value["path"])[:1000]
        value = value.get("bytes")
        if value is None:
            return RawImage(None, metadata, "empty: the row has a path but no bytes; embed the images in the table")
    if value is None:
        return RawImage(None, metadata, "empty: the row has no image")
    if not isinstance(value, bytes):
        return RawImage(None, metadata, f"unreadable: column {image_column!r} holds {type(value).__name__}, not bytes")
    return _bounded(value, max_bytes, metadata)


def _bounded_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in metadata.items() if value is not None}
    if len(json.dumps(kept).encode()) > MAX_METADATA_BYTES:
        return {"note": f"metadata left out: over {MAX_METADATA_BYTES} bytes"}
    return kept


def _list_tar(folder: Folder, name: str) -> list[Entry]:
    entries = []
    for members in tar_samples(folder, name).values():
        sidecars = tuple((suffix, *members[suffix][1:]) for suffix in (".json", ".txt") if suffix in members)
        for suffix in sorted(members):
            if suffix.endswith(IMAGE_SUFFIXES):
                member, offset, size = members[suffix]
                entries.append(Entry(f"{name}/{member}", name, "tar", 0, offset, size, sidecars))
    return entries


def tar_samples(folder: Folder, name: str) -> dict[str, dict[str, tuple[str, int, int]]]:
    """The samples of a WebDataset tar, sorted by key: {suffix in lower case: (member, its bytes' offset, size)}.

    Raises UserError if it isn't a readable tar.
    """
    samples: dict[str, dict[str, tuple[str, int, int]]] = {}
    try:
        with folder.open(name) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                directory, base = posixpath.split(member.name)
                if base.startswith("."):
                    continue
                stem, _, suffix = base.partition(".")  # WebDataset: the key ends at the first dot
                place = (member.name, member.offset_data, member.size)
                samples.setdefault(posixpath.join(directory, stem), {})[f".{suffix.lower()}"] = place
                archive.members = []  # tarfile would keep every header
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{folder.path(name)} is not a readable tar file ({error}). Download it again, or take it out."
        ) from None
    return {key: samples[key] for key in sorted(samples)}


def _read_tar(folder: Folder, entries: Sequence[Entry], max_bytes: int) -> Iterator[tuple[Entry, RawImage]]:
    with folder.open(entries[0].file) as stream:
        for entry in entries:
            metadata: dict[str, Any] = {}
            for suffix, offset, size in entry.sidecars:
                metadata |= read_sidecar(stream, suffix, offset, size)
            if entry.size > max_bytes:
                yield entry, RawImage(None, metadata, f"too large: over {max_bytes} bytes")
                continue
            stream.seek(entry.offset)
            data = stream.read(entry.size)
            if len(data) < entry.size:
                yield entry, RawImage(None, metadata, "corrupt: the tar file ends inside this member")
            else:
                yield entry, RawImage(data, metadata)


def read_sidecar(stream: BinaryIO, suffix: str, offset: int, size: int) -> dict[str, Any]:
    """What a tar sample's .json or .txt says; a `note` where it can't be read."""
    if size > MAX_METADATA_BYTES:
        return {"note": f"metadata left out: over {MAX_METADATA_BYTES} bytes"}
    stream.seek(offset)
    text = stream.read(size).decode("utf-8", errors="replace")
    if suffix == ".txt":
        return {"text": text.strip()}
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return {"note": "metadata left out: not JSON"}
    return value if isinstance(value, dict) else {"json": value}
