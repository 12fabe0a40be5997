"""Encoding while training: pictures and texts instead of latents and embeddings on disk.

Costs every step the autoencoder and the text encoders, and their memory on every rank; saves the disk that
embeddings take (2 MB a text with FLUX's 512 T5 tokens).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cluster.errors import UserError
from stages.train.data import EncodedData, Rows
from stages.train.roles import Batch

if TYPE_CHECKING:
    from stages.train.backbones.backbone import BackboneEncoder

MARKER = "live.json"
"""Says how the pictures and texts of this folder are to be encoded: {model, dtype, max_text_tokens, num_frames}."""


@dataclasses.dataclass
class LiveData:
    """The rows of a folder of pictures, encoded batch by batch."""

    rows: Rows
    encoder: BackboneEncoder

    @classmethod
    def load(
        cls,
        path: Path,
        latents: Sequence[str],
        texts: Sequence[str],
        device: torch.device | str,
        labels: Sequence[str] = (),
    ) -> LiveData:
        """Opens a folder with a `live.json`. Raises UserError if the folder or its model can't be read."""
        from stages.train.backbones.backbone import loading
        from stages.train.backbones.models import resolved_model

        try:
            settings: dict[str, Any] = json.loads((path / MARKER).read_text())
            model, dtype = settings["model"], getattr(torch, settings["dtype"])
            max_text_tokens, num_frames = settings["max_text_tokens"], settings["num_frames"]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path / MARKER} can't be read ({error}). Make it anew with --force encode.") from None
        with loading(model, "encode.model") as backbone:
            encoder = backbone.Encoder(resolved_model(model), str(device), dtype, max_text_tokens, num_frames)
        return cls(Rows.load(path, latents, texts, labels), encoder)

    @property
    def grid(self) -> tuple[int, ...]:
        return self.rows.grid

    @property
    def labels(self) -> dict[str, list[str | None]]:
        return self.rows.labels

    def __len__(self) -> int:
        return len(self.rows.ids)

    def batch(
        self, rows: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Batch:
        """The given rows, encoded, on `device` in `dtype`."""
        latents = {
            name: self.encoder.encode_pixels(pixels.float() / 127.5 - 1).to(device, dtype)
            for name, pixels in self.rows.arrays_of(rows).items()
        }
        columns = {field: [column[row] for row in rows] for field, column in self.rows.texts.items()}
        unique = list(dict.fromkeys(text for column in columns.values() for text in column))
        embeds = {name: tensor.to(device, dtype) for name, tensor in self.encoder.encode_text(unique).items()}
        texts = {}
        for field, column in columns.items():
            places = [unique.index(text) for text in column]
            texts[field] = {name: tensor[places] for name, tensor in embeds.items()}
        return Batch([self.rows.ids[row] for row in rows], latents, texts, self.rows.labels_of(rows), self.grid)


def open_data(
    path: Path, latents: Sequence[str], texts: Sequence[str], device: torch.device | str, labels: Sequence[str] = ()
) -> EncodedData | LiveData:
    """The training data of a folder that `encode` made, encoded before or while training."""
    if (path / MARKER).exists():
        return LiveData.load(path, latents, texts, device, labels)
    return EncodedData.load(path, latents, texts, labels)
