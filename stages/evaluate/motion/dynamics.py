"""Dynamic degree (VBench, Huang et al. 2024): whether much moves in a clip, by optical flow."""

from __future__ import annotations

import numpy as np

FRAMES_PER_SECOND = 8  # at which a clip is looked at
TOP_SHARE = 0.05  # of the pixels of a flow: the fastest
MIN_SPEED, REFERENCE_SIDE = 6.0, 256  # pixels from frame to frame, for pictures whose shorter side is 256
PAIRS, PAIRS_OF = 4, 16  # so many pairs for so many frames


def sampled_frames(num_frames: int, fps: float) -> list[int]:
    """The frames that are looked at: every round(fps / 8)-th, from the first on.

    Raises:
        ValueError: `fps` isn't above 0.
    """
    if not fps > 0:
        raise ValueError(f"{fps} frames per second")
    return list(range(0, num_frames, max(1, round(fps / FRAMES_PER_SECOND))))


def top_speed(flow: np.ndarray) -> float:
    """The mean length of a flow's (`[H, W, 2]`, pixels) fastest 5 % of vectors, rounded down, at least one."""
    speeds = np.hypot(*np.moveaxis(np.asarray(flow, dtype=np.float64), -1, 0)).ravel()
    num_top = max(1, int(speeds.size * TOP_SHARE))
    return float(np.partition(speeds, speeds.size - num_top)[-num_top:].mean())


def dynamic_degree(flows: np.ndarray) -> bool | None:
    """Whether much moves: the top speed is above 6 * min(H, W) / 256 in at least round(4 n / 16) pairs of frames.

    `flows` are `[n - 1, H, W, 2]` in pixels, between the n neighbouring `sampled_frames`. None without a pair. For two
    frames VBench's number of pairs rounds to 0, so that any clip were dynamic; here it is at least 1.

    Raises:
        ValueError: another shape.
    """
    flows = np.asarray(flows)
    if flows.ndim != 4 or flows.shape[3] != 2:
        raise ValueError(f"flows are [pairs, height, width, 2], not {list(flows.shape)}")
    if not len(flows):
        return None
    threshold = MIN_SPEED * min(flows.shape[1:3]) / REFERENCE_SIDE
    num_needed = max(1, round(PAIRS * (len(flows) + 1) / PAIRS_OF))
    return sum(top_speed(flow) > threshold for flow in flows) >= num_needed
