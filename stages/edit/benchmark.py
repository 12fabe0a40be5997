"""The items of a benchmark's tables."""

from __future__ import annotations

import collections
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cluster.artifacts import Artifact
from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.editors import Item
from stages.train.backbones.clip_files import read_clip

ITEM_COLUMNS = ("item_id", "image", "instruction", "src_caption", "tgt_caption", "metadata")
MAX_PIXELS = 50_000_000
SIDE_MULTIPLE = 32  # of pictures that are scaled, as GEdit-Bench's own example has them; every model takes them


def given_benchmark(inputs: Mapping[str, Artifact], prefix: str) -> Artifact:
    """The benchmark that the stage got: one on disk, where a profile names its place, or that of the scene world."""
    name = f"{prefix}benchmark"
    return inputs.get(f"ingest_{name}") or inputs[name]


def _tables(benchmark: Folder) -> list[str]:
    found = []
    for name in benchmark.list(".parquet", recursive=True):
        with benchmark.open(name) as stream:
            if set(ITEM_COLUMNS) <= set(pq.ParquetFile(stream).schema_arrow.names):
                found.append(name)
    if not found:
        raise UserError(f"edit: {benchmark.url} holds no table with the columns {', '.join(ITEM_COLUMNS)}.")
    return found


def item_ids_of(benchmark: Folder) -> list[str]:
    """The ids of all items, in the order of the tables. Raises UserError for none or doubled ones."""
    counts: collections.Counter[str] = collections.Counter()
    for name in _tables(benchmark):
        counts.update(benchmark.read_table(name, ["item_id"])["item_id"].to_pylist())
    if not counts:
        raise UserError(f"edit: the benchmark in {benchmark.url} has no items.")
    item_id, count = counts.most_common(1)[0]
    if count > 1:
        raise UserError(f"edit: the benchmark in {benchmark.url} has item {item_id!r} {count} times.")
    return list(counts)


def check_captions(benchmark: Folder, methods: Mapping[str, Sequence[str]], stage: str) -> None:
    """Raises UserError if one of the methods draws from captions (their columns) that an item doesn't have."""
    for name in _tables(benchmark):
        for row in benchmark.read_table(name, ["item_id", "src_caption", "tgt_caption"]).to_pylist():
            for method, columns in methods.items():
                if empty := [column for column in columns if not row[column]]:
                    raise UserError(
                        f"{stage}: method {method} draws from captions, and item {row['item_id']!r} has no {empty[0]}. "
                        f"Leave the method out of {stage}.methods, or give a benchmark with captions."
                    )


def batches(
    benchmark: Folder, item_ids: Sequence[str], batch_size: int, num_frames: int = 1, num_pixels: int | None = None
) -> Iterator[tuple[list[Item], list[str]]]:
    """These items with their metadata, in batches of pictures of one size; or of clips, with `num_frames` above 1.

    Pictures are scaled to about `num_pixels`, if that is given.
    """
    wanted = set(item_ids)
    found: list[tuple[Item, str]] = []
    for name in _tables(benchmark):
        ids = benchmark.read_table(name, ["item_id"])["item_id"].to_pylist()
        if wanted.isdisjoint(ids):
            continue
        table = benchmark.read_table(name, [*ITEM_COLUMNS, *(("clip",) if num_frames > 1 else ())])
        for row in table.filter(pa.array([item_id in wanted for item_id in ids])).to_pylist():
            image = read_image(row["item_id"], row["image"])
            image = image if num_pixels is None else scaled(image, num_pixels)
            frames = read_frames(row["item_id"], row["clip"], num_frames) if num_frames > 1 else ()
            item = Item(row["item_id"], image, row["instruction"], row["src_caption"], row["tgt_caption"], frames)
            found.append((item, row["metadata"]))
    found.sort(key=lambda pair: pair[0].image.size)
    for _, group in itertools.groupby(found, key=lambda pair: pair[0].image.size):
        pairs = list(group)
        for start in range(0, len(pairs), batch_size):
            part = pairs[start : start + batch_size]
            yield [item for item, _ in part], [metadata for _, metadata in part]


def read_image(item_id: str, data: bytes | None) -> Image.Image:
    """An item's picture as RGB. Raises UserError, naming the item, if it can't be read."""
    try:
        with Image.open(io.BytesIO(data or b""), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are over {MAX_PIXELS}")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"edit: item {item_id!r} can't be read ({text}). Repair it.") from None


def scaled(image: Image.Image, num_pixels: int) -> Image.Image:
    """The picture with about so many pixels, its sides the nearest multiples of SIDE_MULTIPLE."""
    scale = math.sqrt(num_pixels / (image.width * image.height)) / SIDE_MULTIPLE
    size = tuple(max(1, round(side * scale)) * SIDE_MULTIPLE for side in image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def read_frames(item_id: str, data: bytes | None, num_frames: int) -> tuple[Image.Image, ...]:
    """An item's clip as so many RGB pictures. Raises UserError, naming the item, if it can't be read."""
    try:
        return tuple(read_clip(data, num_frames))
    except (OSError, ValueError, SyntaxError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"edit_video: the clip of item {item_id!r} can't be read ({text}). Repair it.") from None
