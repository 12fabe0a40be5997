"""The ingest stage: images of any origin to sample shards with content ids, and dead letters with reasons."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from cluster.artifacts import Artifact
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.shards import run_shards
from stages.ingest.dead_letters import count_reasons, write_letters
from stages.ingest.decode import (
    MAX_PIXELS_LIMIT,
    UndecodableImage,
    content_id,
    decode_image,
    encode_png,
    max_file_bytes,
    shrink,
)
from stages.ingest.near_duplicates import NearIndex, difference_hash
from stages.ingest.openimages import describe_shards, read_described
from stages.ingest.sources import Entry, list_entries, open_source, read_entries

SAMPLES_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source", pa.string()),
        ("image", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("metadata", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
    ]
)


_HASHES = pa.schema([("source", pa.string()), ("hash", pa.uint64())])


class IngestConfig(StageConfig):
    """What is read, and how."""

    source: str = Field(
        "",
        description="Folder or file, path or URL: PNG, JPEG or WebP images, Parquet files with an image "
        "column, WebDataset tars. Empty: the images of the scenes stage.",
    )
    layout: Literal["folder", "openimages"] = Field(
        "folder", description="openimages: the folder's CSV files tell of the pictures, by their ids."
    )
    image_column: str = Field("image", description="The Parquet column with the images: bytes, or {bytes, path}.")
    max_pixels: int = Field(50_000_000, ge=1, le=MAX_PIXELS_LIMIT, description="Larger images become dead letters.")
    resize: int | None = Field(None, ge=1, description="Longest side after reduction; never enlarges.")
    near_duplicates: int | None = Field(
        None,
        ge=0,
        le=16,
        description="Of pictures whose 64-bit difference hashes differ in at most so many bits, only the first counts; "
        "none: all do.",
    )
    shard_size: int = Field(256, ge=1, description="Entries of the source in one shard.")
    num_workers: int = runtime(2, ge=1)


def ingest_sources(config: IngestConfig) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    return [config.source] if config.source else []


@dataclasses.dataclass(frozen=True)
class DecodeShard:
    """Reads and decodes one shard of the source's entries, and writes its samples and dead letters."""

    folder: Folder
    shards: Mapping[str, Sequence[Entry]]
    config: IngestConfig
    out: Folder

    def __call__(self, shard: str) -> None:
        samples, dead_letters, hashes = [], [], {}
        max_bytes = max_file_bytes(self.config.max_pixels)
        described = read_described(self.out, shard) if self.config.layout == "openimages" else {}
        for entry, raw in read_entries(self.folder, self.shards[shard], self.config.image_column, max_bytes):
            metadata = raw.metadata | described.get(entry.source, {})
            row = dict.fromkeys(SAMPLES_SCHEMA.names)
            row |= {
                "source": entry.source,
                "metadata": json.dumps(metadata, sort_keys=True),
                "outcome": "ok",
            }
            try:
                if raw.data is None:
                    raise UndecodableImage(raw.reason)
                image = decode_image(raw.data, self.config.max_pixels, _rotation(metadata))
                if self.config.near_duplicates is not None:
                    hashes[entry.source] = difference_hash(image)
                row["sample_id"] = content_id(image)
                image = shrink(image, self.config.resize)
                row |= {"image": encode_png(image), "width": image.width, "height": image.height}
                samples.append(row)
            except UndecodableImage as error:
                dead_letters.append(row | {"outcome": "failed", "reason": str(error)})
        write_letters(self.out, _plain_name(shard), dead_letters, SAMPLES_SCHEMA)
        if self.config.near_duplicates is not None:
            table = pa.table({"source": list(hashes), "hash": list(hashes.values())}, _HASHES)
            self.out.write_table(_hashes_name(shard), table)
        self.out.write_table(shard, pa.Table.from_pylist(samples, SAMPLES_SCHEMA))


def ingest_images(inputs: Mapping[str, Artifact], config: IngestConfig, context: Context) -> None:
    """Fills `samples/NNNNN.parquet` with what can be used and `dead_letters/NNNNN.parquet` with what can't,
    and why.

    Shards are runs of `shard_size` entries of the source in the order of their names, fixed before any is
    read. Of equal pictures, and of near ones if `near_duplicates` is set, the first counts, the others are dead
    letters.

    Raises:
        UserError: the source isn't there, holds no images, or none of them can be used.
    """
    folder, entries = _find_entries(inputs, config)
    size = config.shard_size
    shards = {
        f"samples/{index:05d}.parquet": entries[start : start + size]
        for index, start in enumerate(range(0, len(entries), size))
    }
    figures: dict[str, Any] = {}
    if config.layout == "openimages":
        bad_rows, figures = describe_shards(folder, shards, context)
        letters = [
            dict.fromkeys(SAMPLES_SCHEMA.names) | {"source": source, "outcome": "failed", "reason": reason}
            for source, reason in bad_rows.reasons.items()
        ]
        write_letters(context.out, "csv.parquet", letters, SAMPLES_SCHEMA)
    work = DecodeShard(folder, shards, config, context.out)
    run_shards(list(shards), work, context=context, num_workers=config.num_workers)
    num_samples = _set_duplicates_aside(context.out, list(shards), config, context)
    reasons = count_reasons(context.out)
    if num_samples == 0:
        worst, count = reasons.most_common(1)[0]
        raise UserError(
            f"ingest: none of the {len(entries)} images in {folder.url} can be used; most often: {worst} "
            f"({count}). The reasons stand in {context.out.path('dead_letters')}."
        )
    context.set_rows(num_samples)
    context.set_figures(
        figures
        | {
            "num_samples": num_samples,
            "num_dead_letters": sum(reasons.values()),
            "dead_letter_reasons": dict(sorted(reasons.items())),
        }
    )


def _find_entries(inputs: Mapping[str, Artifact], config: IngestConfig) -> tuple[Folder, list[Entry]]:
    if config.source:
        folder, only = open_source(config.source)
        if not folder.exists(only):
            raise UserError(
                f"ingest: there is no {config.source}. Name a folder of images, a Parquet file or a .tar "
                "with --set ingest.source=PATH."
            )
    elif "scenes" in inputs:
        folder, only = inputs["scenes"].folder.sub("images"), ""
    else:
        raise UserError("ingest: no source is set. Name a folder of images with --set ingest.source=PATH.")
    entries = list_entries(folder, only, config.image_column)
    if not any(entry.kind != "unsupported" for entry in entries):
        raise UserError(
            f"ingest: {folder.path(only)} holds no images. It needs PNG, JPEG or WebP files (subfolders are "
            "searched too), Parquet files with an image column, or WebDataset .tar files; name another with "
            "--set ingest.source=PATH."
        )
    return folder, entries


def _plain_name(shard: str) -> str:
    return shard.removeprefix("samples/")


def _hashes_name(shard: str) -> str:
    return shard.replace("samples/", "hashes/")


def _rotation(metadata: Mapping[str, Any]) -> int:
    """By how many degrees, against the clock, OpenImages says that the picture has to be turned."""
    try:
        return int(float(metadata.get("Rotation", 0)))
    except (TypeError, ValueError, OverflowError):
        return 0


def _set_duplicates_aside(out: Folder, shards: Sequence[str], config: IngestConfig, context: Context) -> int:
    """Moves all but the first of equal samples, and of near ones, to the dead letters; returns how many are left.

    A shard that lost rows is rewritten after its dead letters, so that doing this again after a crash ends
    the same.
    """
    first_source: dict[str, str] = {}
    near = None if config.near_duplicates is None else NearIndex(config.near_duplicates)
    for shard in shards:
        context.check()
        table = out.read_table(shard, columns=["sample_id", "source"])
        hashes = dict(zip(*out.read_table(_hashes_name(shard)).to_pydict().values(), strict=True)) if near else {}
        duplicates = {}
        for row, (sample_id, source) in enumerate(zip(*table.to_pydict().values(), strict=True)):
            if sample_id in first_source:
                duplicates[row] = f"duplicate: the same picture as {first_source[sample_id]}"
            elif near and (found := near.nearest_or_keep(source, hashes[source])):
                duplicates[row] = f"near_duplicate: {found[1]} of 64 bits differ from {found[0]}"
            else:
                first_source[sample_id] = source
        if not duplicates:
            continue
        rows = out.read_table(shard).to_pylist()
        name = f"dead_letters/{_plain_name(shard)}"
        letters = out.read_table(name).to_pylist() if out.exists(name) else []
        letters = [letter for letter in letters if not letter["reason"].startswith(("duplicate:", "near_duplicate:"))]
        letters += [
            rows[row] | {"image": None, "outcome": "failed", "reason": reason} for row, reason in duplicates.items()
        ]
        letters = sorted(letters, key=lambda letter: letter["source"])
        write_letters(out, _plain_name(shard), letters, SAMPLES_SCHEMA)
        kept = [row for index, row in enumerate(rows) if index not in duplicates]
        out.write_table(shard, pa.Table.from_pylist(kept, SAMPLES_SCHEMA))
    return len(first_source)
