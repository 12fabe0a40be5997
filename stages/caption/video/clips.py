"""Clips as they are stored (animated WebP) and the few frames of one that a model is shown."""

from __future__ import annotations

import io

from PIL import Image

MAX_FRAMES = 1000
MAX_PIXELS = 2_000_000_000  # of all frames together: 81 frames of 1080p are 168 million
MAX_BYTES = 2_000_000_000


def even_frames(clip: bytes | None, num_frames: int) -> list[bytes]:
    """`num_frames` frames of a clip as PNG, evenly spread with the first and the last among them.

    One frame is the middle one; a shorter clip gives all that it has. Sizes are checked before any pixel is decoded.

    Raises:
        ValueError: empty, too large, not WebP, or broken.
    """
    if not clip or len(clip) > MAX_BYTES:
        raise ValueError(f"over {MAX_BYTES} bytes" if clip else "no bytes")
    try:
        with Image.open(io.BytesIO(clip), formats=("WEBP",)) as image:
            total = getattr(image, "n_frames", 1)
            if total > MAX_FRAMES or total * image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{total} frames of {image.width}x{image.height} pixels are over {MAX_FRAMES} frames or "
                    f"{MAX_PIXELS} pixels"
                )
            return [_frame(image, index) for index in spread(total, num_frames)]
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def spread(total: int, num: int) -> list[int]:
    """`num` even places in 0 to total - 1, or all of them if there are no more."""
    if num == 1:
        return [(total - 1) // 2]
    return sorted({round(index * (total - 1) / (num - 1)) for index in range(num)})


def _frame(image: Image.Image, index: int) -> bytes:
    image.seek(index)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()
