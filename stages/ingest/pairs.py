"""The ingest_pairs stage: a balanced subset of published edit pairs, as evolve, encode_pairs and rollout read them
(Video4Edit, section 3.2).
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cluster.artifacts import Artifact
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.shards import name_shards, run_shards
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
from stages.ingest.pair_files import pair_files, rank, read_pictures, read_texts
from stages.ingest.pair_layouts import EDIT_TYPES_FILE, LAYOUTS, LayoutName, PairLayout, edit_type_of
from stages.ingest.pair_shares import SOURCE_SHARES, TYPE_SHARES, allot
from stages.ingest.sources import RawImage

MAX_ASPECT_CHANGE = 0.02  # a target of another size is scaled to the source's if their shapes differ no more
PAIRS_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("edit_type", pa.string()),
        ("instruction", pa.string()),
        ("source_image", pa.binary()),
        ("target_image", pa.binary()),
        ("metadata", pa.string()),
    ]
)
# without pictures, so that no stage takes dead letters for pairs
DEAD_LETTERS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("pair_id", "edit_type", "instruction", "outcome", "reason")]
)
CANDIDATES_SCHEMA = pa.schema([(name, pa.string()) for name in ("rank", "key", "edit_type", "text")])


class IngestPairsConfig(StageConfig):
    """Which data sets of pairs, and how much of each."""

    sources: dict[LayoutName, str] = Field(
        {}, description="Folder, path or URL, by layout. Empty: pairs are those of the scene world."
    )
    columns: dict[LayoutName, dict[Literal["source_image", "target_image", "instruction", "task"], str]] = Field(
        {}, description="Other names of a layout's columns."
    )
    num_pairs: int = Field(10_000, ge=1)
    type_shares: dict[str, float] = Field(TYPE_SHARES, description="By edit type, relative to their sum.")
    source_shares: dict[LayoutName, float] = Field(
        SOURCE_SHARES, description="Of those that are given, relative to their sum; 33 where none stands."
    )
    max_pixels: int = Field(50_000_000, ge=1, le=MAX_PIXELS_LIMIT, description="Larger pictures are dead letters.")
    resize: int | None = Field(None, ge=1, description="Longest side after reduction; never enlarges.")
    seed: int = Field(0, ge=0)
    shard_size: int = Field(64, ge=1, description="Pairs in one shard.")
    num_workers: int = runtime(2, ge=1)

    def layout(self, dataset: LayoutName) -> PairLayout:
        return dataclasses.replace(LAYOUTS[dataset], **self.columns.get(dataset, {}))

    @property
    def num_candidates(self) -> int:
        """How many rows of one type and data set are remembered: enough to fill in for rows that turn out bad."""
        return self.num_pairs + max(64, self.num_pairs // 5)


def ingest_pairs_sources(config: IngestPairsConfig) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    return [*config.sources.values(), str(EDIT_TYPES_FILE)] if config.sources else []


@dataclasses.dataclass(frozen=True)
class File:
    """A table or a tar of a data set."""

    dataset: LayoutName
    folder: Folder
    name: str


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A row that may be drawn."""

    rank: str
    file: File
    key: str
    edit_type: str
    instruction: str

    @property
    def pair_id(self) -> str:
        return f"{self.file.dataset}/{self.file.name}#{self.key}"

    @property
    def cell(self) -> tuple[str, str]:
        return self.edit_type, self.file.dataset


@dataclasses.dataclass(frozen=True)
class ListCandidates:
    """Reads one file's texts; of each edit type the rows that come first in the order of drawing are written."""

    files: Mapping[str, File]
    config: IngestPairsConfig
    out: Folder

    def __call__(self, shard: str) -> None:
        file, config = self.files[shard], self.config
        counts: collections.Counter[str] = collections.Counter()
        kept: dict[str, list[tuple[str, str, str, str]]] = collections.defaultdict(list)
        letters = []
        for texts in read_texts(file.folder, file.name, config.layout(file.dataset), file.dataset):
            counts["num_rows"] += 1
            if texts.reason:
                pair_id = f"{file.dataset}/{file.name}#{texts.key}"
                letters.append({"pair_id": pair_id, "outcome": "failed", "reason": texts.reason})
                continue
            edit_type = edit_type_of(file.dataset, texts.task, texts.instruction)
            if edit_type not in config.type_shares:
                counts["num_rows_of_no_type"] += 1
                continue
            counts[edit_type] += 1
            rows = kept[edit_type]
            place = rank(config.seed, file.dataset, file.name, texts)
            rows.append((place, texts.key, edit_type, texts.instruction))
            if len(rows) >= 2 * config.num_candidates:
                rows[:] = sorted(rows)[: config.num_candidates]
        rows = sorted(itertools.chain.from_iterable(sorted(rows)[: config.num_candidates] for rows in kept.values()))
        columns = zip(*rows, strict=True) if rows else [()] * len(CANDIDATES_SCHEMA)
        table = pa.table([pa.array(column, pa.string()) for column in columns], CANDIDATES_SCHEMA)
        write_letters(self.out, _letters_name(shard), letters, DEAD_LETTERS_SCHEMA)
        self.out.write_table(shard, table.replace_schema_metadata({"counts": json.dumps(counts, sort_keys=True)}))


@dataclasses.dataclass(frozen=True)
class DecodePairs:
    """Reads one shard's pictures, and writes its pairs and dead letters."""

    shards: Mapping[str, Sequence[Candidate]]
    config: IngestPairsConfig
    out: Folder

    def __call__(self, shard: str) -> None:
        rows, letters, config = [], [], self.config
        for file, group in itertools.groupby(self.shards[shard], lambda candidate: candidate.file):
            chosen = {candidate.key: candidate for candidate in group}
            layout = config.layout(file.dataset)
            max_bytes = max_file_bytes(config.max_pixels)
            for key, source, target in read_pictures(file.folder, file.name, list(chosen), layout, max_bytes):
                pair = chosen[key]
                row = {"pair_id": pair.pair_id, "edit_type": pair.edit_type, "instruction": pair.instruction}
                try:
                    pictures = self._pictures(source, target)
                    metadata = {"dataset": file.dataset} | source.metadata
                    rows.append(row | pictures | {"metadata": json.dumps(metadata, sort_keys=True)})
                except UndecodableImage as error:
                    letters.append(row | {"outcome": "failed", "reason": str(error)})
        write_letters(self.out, _letters_name(shard), letters, DEAD_LETTERS_SCHEMA)
        self.out.write_table(shard, pa.Table.from_pylist(rows, PAIRS_SCHEMA))

    def _pictures(self, *raw: RawImage) -> dict[str, bytes]:
        images = []
        for field, found in zip(("source_image", "target_image"), raw, strict=True):
            try:
                if found.data is None:
                    raise UndecodableImage(found.reason)
                images.append(shrink(decode_image(found.data, self.config.max_pixels), self.config.resize))
            except UndecodableImage as error:
                raise UndecodableImage(f"{error} ({field})") from None
        source, target = images
        if source.size != target.size:
            change = source.width * target.height / (source.height * target.width)
            if abs(change - 1) > MAX_ASPECT_CHANGE:
                sizes = f"{source.width}x{source.height} and {target.width}x{target.height}"
                raise UndecodableImage(f"sizes_differ: {sizes} pixels are of different shapes")
            target = target.resize(source.size)
        if content_id(source) == content_id(target):
            raise UndecodableImage("unchanged: both pictures are the same")
        return {"source_image": encode_png(source), "target_image": encode_png(target)}


def ingest_pairs(inputs: Mapping[str, Artifact], config: IngestPairsConfig, context: Context) -> None:
    """Fills `pairs/` with `num_pairs` pairs (PAIRS_SCHEMA), balanced over edit types and data sets, and `dead_letters/`
    with the rows that can't be used.

    First all texts are read, and `candidates/` written; then pairs are drawn in the order of a hash of their file, row
    group and row, and their pictures read. A row that turns out bad is replaced by the next of its kind. Neither
    workers nor the order of files change what is drawn.

    Raises:
        UserError: no source is set or isn't there, a file is broken or lacks a column, or no pair can be used.
    """
    if not config.sources:
        raise UserError("ingest_pairs: no source is set. Name data sets with --set ingest_pairs.sources.LAYOUT=PATH.")
    files = {}
    for dataset, source in sorted(config.sources.items()):
        folder, names = pair_files(source, dataset)
        for name in names:
            files[f"candidates/{len(files):05d}.parquet"] = File(dataset, folder, name)
    work = ListCandidates(files, config, context.out)
    run_shards(list(files), work, context=context, num_workers=config.num_workers, unit="files")
    cells, counts = _read_candidates(files, config, context)
    figures = _draw(cells, config, context)
    reasons = count_reasons(context.out)
    num_rows = sum(sum(row.values()) for row in figures["pairs"].values())
    if not num_rows:
        told = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3)) or "none was of a known type"
        raise UserError(
            f"ingest_pairs: none of the {counts['num_rows']} rows in {', '.join(config.sources.values())} became a "
            f"pair ({told}). The reasons stand in {context.out.path('dead_letters')}."
        )
    for note in figures["notes"]:
        context.incident(note)
    context.set_rows(num_rows)
    context.set_figures(
        figures
        | {
            "num_pairs": num_rows,
            "num_rows": counts["num_rows"],
            "num_rows_of_no_type": counts["num_rows_of_no_type"],
            "available": {name: counts[name] for name in config.type_shares},
            "num_dead_letters": reasons.total(),
            "dead_letter_reasons": dict(sorted(reasons.items())),
        }
    )


def _read_candidates(
    files: Mapping[str, File], config: IngestPairsConfig, context: Context
) -> tuple[dict[tuple[str, str], list[Candidate]], collections.Counter[str]]:
    """By edit type and data set, in the order of drawing; and how many rows there are of each type."""
    cells: dict[tuple[str, str], list[Candidate]] = collections.defaultdict(list)
    counts: collections.Counter[str] = collections.Counter()
    for shard, file in files.items():
        context.check()
        with context.out.open(shard) as stream:
            table = pq.read_table(stream)
        counts.update(json.loads(table.schema.metadata[b"counts"]))
        touched = set()
        for place, key, edit_type, text in zip(*table.to_pydict().values(), strict=True):
            candidate = Candidate(place, file, key, edit_type, text)
            cells[candidate.cell].append(candidate)
            touched.add(candidate.cell)
        for cell in touched:
            cells[cell].sort(key=lambda candidate: (candidate.rank, candidate.pair_id))
            del cells[cell][config.num_candidates :]
    return cells, counts


def _draw(
    cells: Mapping[tuple[str, str], Sequence[Candidate]], config: IngestPairsConfig, context: Context
) -> dict[str, Any]:
    """Reads pairs until there are enough or no more; returns how many of what, and what was too few."""
    types, datasets = list(config.type_shares), sorted(config.sources)
    shares = [list(config.type_shares.values()), [config.source_shares.get(name, 33.0) for name in datasets]]
    grid = [[cells.get((kind, dataset), ()) for dataset in datasets] for kind in types]
    listed = np.array([[len(candidates) for candidates in row] for row in grid])
    taken, failed = np.zeros_like(listed), np.zeros_like(listed)
    for attempt in itertools.count():
        wanted = allot(config.num_pairs, listed - failed, *shares)
        good = taken - failed
        chosen: list[Candidate] = []
        for place in np.ndindex(*listed.shape):
            left = config.num_pairs - good.sum() - len(chosen)
            more = min(max(0, wanted[place] - good[place]), left, listed[place] - taken[place])
            chosen += grid[place[0]][place[1]][taken[place] : taken[place] + more]
            taken[place] += more
        if not chosen:
            break
        failures = _read_pairs(chosen, f"pairs/{attempt:02d}-", config, context)
        for kind, dataset in failures:
            failed[types.index(kind), datasets.index(dataset)] += 1
    even = np.array(shares[0]) / sum(shares[0]) * config.num_pairs
    notes = [
        f"ingest_pairs: {total} of {planned:.0f} pairs of type {kind!r}: there are no more that can be used. The other "
        "types took its place."
        for kind, planned, total in zip(types, even, good.sum(1), strict=True)
        if total < np.floor(planned)
    ]
    if good.sum() < config.num_pairs:
        notes.append(f"ingest_pairs: {good.sum()} of {config.num_pairs} pairs: the sources hold no more.")
    table = {
        kind: {dataset: int(count) for dataset, count in zip(datasets, row, strict=True)}
        for kind, row in zip(types, good, strict=True)
    }
    return {"pairs": table, "notes": notes}


def _read_pairs(
    chosen: Sequence[Candidate], prefix: str, config: IngestPairsConfig, context: Context
) -> list[tuple[str, str]]:
    """Reads these pairs on the workers; returns type and data set of those that failed."""
    in_order = sorted(chosen, key=lambda c: (c.file.dataset, c.file.name, len(c.key), c.key))
    by_id = {candidate.pair_id: candidate for candidate in in_order}
    shards = name_shards(list(by_id), config.shard_size, prefix=prefix)
    work = DecodePairs({name: [by_id[key] for key in keys] for name, keys in shards.items()}, config, context.out)
    run_shards(list(shards), work, context=context, num_workers=config.num_workers, total=len(chosen), unit="pairs")
    letters = [f"dead_letters/{_letters_name(shard)}" for shard in shards]
    letters = [name for name in letters if context.out.exists(name)]
    return [by_id[key].cell for name in letters for key in context.out.read_table(name)["pair_id"].to_pylist()]


def _letters_name(shard: str) -> str:
    return shard.replace("/", "-")
