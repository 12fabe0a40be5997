"""Tracks of points `[T, P, 2]`, x and y in pixels: from files, or along optical flow."""

from __future__ import annotations

import os

import numpy as np

from stages.evaluate.motion.weights import SUFFIX, resolved_file

GRID_SIZE = 55  # points along each side


def point_grid(height: int, width: int, size: int = GRID_SIZE) -> np.ndarray:
    """CoTracker's grid of points `[size * size, 2]`, row by row: even, and width / 64 away from every edge.

    Edges are at 0 and at height or width, the first pixel's middle at 0.
    """
    margin = width / 64
    rows, columns = np.linspace(margin, height - margin, size), np.linspace(margin, width - margin, size)
    return np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)


def follow(flows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where `points [P, 2]` of the first frame go along `flows [T - 1, H, W, 2]`: `[T, P, 2]`.

    Each step is the flow at the point, bilinear between pixels; outside of the picture it is the nearest edge's.
    That a point gets hidden is not noticed: it goes on with what hides it.
    """
    from scipy.ndimage import map_coordinates

    tracks = [np.asarray(points, dtype=np.float64)]
    for flow in flows:
        here = tracks[-1][:, ::-1].T  # rows first
        step = [map_coordinates(flow[..., axis], here, output=np.float64, order=1, mode="nearest") for axis in (0, 1)]
        tracks.append(tracks[-1] + np.stack(step, axis=-1))
    return np.stack(tracks)


def read_tracks(folder: str, item_id: str, method: str | None) -> np.ndarray:
    """The tracks of a clip: `source/ITEM_ID.safetensors`, or `edited/METHOD/ITEM_ID.safetensors`, tensor `tracks`.

    Raises:
        ValueError: there is no such file, or no such tensor in it.
    """
    from safetensors import SafetensorError, safe_open

    name = os.path.join("source" if method is None else os.path.join("edited", method), item_id + SUFFIX)
    try:
        with safe_open(os.path.join(resolved_file(folder), name), framework="numpy") as file:
            return file.get_tensor("tracks")
    except FileNotFoundError:
        raise ValueError(f"there are no tracks {name}") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"tracks {name} can't be read ({' '.join(str(error).split())[:200]})") from None
