"""What the average of the student makes of a few held-out items: pictures, scores, losses by noise level."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from cluster.errors import UserError
from cluster.folder import Folder
from stages.train import flow
from stages.train.backbones.backbone import loading
from stages.train.backbones.clip_files import read_clip
from stages.train.backbones.models import resolved_model
from stages.train.backbones.pictures import Picture, to_clips
from stages.train.engine import Trainer

_COLUMNS = ["item_id", "image", "instruction", "reverse_instruction", "metadata"]
_NOISE_LEVELS = (0.2, 0.4, 0.6, 0.8)
_SEED = 20_250
_MAX_PIXELS = 50_000_000


@dataclasses.dataclass(frozen=True)
class Item:
    """A held-out picture, or the first frame of a clip, and an instruction. `metadata` is for the metric alone."""

    id: str
    image: Image.Image
    instruction: str
    reverse_instruction: str
    metadata: str
    frames: tuple[Image.Image, ...] = ()
    """Of a clip, all of them."""

    @property
    def source(self) -> Picture:
        """What is to be edited."""
        return self.frames or self.image


Metric = Callable[[Item, np.ndarray], dict[str, float]]
"""The scores of an edit: of a picture uint8 `[H, W, 3]`, of a clip all its frames `[F, H, W, 3]`."""


def scene_metric(item: Item, edited: np.ndarray) -> dict[str, float]:
    """The starter's oracle. For logs only: no gradient, no choice in training depends on it."""
    from stages.starter.scoring import score_item

    score = score_item(item.metadata, edited)
    names = ("edit_success", "preservation", "whole_scene_right")
    return {name: float(getattr(score, name)) for name in names}


METRICS: dict[str, Metric | None] = {"none": None, "scene": scene_metric}


def read_items(benchmark: Folder, num_items: int, num_frames: int = 1) -> list[Item]:
    """The first items of a benchmark's tables, clips with `num_frames` frames. Raises UserError if there is none."""
    items: list[Item] = []
    for name in benchmark.list(".parquet", recursive=True):
        table = benchmark.read_table(name)
        if not set(_COLUMNS) <= set(table.column_names):
            continue
        has_clips = "clip" in table.column_names
        for row in table.slice(0, num_items - len(items)).to_pylist():
            image = Image.open(io.BytesIO(row["image"]))
            if image.width * image.height > _MAX_PIXELS:
                raise UserError(f"Item {row['item_id']!r} of {benchmark.url} has more than 50 megapixels.")
            texts = (row["instruction"], row["reverse_instruction"])
            frames = tuple(read_clip(row["clip"], num_frames)) if has_clips else ()
            items.append(Item(row["item_id"], image.convert("RGB"), *texts, row["metadata"], frames))
    if not items:
        columns = ", ".join(_COLUMNS)
        raise UserError(f"The benchmark {benchmark.url} holds no table with the columns {columns}.")
    return items


class Preview:
    """Edits fixed items by the path that inference takes: the same tokens, texts, sampler and decoder.

    Texts and pictures are encoded once; the items' noise is the same every time, so only training changes
    what comes out.
    """

    def __init__(self, trainer: Trainer, items: Sequence[Item], metric: Metric | None, num_steps: int) -> None:
        config = trainer.config
        self.trainer, self.items, self.metric = trainer, items, metric
        with loading(config.model, f"{config.stage}.model") as backbone:
            dtype = getattr(torch, config.dtype)
            model = resolved_model(config.model)
            self.encoder = backbone.Encoder(model, str(trainer.device), dtype, num_frames=config.num_frames)
        self.width, self.height = items[0].image.size
        if self.encoder.grid(self.height, self.width) != trainer.data.grid:
            raise UserError(
                f"Previews: item {items[0].id!r} has {self.width}x{self.height} pixels, the training "
                "pictures are of another size. Turn previews off (preview_every=0) or take a benchmark of that size."
            )
        self.source, image_embeds = self.encoder.encode_reference([item.source for item in items])
        self.text = {**self.encoder.encode_text([item.instruction for item in items]), **image_embeds}
        self.reverse_text = self.encoder.encode_text([item.reverse_instruction for item in items])
        self.times = trainer.settings.few_step_times
        generator = torch.Generator().manual_seed(_SEED)
        shape = (*self.source.shape[:2], self.encoder.token_channels)
        noises = [torch.randn(shape, generator=generator) for _ in self.times or (1.0,)]
        self.noises = [noise.to(trainer.device) for noise in noises]
        self.nodes = self._nodes(num_steps).to(trainer.device)

    def _nodes(self, num_steps: int) -> torch.Tensor:
        """The sampler's times from 1 to 0, shifted towards noise as the model's own scheduler does."""
        return flow.sampling_nodes(num_steps, self.encoder.shift(self.source.shape[1]))

    def tokens(self) -> tuple[torch.Tensor, dict[str, float]]:
        """The edits as packed latents, and how well the sources come back from them, by noise level.

        That is the cycle's loss with the edit as reference and the reverse instruction. A few-step editor knows no
        other noise levels than its own, and one that makes clips from a picture can't be given a clip: they
        aren't asked. On every rank at once.
        """
        velocity, dtype = self.trainer.role("ema"), self.source.dtype
        state = self.noises[0]
        losses: dict[str, float] = {}

        def edit(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return velocity(x_t.to(dtype), t, self.text, self.source)

        def work() -> None:
            nonlocal state
            with torch.no_grad():
                if self.times:
                    state = flow.few_step(edit, self.noises, self.times)
                    return
                state = flow.euler(edit, self.noises[0], self.nodes)
                if state.shape != self.source.shape:
                    return
                edits, noise = state.to(dtype), self.noises[0].to(dtype)
                for level in _NOISE_LEVELS:
                    t = torch.full((len(edits),), level, device=edits.device)
                    x_t = flow.noised(self.source, noise, t)
                    loss = flow.velocity_loss(velocity(x_t, t, self.reverse_text, edits), noise - self.source)
                    losses[f"validation_cycle_t{level}"] = loss.mean().item()

        self.trainer.run(work)
        return state, losses

    def edits(self) -> tuple[list[np.ndarray], dict[str, float]]:
        """The items' edits as a `Metric` takes them, and the losses of `tokens`."""
        tokens, losses = self.tokens()
        clips = to_clips(self.encoder.decode_pixels(tokens.to(self.source.dtype), self.height, self.width))
        frames = [np.stack([np.asarray(frame) for frame in clip]) for clip in clips]
        return [f if item.frames else f[-1] for item, f in zip(self.items, frames, strict=True)], losses

    def __call__(self) -> tuple[dict[str, float], bytes]:
        """The losses and mean scores, and a PNG of sources and edits side by side."""
        edits, losses = self.edits()
        scores: dict[str, list[float]] = {}
        if self.metric:
            for item, edited in zip(self.items, edits, strict=True):
                for name, value in self.metric(item, edited).items():
                    scores.setdefault(f"preview_{name}", []).append(value)
        means = {name: float(np.mean(values)) for name, values in scores.items()}
        last = [edited[-1] if item.frames else edited for item, edited in zip(self.items, edits, strict=True)]
        return losses | means, self._grid([Image.fromarray(picture) for picture in last])

    def _grid(self, edits: Sequence[Image.Image], columns: int = 4, side: int = 128, line: int = 14) -> bytes:
        rows = -(-len(edits) // columns)
        sheet = Image.new("RGB", (columns * (2 * side + 8), rows * (side + line + 6)), "white")
        draw = ImageDraw.Draw(sheet)
        for index, (item, edit) in enumerate(zip(self.items, edits, strict=True)):
            left, top = index % columns * (2 * side + 8), index // columns * (side + line + 6)
            how = Image.Resampling.NEAREST if self.width < side else Image.Resampling.LANCZOS
            for place, picture in enumerate((item.frames[-1] if item.frames else item.image, edit)):
                sheet.paste(picture.resize((side, side), how), (left + place * side, top))
            draw.text((left, top + side), item.instruction[:42], fill="black")
        data = io.BytesIO()
        sheet.save(data, "PNG")
        return data.getvalue()
