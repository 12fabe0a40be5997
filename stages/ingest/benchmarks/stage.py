"""The ingest_benchmark stages: a published benchmark on disk to the table of items that editors and judges read."""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import pyarrow as pa
from PIL import Image
from pydantic import Field, model_validator

from cluster.artifacts import Artifact
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.shards import name_shards, run_shards
from stages.ingest.benchmarks.dreambooth import DreamBoothSettings, list_dreambooth
from stages.ingest.benchmarks.gedit import GEditSettings, list_gedit
from stages.ingest.benchmarks.imgedit import ImgEditSettings, list_imgedit
from stages.ingest.benchmarks.listing import (
    BENCHMARK_SCHEMA,
    CLIPS_SCHEMA,
    PUBLISHED_FILE,
    Choice,
    Listed,
    Listing,
    choose,
)
from stages.ingest.benchmarks.table import list_table
from stages.ingest.decode import (
    FORMATS,
    MAX_PIXELS_LIMIT,
    UndecodableImage,
    content_id,
    decode_image,
    encode_png,
    max_file_bytes,
    shrink,
)
from stages.ingest.frames import UnusableVideo, sample_frames, write_clip
from stages.ingest.sources import RawImage, parquet_rows, raw_image

# what should be there and isn't, without pictures, so that no stage takes it for items
MISSING_SCHEMA = pa.schema([(name, pa.string()) for name in ("item_id", "source_id", "edit_type", "outcome", "reason")])
SHOWN_PROBLEMS = 4


class IngestBenchmarkConfig(StageConfig):
    """Which benchmark, where it is, and what of it."""

    source: str = Field("", description="Its folder: a path or URL. Empty: the benchmark is that of the scene world.")
    layout: Literal["gedit", "imgedit", "dreambooth", "long_tail", "table"] = "table"
    gedit: GEditSettings = GEditSettings()
    imgedit: ImgEditSettings = ImgEditSettings()
    dreambooth: DreamBoothSettings = DreamBoothSettings()
    trial: int | None = Field(
        None, ge=1, description="Only the first so many items of each edit type; figures then are of a trial subset."
    )
    incomplete: Literal["refuse", "name"] = Field(
        "refuse", description="name: go on without what is missing; it counts as unscored in every figure."
    )
    max_pixels: int = Field(50_000_000, ge=1, le=MAX_PIXELS_LIMIT, description="Larger pictures can't be read.")
    resize: int | None = Field(None, ge=1, description="Longest side after reduction; never enlarges.")
    shard_size: int = Field(32, ge=1, description="Items in one table.")
    num_workers: int = runtime(2, ge=1)

    @model_validator(mode="after")
    def _what_is_read_has_a_place(self) -> Self:
        if told := sorted(self.model_fields_set - {"source"} if not self.source else ()):
            raise ValueError(f"{told[0]} is set and no source: name the benchmark's folder")
        return self

    def listing(self) -> Listing:
        """All items of the copy on disk. Raises UserError as the layout's reader does."""
        folder = Folder(self.source)
        match self.layout:
            case "gedit":
                return list_gedit(folder, self.gedit)
            case "imgedit":
                return list_imgedit(folder, self.imgedit)
            case "dreambooth":
                return list_dreambooth(folder, self.dreambooth)
        return list_table(folder, "image", "long_tail" if self.layout == "long_tail" else "")


class IngestCustomizationBenchmarkConfig(IngestBenchmarkConfig):
    """The same for objects that are to be shown in other settings."""

    layout: Literal["dreambooth", "table"] = "dreambooth"


class IngestVideoBenchmarkConfig(IngestBenchmarkConfig):
    """The same for clips, from MP4 files."""

    layout: Literal["video_style", "table"] = "video_style"
    num_frames: int = Field(81, ge=2, le=1000, description="Of a clip, as edit_video.num_frames.")
    frames_per_second: float = Field(16.0, gt=0, le=240, description="Of a clip, from the video's first frame on.")
    height: int = Field(480, ge=16, le=2160, description="Pixels; the video is cropped at its centre.")
    width: int = Field(832, ge=16, le=3840)
    shard_size: int = Field(2, ge=1, description="Clips in one table: 81 frames of 832x480 can take 50 MB.")

    def listing(self) -> Listing:
        """All items of the copy on disk. Raises UserError as the layout's reader does."""
        return list_table(Folder(self.source), "video", "video_style" if self.layout == "video_style" else "")


def ingest_benchmark_sources(config: IngestBenchmarkConfig) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    if not config.source:
        return []
    beside = [config.imgedit.edit_json] if config.layout == "imgedit" and config.imgedit.edit_json else []
    return [config.source, *beside, str(PUBLISHED_FILE)]


@dataclasses.dataclass(frozen=True)
class ReadItems:
    """Reads the pictures or clips of one shard's items; one that can't be read is written down as missing."""

    listing: Listing
    shards: Mapping[str, Sequence[Listed]]
    config: IngestBenchmarkConfig
    out: Folder

    def __call__(self, shard: str) -> None:
        rows, missing = [], []
        items = sorted(self.shards[shard], key=lambda item: (item.file, item.row or 0))
        for file, group in itertools.groupby(items, key=lambda item: item.file):
            for item, read in self._read(file, list(group)):
                if isinstance(read, str):
                    missing.append(_missing_row(item.item_id, item.edit_type, read))
                else:
                    rows.append(_row(item) | read)
        rows.sort(key=lambda row: row["item_id"])
        if missing:
            self.out.write_table(_missing_name(shard), pa.Table.from_pylist(missing, MISSING_SCHEMA))
        schema = CLIPS_SCHEMA if isinstance(self.config, IngestVideoBenchmarkConfig) else BENCHMARK_SCHEMA
        self.out.write_table(shard, pa.Table.from_pylist(rows, schema))

    def _read(self, file: str, items: Sequence[Listed]) -> Iterator[tuple[Listed, dict[str, Any] | str]]:
        """Each item with its columns, or with the reason why there are none."""
        if self.listing.column:
            by_row = {item.row: item for item in items}
            for row, values in parquet_rows(self.listing.folder, file, by_row, [self.listing.column]):
                raw = raw_image(values, self.listing.column, max_file_bytes(self.config.max_pixels))
                yield by_row[row], self._picture(raw, f"{file}, row {row}")
            return
        read = self._clip(file) if isinstance(self.config, IngestVideoBenchmarkConfig) else self._picture_file(file)
        for item in items:
            yield item, read

    def _picture_file(self, file: str) -> dict[str, Any] | str:
        max_bytes = max_file_bytes(self.config.max_pixels)
        try:
            with self.listing.folder.open(file) as stream:
                data = stream.read(max_bytes + 1)
        except OSError as error:
            return _unopened(file, error)
        too_large = RawImage(None, {}, f"too large: over {max_bytes} bytes")
        return self._picture(RawImage(data, {}) if len(data) <= max_bytes else too_large, file)

    def _picture(self, raw: RawImage, place: str) -> dict[str, Any] | str:
        """The picture's own bytes where they show as they are, else as PNG: upright, on white, reduced."""
        try:
            if raw.data is None:
                raise UndecodableImage(raw.reason)
            image = shrink(decode_image(raw.data, self.config.max_pixels), self.config.resize)
        except UndecodableImage as error:
            return f"{error} ({place})"
        data = raw.data if _shows_as(raw.data, image) else encode_png(image)
        return {"source_id": content_id(image), "image": data}

    def _clip(self, file: str) -> dict[str, Any] | str:
        config = self.config
        try:
            with self.listing.folder.open(file) as stream:
                frames = sample_frames(
                    stream, config.num_frames, config.frames_per_second, (config.width, config.height),
                    config.max_pixels,
                )  # fmt: skip
        except UnusableVideo as error:
            return f"{error} ({file})"
        except OSError as error:
            return _unopened(file, error)
        clip = write_clip(frames, config.frames_per_second)
        return {"source_id": content_id(frames[0]), "image": encode_png(frames[0]), "clip": clip}


def ingest_benchmark(inputs: Mapping[str, Artifact], config: IngestBenchmarkConfig, context: Context) -> None:
    """Fills `benchmark/` with the items (BENCHMARK_SCHEMA, CLIPS_SCHEMA), `missing/` with those that should be there
    and aren't, and writes `benchmark.json`: title, items, items expected.

    Raises:
        UserError: no source is set or it isn't of the layout; the copy isn't what is published or a picture can't be
            read, and `incomplete` is `refuse`; nothing can be read.
    """
    if not config.source:
        raise UserError(f"{context.stage}: no source is set. Name a folder with --set {context.stage}.source=PATH.")
    try:
        listing = config.listing()
        choice = choose(listing, config.trial)
    except UserError as error:
        raise UserError(f"{context.stage}: {error}") from None
    title = _title(listing, choice, config)
    if config.incomplete == "refuse":
        _refuse(context.stage, config.source, title, choice.problems)
    # in the order of the files: a table's pages are read once, and a picture of several items is decoded once
    in_order = sorted(choice.items, key=lambda item: (item.file, item.row or 0, item.item_id))
    by_id = {item.item_id: item for item in in_order}
    shards = name_shards(list(by_id), config.shard_size, prefix="benchmark/")
    work = ReadItems(
        listing, {name: [by_id[key] for key in keys] for name, keys in shards.items()}, config, context.out
    )
    run_shards(list(shards), work, context=context, num_workers=config.num_workers, total=len(by_id), unit="items")
    missing = _read_missing(context.out, shards)
    if config.incomplete == "refuse":
        _refuse(context.stage, config.source, title, [f"item {row['item_id']!r}: {row['reason']}" for row in missing])
    if len(missing) == len(by_id):
        raise UserError(f"{context.stage}: of {title} in {config.source} there is no item that can be read.")
    absent = _absent(choice)
    if absent:
        context.out.write_table("missing/absent.parquet", pa.Table.from_pylist(absent, MISSING_SCHEMA))
    for problem in choice.problems:
        context.incident(f"{context.stage}: {title} in {config.source}: {problem}.")
    num_items = len(by_id) - len(missing)
    figures = {
        "title": title,
        "num_items": num_items,
        "num_expected": num_items + len(missing) + len(absent),
        "by_type": dict(collections.Counter(item.edit_type for item in choice.items)),
        "problems": [*choice.problems, *(f"{row['item_id']}: {row['reason']}" for row in missing)],
    }
    context.out.write_json("benchmark.json", figures)
    context.set_rows(num_items)
    context.set_figures(figures)


def _title(listing: Listing, choice: Choice, config: IngestBenchmarkConfig) -> str:
    """What figures are of: a trial subset never goes by the benchmark's own name alone."""
    title = listing.published.title if listing.published else f"items of {config.source.rstrip('/').split('/')[-1]}"
    if config.layout == "gedit" and config.gedit.part == "intersection":
        title += {"en": ", English", "cn": ", Chinese"}[config.gedit.language]
    if config.trial is None:
        return title
    return f"{title}, trial subset of {len(choice.items)} items"


def _refuse(stage: str, source: str, title: str, problems: Sequence[str]) -> None:
    if problems:
        more = f", and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise UserError(
            f"{stage}: {source} isn't the whole of {title}: {'; '.join(problems[:SHOWN_PROBLEMS])}{more}. Complete it; "
            f"or go on with --set {stage}.incomplete=name, where what is missing counts as unscored; or try a few "
            f"items of each type with --set {stage}.trial=2."
        )


def _row(item: Listed) -> dict[str, Any]:
    fields = ("item_id", "edit_type", "instruction", "reverse_instruction", "src_caption", "tgt_caption")
    return {name: getattr(item, name) for name in fields} | {"metadata": json.dumps(item.metadata, sort_keys=True)}


def _missing_row(item_id: str, edit_type: str, reason: str) -> dict[str, str]:
    # a source that nobody has seen is a cluster of its own
    return {"item_id": item_id, "source_id": item_id, "edit_type": edit_type, "outcome": "missing", "reason": reason}


def _absent(choice: Choice) -> list[dict[str, str]]:
    """A row for every item that the published counts have and the copy doesn't; what it asks for isn't known."""
    there = collections.Counter(item.edit_type for item in choice.items)
    return [
        _missing_row(
            f"{name}/absent-{number:03d}", name, "absent: the copy has fewer items of this type than published"
        )
        for name, count in choice.expected.items()
        for number in range(count - there[name])
    ]


def _missing_name(shard: str) -> str:
    return shard.replace("benchmark/", "missing/")


def _read_missing(out: Folder, shards: Sequence[str] | Mapping[str, Any]) -> list[dict[str, str]]:
    names = [_missing_name(shard) for shard in shards if out.exists(_missing_name(shard))]
    return [row for name in names for row in out.read_table(name).to_pylist()]


def _unopened(file: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"missing: there is no {file}"
    return f"unreadable: {file} ({type(error).__name__})"


def _shows_as(data: bytes, image: Image.Image) -> bool:
    """Whether every reader takes these bytes for just this picture: plain RGB, upright, of this size, no animation."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as original:
        upright = original.getexif().get(0x0112, 1) == 1
        still = getattr(original, "n_frames", 1) == 1
        return (
            original.mode == "RGB" and not original.has_transparency_data and upright and still
            and original.size == image.size
        )  # fmt: skip
