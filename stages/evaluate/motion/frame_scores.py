"""Scores of a clip from its frames, or from an embedding of each frame `[T, D]`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.evaluate.metrics import flicker


def temporal_flickering(frames: Sequence[np.ndarray]) -> float | None:
    """VBench's score, 1 for a still clip: (255 - mean absolute difference of neighbouring frames) / 255.

    `frames` are uint8 `[T, H, W, 3]`. None for a single frame.

    Raises:
        ValueError: frames of unequal sizes.
    """
    return 1 - flicker(frames) if len(frames) > 1 else None


def aesthetic_score(embeds: np.ndarray, weight: np.ndarray, bias: np.ndarray | float) -> float:
    """VBench's aesthetic quality: LAION's linear head on normalised CLIP ViT-L/14 embeddings / 10, meaned over frames.

    `embeds` are `[T, D]`, `weight` `[D]` or `[1, D]`, `bias` one number. About 0 to 1.

    Raises:
        ValueError: another shape, or an embedding that is zero.
    """
    weight = np.asarray(weight, dtype=np.float64).reshape(-1)
    embeds = _normalised(embeds)
    if embeds.shape[1] != len(weight):
        raise ValueError(
            f"the aesthetic head takes {len(weight)} numbers, the frames' embeddings have {embeds.shape[1]}"
        )
    return float((embeds @ weight + np.asarray(bias, dtype=np.float64).reshape(())).mean() / 10)


def _normalised(embeds: np.ndarray) -> np.ndarray:
    embeds = np.asarray(embeds, dtype=np.float64)
    if embeds.ndim != 2 or not len(embeds):
        raise ValueError(f"embeddings are [frames, channels], not {list(embeds.shape)}")
    lengths = np.linalg.norm(embeds, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError("an embedding is zero")
    return embeds / lengths
