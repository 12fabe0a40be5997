"""Motion fidelity (Yatim et al., Space-Time Diffusion Features for Zero-Shot Text-Driven Motion Transfer, 2024)."""

from __future__ import annotations

from typing import Literal

import numpy as np

Variant = Literal["official", "corrected"]
DECIMALS = 12  # sums of cosines are exact to these: equal tracks give 1, not 0.9999999999999999


def motion_fidelity(source_tracks: np.ndarray, edited_tracks: np.ndarray, variant: Variant) -> float:
    """How alike the directions are in which points of two clips move, -1 to 1.

    Two tracks' similarity is the mean over time of the cosine of their displacements from frame to frame.

    `corrected`: each source track's similarity to the most similar edited track, meaned over the source's. A step in
    which both points stand still counts 1, one in which a single one does counts 0: there is no direction to compare,
    but standing still is kept or lost. Equal tracks score exactly 1, in whatever order the points are.

    `official`: as the authors' `motion_fidelity_score.py` has it. Each edited track's most similar source track,
    meaned over the edited ones, after the identity matrix is subtracted from the similarities. So two tracks of the
    same index, which start at the same point of the grid, hardly ever match, and equal clips score far below 1. One
    point that stands still for one step makes it NaN.

    Args:
        source_tracks, edited_tracks: `[T, P, 2]` positions in pixels, of the same frames.

    Raises:
        ValueError: another shape, unequal T, fewer than two frames, positions that aren't finite; for `official` also
            unequal P.
    """
    source, edited = (np.asarray(tracks, dtype=np.float64) for tracks in (source_tracks, edited_tracks))
    _check(source, edited)
    num_steps = len(source) - 1
    if variant == "official":
        if source.shape[1] != edited.shape[1]:
            raise ValueError(
                f"the official score needs as many tracks of both clips: {source.shape[1]}, not {edited.shape[1]}"
            )
        with np.errstate(invalid="ignore"):
            of_edited, of_source = (
                _rows(step / _lengths(step)) for step in (np.diff(edited, axis=0), np.diff(source, axis=0))
            )
            similarity = of_edited @ of_source.T / num_steps  # [edited, source]
        return float((similarity - np.eye(len(similarity))).max(axis=1).mean())
    of_source, of_edited = (_rows(_directions(np.diff(tracks, axis=0))) for tracks in (source, edited))
    similarity = of_source @ of_edited.T / num_steps  # [source, edited]
    return round(float(similarity.max(axis=1).round(DECIMALS).mean()), DECIMALS)


def _check(source: np.ndarray, edited: np.ndarray) -> None:
    for tracks in (source, edited):
        if tracks.ndim != 3 or tracks.shape[2] != 2 or not tracks.shape[1]:
            raise ValueError(f"tracks are [frames, points, 2], not {list(tracks.shape)}")
        if not np.isfinite(tracks).all():
            raise ValueError("tracks have positions that are not finite numbers")
    if len(source) != len(edited):
        raise ValueError(f"tracks of unequal lengths: {len(source)} and {len(edited)} frames")
    if len(source) < 2:
        raise ValueError("a single frame has no motion")


def _lengths(steps: np.ndarray) -> np.ndarray:
    return np.hypot(steps[..., 0], steps[..., 1])[..., None]


def _directions(steps: np.ndarray) -> np.ndarray:
    """Unit displacements `[T - 1, P, 3]`; the third axis is where a point points that stands still."""
    lengths = _lengths(steps)
    still = lengths == 0
    return np.concatenate([steps / np.where(still, 1.0, lengths), still], axis=-1)


def _rows(directions: np.ndarray) -> np.ndarray:
    """A track a row, `[P, (T - 1) * C]`, so that a product of matrices sums the cosines over time."""
    return directions.transpose(1, 0, 2).reshape(directions.shape[1], -1)
