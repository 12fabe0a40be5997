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


def frame_similarity(source_embeds: np.ndarray, edited_embeds: np.ndarray) -> float:
    """The cosine of each frame's embedding with that of the source's frame, meaned over frames: DINO similarity.

    Both are `[T, D]`, class tokens as the model gives them.

    Raises:
        ValueError: unequal shapes, or an embedding that is zero.
    """
    source, edited = _pair(source_embeds, edited_embeds)
    return float((source * edited).sum(axis=1).mean())


def clip_directional(
    source_embeds: np.ndarray, edited_embeds: np.ndarray, source_text: np.ndarray, target_text: np.ndarray
) -> float | None:
    """cos(I1 - I0, T1 - T0) of each frame, meaned over frames; every embedding is normalised before the subtraction.

    Frames are `[T, D]`, the captions' embeddings `[D]`. None where there is no direction: both captions have the same
    embedding, or a frame has the same as its source.

    Raises:
        ValueError: unequal shapes, or an embedding that is zero.
    """
    source, edited = _pair(source_embeds, edited_embeds)
    before, after = _pair(np.atleast_2d(source_text), np.atleast_2d(target_text))
    if before.shape != (1, source.shape[1]):
        raise ValueError(f"captions of {list(before.shape)} for frames of {list(source.shape)}")
    of_frames, of_texts = edited - source, after - before
    lengths = np.linalg.norm(of_frames, axis=1) * np.linalg.norm(of_texts)
    if not lengths.all():
        return None
    return float(((of_frames @ of_texts[0]) / lengths).mean())


def _pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = _normalised(first), _normalised(second)
    if first.shape != second.shape:
        raise ValueError(f"embeddings of unequal shapes: {list(first.shape)} and {list(second.shape)}")
    return first, second


def _normalised(embeds: np.ndarray) -> np.ndarray:
    embeds = np.asarray(embeds, dtype=np.float64)
    if embeds.ndim != 2 or not len(embeds):
        raise ValueError(f"embeddings are [frames, channels], not {list(embeds.shape)}")
    lengths = np.linalg.norm(embeds, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError("an embedding is zero")
    return embeds / lengths
