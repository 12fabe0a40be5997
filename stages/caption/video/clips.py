"""Clips as they are stored (animated WebP) and the few frames of one that a model is shown."""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Sequence

from PIL import Image

from cluster.errors import one_line

MAX_FRAMES = 1000
MAX_PIXELS = 200_000_000  # of all frames together: 81 frames of 1080p are 168 million
MAX_BYTES = 1_000_000_000


def even_frames(clip: bytes | None, num_frames: int) -> list[bytes]:
    """What a clip shows at `num_frames` even moments, as PNG, from its beginning to its end; one is at the middle.

    Time counts, not the stored frames: the format keeps neighbours that are alike as one frame that lasts. Sizes are
    checked before any pixel is decoded.

    Raises:
        ValueError: empty, too large, not WebP, or broken.
    """
    if not clip or len(clip) > MAX_BYTES:
        raise ValueError(f"over {MAX_BYTES} bytes" if clip else "no bytes")
    try:
        with Image.open(io.BytesIO(clip), formats=("WEBP",)) as image:
            num_stored = getattr(image, "n_frames", 1)
            if num_stored > MAX_FRAMES or num_stored * image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{num_stored} frames of {image.width}x{image.height} pixels are over {MAX_FRAMES} frames or "
                    f"{MAX_PIXELS} pixels"
                )
            ends = list(itertools.accumulate(_duration(image, index) for index in range(num_stored)))
            return [_frame(image, index) for index in seen_at_even_moments(ends, num_frames)]
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(one_line(error, 200)) from None


def seen_at_even_moments(ends: Sequence[int], num: int) -> list[int]:
    """Which frames, ending at the times `ends`, are seen at `num` even moments from the beginning to the end."""
    moments = [ends[-1] * index / (num - 1) for index in range(num)] if num > 1 else [ends[-1] / 2]
    return [min(bisect.bisect_right(ends, moment), len(ends) - 1) for moment in moments]


def _duration(image: Image.Image, index: int) -> int:
    """Of a frame, in milliseconds; it is known when the frame is decoded."""
    image.seek(index)
    image.load()
    return max(1, image.info.get("duration", 1))


def _frame(image: Image.Image, index: int) -> bytes:
    image.seek(index)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()
