"""The metrics as functions of embeddings and answers. None is undefined, which no number stands for.

Embeddings are vectors `[D]` of any length; everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

NO_DIRECTION = "the edit is its source, which has no direction"
MIN_CHANGE = 1e-5  # between unit vectors; what is less far apart is rounding of float32, and has no direction


def normalised(embedding: np.ndarray) -> np.ndarray:
    """The unit vector of that direction. Raises ValueError for a vector that is 0 or not finite."""
    vector = np.asarray(embedding, dtype=np.float64)
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or length == 0:
        raise ValueError(f"an embedding of length {length} has no direction")
    return vector / length


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """The cosine between two embeddings, -1 to 1: DINO similarity, of the class tokens of two pictures."""
    return float(np.clip(normalised(first) @ normalised(second), -1, 1))


def clip_score(image: np.ndarray, text: np.ndarray) -> float:
    """CLIPScore: 100 max(cos, 0) of a picture's embedding and its caption's (Hessel et al. 2021, as torchmetrics)."""
    return 100 * max(cosine(image, text), 0.0)


def clip_directional(
    source_image: np.ndarray, edited_image: np.ndarray, source_text: np.ndarray, target_text: np.ndarray
) -> float | None:
    """cos(I1 - I0, T1 - T0), each embedding normalised before the subtraction (Gal et al. 2022, InstructPix2Pix).

    None where the pictures or the captions have the same embedding: there is no direction then.
    """
    of_image = normalised(edited_image) - normalised(source_image)
    of_text = normalised(target_text) - normalised(source_text)
    if min(np.linalg.norm(of_image), np.linalg.norm(of_text)) < MIN_CHANGE:
        return None
    return cosine(of_image, of_text)


def tifa(answers: Sequence[str], expected: Sequence[str]) -> float | None:
    """The share of questions about the caption that the picture answers as the caption does (Hu et al. 2023).

    None without questions. Raises ValueError for unequal numbers of answers.
    """
    right = [answer == wanted for answer, wanted in zip(answers, expected, strict=True)]
    return sum(right) / len(right) if right else None


def geometric_score(tifa: float, dinov2_masked: float) -> float:
    """sqrt(TIFA x MDINOv2-I) of one picture (Yan et al. 2023); a similarity below 0 counts as 0."""
    return math.sqrt(tifa * max(dinov2_masked, 0.0))
