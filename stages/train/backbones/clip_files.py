"""Clips as files: animated WebP, without loss. Imports nothing heavy."""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Sequence

from PIL import Image

from cluster.errors import one_line

FRAME_MILLISECONDS = 160
MAX_PIXELS = 200_000_000  # of all frames of a clip together


def write_clip(frames: Sequence[Image.Image], seconds: float | None = None) -> bytes:
    """The frames as a lossless animated WebP; the format keeps neighbours that are alike as one frame that lasts.

    `seconds`: how long they last together, to the millisecond; None: FRAME_MILLISECONDS each.
    """
    num_frames = len(frames)
    total = FRAME_MILLISECONDS * num_frames if seconds is None else 1000 * seconds
    edges = [round(total * index / num_frames) for index in range(num_frames + 1)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=list(frames[1:]),
        duration=[after - before for before, after in itertools.pairwise(edges)],
        loop=0,
        lossless=True,
    )
    return buffer.getvalue()


def clip_seconds(data: bytes) -> float:
    """How long a clip lasts. What isn't animated has no duration: 0. Raises as `read_clip`, but for its size."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
        milliseconds = 0
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            milliseconds += image.info.get("duration", 0)
    return milliseconds / 1000


def read_clip(data: bytes | None, num_frames: int | None = None) -> list[Image.Image]:
    """The frames of a clip as RGB pictures: what is seen at `num_frames` even moments; None: every stored frame.

    Raises OSError, ValueError or SyntaxError if it can't be read, or is larger than `MAX_PIXELS`.
    """
    try:
        opened = Image.open(io.BytesIO(data or b""), formats=("PNG", "JPEG", "WEBP"))
    except Image.DecompressionBombError as error:
        raise ValueError(one_line(error)) from None
    with opened as image:
        num_stored = getattr(image, "n_frames", 1)
        num_pixels = image.width * image.height * max(num_stored, num_frames or 1)
        if num_pixels > MAX_PIXELS:
            raise ValueError(f"its frames have {num_pixels} pixels together, over {MAX_PIXELS}")
        frames, durations = [], []
        for index in range(num_stored):
            image.seek(index)
            frames.append(image.convert("RGB"))
            durations.append(max(1, image.info.get("duration", 1)))
    if num_frames is None:
        return frames
    ends = list(itertools.accumulate(durations))
    moments = ((place + 0.5) / num_frames * ends[-1] for place in range(num_frames))
    return [frames[bisect.bisect_right(ends, moment)] for moment in moments]
