"""The encode stage: pictures to latents and texts to embeddings, each once, in the form that training reads.

Training then needs neither autoencoder nor text encoders.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image
from pydantic import Field

from cluster.artifacts import Artifact
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.errors import UserError, one_line
from cluster.folder import Folder
from cluster.shards import run_shards
from stages.encode.rows import Row, Rows, pair_rows, tuple_rows
from stages.train.backbones.models import (
    Device,
    Dtype,
    model_sources,
    resolved_device,
    resolved_model,
)

if TYPE_CHECKING:
    import torch

    from stages.train.backbones.backbone import BackboneEncoder
    from stages.train.backbones.pictures import Picture

MAX_PIXELS = 50_000_000


class EncodeConfig(StageConfig):
    """By which model, at which size."""

    model: str = Field("stages/starter/models/flux", description="A diffusers pipeline's folder, or a hub id.")
    resolution: int | None = Field(
        None,
        ge=8,
        description="Side of the square that pictures are cropped to; none: as they are.",
    )
    dtype: Dtype = "float32"
    max_text_tokens: int = Field(512, ge=1, description="T5 tokens of a text, at most the model's own limit.")
    num_frames: int = Field(1, ge=1, description="Of the clips of a video model, as the training has it.")
    live: bool = Field(False, description="Keep pictures and texts, and encode them while training.")
    shard_size: int = Field(512, ge=1, description="Rows, or texts, in one shard.")
    batch_size: int = runtime(64, ge=1)
    num_workers: int = runtime(1, ge=1)
    num_cpus: float = runtime(1, ge=0, description="Of each worker.")
    num_gpus: float = runtime(0, ge=0, description="Of each worker.")
    device: Device = runtime("auto")


def encode_sources(config: EncodeConfig) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    return model_sources(config.model)


def encode_tuples(inputs: Mapping[str, Artifact], config: EncodeConfig, context: Context) -> None:
    """Encodes every training tuple that is ok, with its sample's picture as `source`.

    Needs `ingest` and the stage that wrote the tuples, of edits or of customization. Writes `rows/` and `texts/` as
    `stages.train.data` defines them.

    Raises:
        UserError: no tuple is ok, a sample is missing, the pictures don't fit the model or each other.
    """
    (tuples,) = (artifact for name, artifact in inputs.items() if name != "ingest")
    rows = tuple_rows(inputs["ingest"].folder, tuples.folder)
    run_encoding(rows, config, context, EncodeShard)


def encode_pairs(inputs: Mapping[str, Artifact], config: EncodeConfig, context: Context) -> None:
    """The same for true pairs: latents `source` and `target`, and the `instruction`. Raises the same."""
    (pairs,) = inputs.values()
    run_encoding(pair_rows(pairs.folder, ("instruction",)), config, context, EncodeShard)


def run_encoding(rows: Rows, config: EncodeConfig, context: Context, shard_class: type[EncodeShard]) -> None:
    """Encodes rows and their texts, shard by shard, on the configured workers. Raises as `encode_tuples` does."""
    if not rows.rows:
        raise UserError(f"{context.stage}: there is nothing to encode: no row in {rows.folder.url} is ok.")
    texts = sorted({text for row in rows.rows for text in row.texts.values()})
    parts = enumerate(in_batches(rows.rows, config.shard_size))
    row_shards = {f"rows/{index:05d}.parquet": part for index, part in parts}
    parts = enumerate(in_batches(texts, config.shard_size) if not config.live else ())
    text_shards = {f"texts/{index:05d}.parquet": part for index, part in parts}
    size = frame_size(_first_image(rows, config, shard_class))
    work = shard_class(rows, row_shards, text_shards, size, config, context.out, context.stage)
    run_shards(
        [*text_shards, *row_shards],
        work,
        context=context,
        num_workers=config.num_workers,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        total=len(rows.rows) + len(texts),
        unit="rows and texts",
    )
    if config.live:
        from stages.train.live import MARKER

        settings = {name: getattr(config, name) for name in ("model", "dtype", "max_text_tokens", "num_frames")}
        context.out.write_json(MARKER, settings)
    context.set_rows(len(rows.rows))
    context.set_figures({"num_rows": len(rows.rows), "num_texts": len(texts)})


def _first_image(rows: Rows, config: EncodeConfig, shard_class: type[EncodeShard]) -> Picture:
    first, column = rows.rows[0], next(iter(rows.image_columns.values()))
    table = rows.folder.read_table(first.file, [rows.key_column, column])
    place = table[rows.key_column].to_pylist().index(first.key)
    return shard_class.read(first.key, table[column][place].as_py(), config)


def frame_size(image: Picture) -> tuple[int, int]:
    """Width and height of a picture, or of a clip's frames."""
    return image.size if isinstance(image, Image.Image) else image[0].size


@dataclasses.dataclass
class EncodeShard:
    """Encodes one shard of rows or of texts; the model is loaded at the first and kept."""

    rows: Rows
    row_shards: Mapping[str, Sequence[Row]]
    text_shards: Mapping[str, Sequence[str]]
    size: tuple[int, int]  # width and height of every picture
    config: EncodeConfig
    out: Folder
    stage: str
    encoder: BackboneEncoder | None = None

    @staticmethod
    def read(key: str, data: bytes | None, config: EncodeConfig) -> Picture:
        """What a row stores. Raises UserError, naming the row, if it can't be read."""
        return read_image(key, data, config.resolution)

    def __call__(self, shard: str) -> None:
        if self.encoder is None:
            self.encoder = load_encoder(self.config, self.stage)
        if shard in self.text_shards:
            self._write_texts(shard, self.text_shards[shard])
        else:
            self._write_rows(shard, self.row_shards[shard])

    def _write_texts(self, shard: str, texts: Sequence[str]) -> None:
        import torch

        from stages.train.data import write_texts

        parts = [self.encoder.encode_text(batch) for batch in in_batches(texts, self.config.batch_size)]
        embeds = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
        write_texts(self.out, shard, texts, embeds)

    def _write_rows(self, shard: str, rows: Sequence[Row]) -> None:
        from stages.train.data import write_rows

        keys = list(dict.fromkeys(row.key for row in rows))
        positions = [keys.index(row.key) for row in rows]  # a picture with two tuples is encoded once
        arrays = {}
        for field in self.rows.image_columns:
            images = self._images(rows, field)
            wanted = [images[key] for key in keys]
            arrays[field] = (_pixels(wanted) if self.config.live else self._encode_images(wanted))[positions]
        width, height = self.size
        texts = {name: [row.texts[name] for row in rows] for name in rows[0].texts}
        labels = {name: [row.labels[name] for row in rows] for name in rows[0].labels}
        ids, grid = [row.id for row in rows], self.encoder.grid(height, width)
        write_rows(self.out, shard, ids, arrays, texts, grid, labels)

    def _images(self, rows: Sequence[Row], field: str) -> dict[str, Picture]:
        """The rows' pictures, by key. Raises UserError if their sizes don't fit."""
        wanted, column = {row.key for row in rows}, self.rows.image_columns[field]
        found = {}
        for file in dict.fromkeys(row.file for row in rows):
            table = self.rows.folder.read_table(file, [self.rows.key_column, column])
            for key, data in zip(table[self.rows.key_column].to_pylist(), table[column], strict=True):
                if key in wanted:
                    found[key] = self.read(key, data.as_py(), self.config)
        self._check_sizes(found)
        return found

    def _check_sizes(self, images: Mapping[str, Picture]) -> None:
        """All pictures of a training run have one size, and it is made of whole tokens."""
        side = self.encoder.token_size
        for key, image in images.items():
            width, height = frame_size(image)
            if (width, height) != self.size:
                raise UserError(
                    f"{self.stage}: picture {key!r} has {width}x{height} pixels, the first one "
                    f"{self.size[0]}x{self.size[1]}; one training run works on one size. Give it with --set "
                    f"{self.stage}.resolution=N."
                )
            if width % side or height % side:
                raise UserError(
                    f"{self.stage}: picture {key!r} has {width}x{height} pixels; this model works on "
                    f"sides that are multiples of {side}. Set one for all with --set {self.stage}.resolution=N."
                )

    def _encode_images(self, images: Sequence[Picture]) -> torch.Tensor:
        import torch

        from stages.train.backbones.pictures import to_pixels

        batches = in_batches(images, self.config.batch_size)
        return torch.cat([self.encoder.encode_pixels(to_pixels(batch)).cpu() for batch in batches])


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures as uint8 `[B, 3, H, W]`."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def load_encoder(config: EncodeConfig, stage: str = "encode") -> BackboneEncoder:
    """The autoencoder and text encoders of the configured model. Raises UserError if they can't be loaded."""
    import torch

    from stages.train.backbones.backbone import loading

    model = resolved_model(config.model)
    with loading(model, f"{stage}.model") as backbone:
        dtype = getattr(torch, config.dtype)
        device = resolved_device(config.device)
        return backbone.Encoder(model, device, dtype, config.max_text_tokens, config.num_frames)


def read_image(key: str, data: bytes | None, resolution: int | None) -> Image.Image:
    """A stored picture as RGB, reduced and centre-cropped to `resolution` if that is given.

    Raises UserError, naming the row, if it can't be read.
    """
    try:
        with Image.open(io.BytesIO(data or b""), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are over {MAX_PIXELS}")
            image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        text = one_line(error, 200)
        raise UserError(f"encode: picture {key!r} can't be read ({text}). Use --from ingest.") from None
    return cropped(image, resolution)


def cropped(image: Image.Image, resolution: int | None) -> Image.Image:
    """The picture reduced and centre-cropped to a square of `resolution`; None: as it is."""
    if resolution is None or image.size == (resolution, resolution):
        return image
    scale = resolution / min(image.size)
    width, height = (max(resolution, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def in_batches(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))
