"""One image file's bytes to plain 8-bit RGB, or the reason why not."""

from __future__ import annotations

import hashlib
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from cluster.errors import one_line

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS_LIMIT = 170_000_000  # Pillow itself refuses images of more than 178 million pixels
_EXIF_ORIENTATION = 0x0112
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class UndecodableImage(Exception):
    """This file can't become a sample; the text is the dead letter's reason."""


def max_file_bytes(max_pixels: int) -> int:
    """More bytes than any honest image of `max_pixels` needs (16-bit RGBA, uncompressed, and a margin)."""
    return 8 * max_pixels + (1 << 20)


def decode_image(data: bytes, max_pixels: int, rotation: int = 0) -> Image.Image:
    """The image as an upright RGB picture of 8 bits a channel.

    EXIF rotation is applied, transparency is laid on white, 16-bit gray is scaled to 8 bits, and of an
    animation the first frame is taken. The size is checked in the header, before any pixel is decoded.

    Args:
        rotation: degrees against the clock, a multiple of 90, by which a picture is turned that has no EXIF rotation.

    Raises:
        UndecodableImage: empty, too large, of another format, or broken.
    """
    if not data:
        raise UndecodableImage("empty: the file has no bytes")
    if len(data) > max_file_bytes(max_pixels):
        raise UndecodableImage(f"too large: over {max_file_bytes(max_pixels)} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise UndecodableImage(
                        f"too large: {image.width}x{image.height} pixels, over max_pixels={max_pixels}"
                    )
                image.load()
                if rotation in _TURNS and _EXIF_ORIENTATION not in image.getexif():
                    return _to_rgb(image.transpose(_TURNS[rotation]))
                return _to_rgb(ImageOps.exif_transpose(image))
    except UndecodableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UndecodableImage(f"unreadable: not one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise UndecodableImage(f"too large: over max_pixels={max_pixels}") from error
    except MemoryError:
        raise
    except Exception as error:  # a broken file can fail anywhere in a decoder, with any exception
        raise UndecodableImage(f"corrupt: {one_line(error, 200)}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit gray: Pillow's own conversion would clip it
        gray = np.asarray(image, dtype=np.float64)
        return Image.fromarray(np.round(np.clip(gray, 0, 65535) / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def content_id(image: Image.Image) -> str:
    """16 hex digits of the SHA-256 of an RGB image's size and pixels: equal pictures have equal ids."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:16]


def shrink(image: Image.Image, longest_side: int | None) -> Image.Image:
    """The image with its longest side reduced to `longest_side`; smaller ones, and None, leave it alone."""
    if longest_side is None or max(image.size) <= longest_side:
        return image
    scale = longest_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def encode_png(image: Image.Image) -> bytes:
    """The image as PNG, without any metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
