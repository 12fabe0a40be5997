"""One file of a data set of pairs, Parquet or WebDataset tar: its texts at first, pictures of chosen rows later."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.folder import Folder
from stages.ingest.pair_layouts import PairLayout
from stages.ingest.sources import (
    IMAGE_SUFFIXES,
    PACKED_TAR_SUFFIXES,
    RawImage,
    is_plain,
    parquet_rows,
    raw_image,
    read_sidecar,
    tar_samples,
)


@dataclasses.dataclass(frozen=True)
class PairTexts:
    """A row before its pictures are read; `reason` says why it can't be used."""

    key: str  # of a table's row its number, of a tar's sample its key
    group: str  # rows of one group are read together
    instruction: str
    task: str | None
    reason: str = ""


def pair_files(source: str, dataset: str) -> tuple[Folder, list[str]]:
    """The tables and tars of a data set's folder. Raises UserError if there is none, or one is a compressed tar."""
    folder = Folder(source)
    names = folder.list(recursive=True)
    for name in names:
        if name.lower().endswith(PACKED_TAR_SUFFIXES):
            raise UserError(
                f"ingest_pairs.sources.{dataset}: {folder.path(name)} is a compressed tar, whose members can't be read "
                "in place. Unpack it to a plain .tar first (for example gunzip FILE.tar.gz)."
            )
    names = [name for name in names if name.lower().endswith((".parquet", ".tar"))]
    if not names:
        raise UserError(
            f"ingest_pairs.sources.{dataset}: {folder.url} holds no Parquet file and no .tar. Name the folder that the "
            "data set was downloaded to."
        )
    return folder, names


def read_texts(folder: Folder, name: str, layout: PairLayout, dataset: str) -> Iterator[PairTexts]:
    """Every row's instruction and task; no picture is read. Raises UserError for a broken file or a missing column."""
    if name.lower().endswith(".tar"):
        yield from _tar_texts(folder, name, layout)
        return
    needed = [column for column in dataclasses.astuple(layout) if column]
    try:
        with folder.open(name) as stream:
            parquet = pq.ParquetFile(stream)
            columns = parquet.schema_arrow.names
            ends = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"ingest_pairs.sources.{dataset}: {folder.path(name)} is not a readable Parquet file ({error}). Download "
            "it again, or take it out."
        ) from None
    if missing := [column for column in needed if column not in columns]:
        field = next(field for field, column in dataclasses.asdict(layout).items() if column == missing[0])
        raise UserError(
            f"ingest_pairs.sources.{dataset}: {folder.path(name)} has no column {missing[0]!r}; its columns are "
            f"{', '.join(columns)}. If another holds the {field}, name it with "
            f"--set ingest_pairs.columns.{dataset}.{field}=NAME."
        )
    group, left = 0, ends[0] if ends else 0
    for row, values in parquet_rows(folder, name, None, [c for c in (layout.instruction, layout.task) if c]):
        while left == 0:
            group, left = group + 1, ends[group + 1]
        left -= 1
        yield _texts(str(row), str(group), values, layout)


def read_pictures(
    folder: Folder, name: str, keys: Sequence[str], layout: PairLayout, max_bytes: int
) -> Iterator[tuple[str, RawImage, RawImage]]:
    """Source and target of these rows, in the order of the file; what can't be read comes with a reason."""
    columns = (layout.source_image, layout.target_image)
    if name.lower().endswith(".tar"):
        samples = tar_samples(folder, name)
        with folder.open(name) as stream:
            for key in (key for key in samples if key in set(keys)):
                metadata = read_sidecar(stream, ".json", *samples[key][".json"][1:])
                source, target = (_member(stream, samples[key], column, max_bytes) for column in columns)
                yield key, dataclasses.replace(source, metadata=metadata), target
        return
    with folder.open(name) as stream:
        schema = pq.ParquetFile(stream).schema_arrow
    plain = [field.name for field in schema if field.name not in columns and is_plain(field.type)]
    for row, values in parquet_rows(folder, name, {int(key) for key in keys}, [*columns, *plain]):
        target = values.pop(layout.target_image)
        source = raw_image(values, layout.source_image, max_bytes)
        yield str(row), source, raw_image({layout.target_image: target}, layout.target_image, max_bytes)


def rank(seed: int, dataset: str, name: str, texts: PairTexts) -> str:
    """Where a row stands in the order of drawing, as hex: by its group's hash, within the group by its own.

    So what is drawn hangs on names alone, and comes from few row groups: of the others no picture is read.
    """
    place = f"{seed}:{dataset}:{name}:{texts.group}"
    return _digest(place) + _digest(f"{place}:{texts.key}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _texts(key: str, group: str, values: dict[str, Any], layout: PairLayout) -> PairTexts:
    instruction = values.get(layout.instruction)
    if isinstance(instruction, list):
        instruction = instruction[0] if instruction else None
    task = values.get(layout.task) if layout.task else None
    if not isinstance(instruction, str) or not instruction.strip():
        return PairTexts(key, group, "", None, f"empty_field: {layout.instruction} holds no text")
    return PairTexts(key, group, " ".join(instruction.split()), task if isinstance(task, str) else None)


def _tar_texts(folder: Folder, name: str, layout: PairLayout) -> Iterator[PairTexts]:
    samples = tar_samples(folder, name)
    with folder.open(name) as stream:
        for key, members in samples.items():
            missing = [c for c in (layout.source_image, layout.target_image) if _suffix(members, c) is None]
            if ".json" not in members:
                yield PairTexts(key, key, "", None, f"missing: there is no {key}.json")
            elif missing:
                yield PairTexts(
                    key, key, "", None, f"missing: there is no picture {key}.{missing[0]}.jpg, .png or .webp"
                )
            else:
                values = read_sidecar(stream, ".json", *members[".json"][1:])
                if set(values) == {"note"}:
                    yield PairTexts(key, key, "", None, f"unreadable: {values['note']}")
                else:
                    yield _texts(key, key, values, layout)


def _suffix(members: dict[str, tuple[str, int, int]], column: str) -> str | None:
    return next((s for s in members if s.startswith(f".{column.lower()}.") and s.endswith(IMAGE_SUFFIXES)), None)


def _member(stream, members: dict[str, tuple[str, int, int]], column: str, max_bytes: int) -> RawImage:
    _, offset, size = members[_suffix(members, column)]
    if size > max_bytes:
        return RawImage(None, {}, f"too large: over {max_bytes} bytes")
    stream.seek(offset)
    data = stream.read(size)
    if len(data) < size:
        return RawImage(None, {}, "corrupt: the tar file ends inside this member")
    return RawImage(data, {})
