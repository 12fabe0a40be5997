"""Pixel metrics, and the exact oracle of the scene world, for one edited image or clip.

Images are uint8 arrays `[height, width, 3]`; masks are bool `[height, width]`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import correlate1d

MAX_PSNR = 60.0  # equal pixels would be infinitely good; beyond 60 dB an 8-bit picture differs by rounding alone
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_BAND = 128  # rows


def l1(image: np.ndarray, reference: np.ndarray) -> float:
    """Mean absolute difference, in parts of the range (0 equal, 1 opposite)."""
    _check_sizes(image, reference)
    return float(np.abs(image.astype(np.float64) - reference).mean() / 255)


def psnr(image: np.ndarray, reference: np.ndarray, mask: np.ndarray | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB over the pixels of the mask, at most 60; None where the mask is
    empty.
    """
    _check_sizes(image, reference)
    difference = (image.astype(np.float64) - reference) / 255
    if mask is not None:
        difference = difference[mask]
    if not difference.size:
        return None
    error = float((difference**2).mean())
    return MAX_PSNR if error == 0 else min(MAX_PSNR, -10 * math.log10(error))


def ssim(image: np.ndarray, reference: np.ndarray) -> float | None:
    """Structural similarity (Wang et al. 2004): 11x11 Gaussian window, mean over positions and RGB channels.

    None for images smaller than the window.
    """
    _check_sizes(image, reference)
    if min(image.shape[:2]) < SSIM_WINDOW:
        return None
    height, total = image.shape[0] - SSIM_WINDOW + 1, 0.0
    for top in range(0, height, SSIM_BAND):  # at once, a large picture would take gigabytes
        rows = slice(top, min(top + SSIM_BAND, height) + SSIM_WINDOW - 1)
        total += _similarities(image[rows].astype(np.float64), reference[rows].astype(np.float64)).sum()
    return float(total / (height * (image.shape[1] - SSIM_WINDOW + 1) * image.shape[2]))


def _similarities(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """At every whole position of the window, `[height - 10, width - 10, channels]`."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def _blur(image: np.ndarray) -> np.ndarray:
    """Gaussian-weighted means at every whole position of the window, `[height - 10, width - 10,
    channels]`.
    """
    half = SSIM_WINDOW // 2
    kernel = np.exp(-((np.arange(SSIM_WINDOW) - half) ** 2) / (2 * SSIM_SIGMA**2))
    kernel /= kernel.sum()
    return correlate1d(correlate1d(image, kernel, axis=0), kernel, axis=1)[half:-half, half:-half]


def _check_sizes(image: np.ndarray, reference: np.ndarray) -> None:
    if image.shape != reference.shape:
        raise ValueError(f"images of unequal sizes: {image.shape} and {reference.shape}")


def pixel_metrics(image: np.ndarray, source: np.ndarray) -> dict[str, float | None]:
    """How far the edit is from its source, over the whole image: `l1`, `psnr`, `ssim`."""
    return {"l1": l1(image, source), "psnr": psnr(image, source), "ssim": ssim(image, source)}


def is_scene_edit(metadata: str) -> bool:
    """Whether a benchmark item's metadata describes an edit of a picture of the scene world, or an object of it in
    another setting: what the oracle can score.
    """
    from stages.starter.scoring import is_customization

    if is_customization(metadata):
        return True
    try:
        value = json.loads(metadata)
    except (TypeError, json.JSONDecodeError):
        return False
    return isinstance(value, dict) and {"edit_type", "source", "target", "place"} <= value.keys()


def num_clip_frames(metadata: str) -> int | None:
    """The frames of a benchmark item that is an edit of a clip of the scene world; None: it is something else."""
    from stages.starter.clip_edits import ClipEdit, is_clip_edit

    return ClipEdit.from_json(metadata).num_frames if is_clip_edit(metadata) else None


def clip_oracle(frames: Sequence[np.ndarray], metadata: str) -> dict[str, float]:
    """The scene world's exact answers about a clip (0 or 1, for all of its frames) and the share of frames right.

    Raises:
        ValueError: the frames have another size than the world's pictures.
    """
    from stages.starter.clip_edits import ClipEdit, score_clip

    result = score_clip(ClipEdit.from_json(metadata), frames)
    return {
        "edit_success": float(result.edit_success),
        "preservation": float(result.preservation),
        "whole_scene_right": float(result.whole_scene_right),
        "frames_right": result.frames_right,
    }


def clip_metrics(frames: Sequence[np.ndarray], source: Sequence[np.ndarray]) -> dict[str, float | None]:
    """How far an edited clip is from its source: the pixel metrics' means over the frames, and `flicker_added`.

    That is the mean absolute difference of neighbouring frames, less the source's, in parts of the range.
    """
    by_frame = [pixel_metrics(frame, original) for frame, original in zip(frames, source, strict=True)]
    means = {}
    for name in by_frame[0]:
        values = [row[name] for row in by_frame if row[name] is not None]
        means[name] = float(np.mean(values)) if values else None
    return means | {"flicker_added": flicker(frames) - flicker(source)}


def flicker(frames: Sequence[np.ndarray]) -> float:
    """The mean absolute difference of neighbouring frames, in parts of the range; 0 for a single frame."""
    return float(np.mean([l1(after, before) for before, after in itertools.pairwise(frames)] or [0.0]))


def scene_oracle(image: np.ndarray, source: np.ndarray, metadata: str) -> dict[str, float | None]:
    """The scene world's exact answers (0 or 1), and `psnr_unedited`: PSNR to the source where truth changes
    nothing.

    Raises:
        ValueError: the image has another size than the world's pictures.
    """
    from stages.starter.scoring import is_customization, score_item
    from stages.starter.world import Edit, render

    result = score_item(metadata, image)
    answers = {
        "edit_success": float(result.edit_success),
        "preservation": float(result.preservation),
        "whole_scene_right": float(result.whole_scene_right),
    }
    if is_customization(metadata):  # nothing has to stay where it is
        return answers | {"psnr_unedited": None}
    edit = Edit.from_json(metadata)
    unchanged = (render(edit.source) == render(edit.target)).all(axis=-1)
    return answers | {"psnr_unedited": psnr(image, source, unchanged)}
