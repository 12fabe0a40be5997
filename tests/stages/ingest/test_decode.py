import io

import numpy as np
import pytest
from PIL import Image

from stages.ingest.decode import UndecodableImage, content_id, decode_image, max_file_bytes, shrink

MAX_PIXELS = 10_000


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def picture(width=12, height=8):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reason(data, max_pixels=MAX_PIXELS):
    with pytest.raises(UndecodableImage) as error:
        decode_image(data, max_pixels)
    return str(error.value)


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_keep_every_pixel(format, options):
    decoded = decode_image(encode(picture(), format, **options), MAX_PIXELS)
    assert decoded.mode == "RGB"
    assert (np.asarray(decoded) == np.asarray(picture())).all()


def test_jpeg_comes_near():
    smooth = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    decoded = decode_image(encode(smooth, "JPEG", quality=95), MAX_PIXELS)
    assert np.abs(np.asarray(decoded, int) - np.asarray(smooth, int)).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = np.zeros((8, 12, 3), np.uint8)
    upright[0, 0], upright[0, -1] = (255, 0, 0), (0, 255, 0)
    # how a camera that was held so stores the picture: the inverse of what the orientation asks for
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif), MAX_PIXELS)
    assert (np.asarray(decoded) == upright).all()


def test_gray_becomes_rgb():
    gray = Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12))
    decoded = np.asarray(decode_image(encode(gray), MAX_PIXELS))
    assert (decoded == np.asarray(gray)[..., None]).all()


def test_transparency_is_laid_on_white():
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[:, 0] = (10, 20, 30, 255)
    pixels[:, 1] = (10, 20, 30, 0)
    pixels[:, 2] = (0, 0, 0, 128)
    decoded = np.asarray(decode_image(encode(Image.fromarray(pixels)), MAX_PIXELS))
    assert (decoded[:, 0] == (10, 20, 30)).all()
    assert (decoded[:, 1] == 255).all()
    assert (np.abs(decoded[:, 2].astype(int) - 127) <= 1).all()


def test_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    decoded = np.asarray(decode_image(encode(image, transparency=1), MAX_PIXELS))
    assert (decoded[0] == [(255, 0, 0), (255, 255, 255)]).all()


def test_16_bit_gray_is_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values)), MAX_PIXELS))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_jpeg():
    decoded = decode_image(encode(picture().convert("CMYK"), "JPEG"), MAX_PIXELS)
    assert decoded.mode == "RGB" and decoded.size == (12, 8)


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode_image(data, MAX_PIXELS).getpixel((0, 0)) == (255, 0, 0)


def test_empty_file():
    assert reason(b"").startswith("empty:")


@pytest.mark.parametrize("data", [b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n"])
def test_no_image_at_all(data):
    assert reason(data).startswith(("unreadable:", "corrupt:"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_cut_off_file(format):
    data = encode(picture(90, 90), format)
    assert reason(data[: len(data) // 2]).startswith(("corrupt:", "unreadable:"))


def test_flipped_bits():
    data = bytearray(encode(picture(64, 64)))
    data[len(data) // 2] ^= 0xFF
    assert reason(bytes(data)).startswith("corrupt:")


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_whatever_their_name(format):
    assert reason(encode(picture(), format)).startswith("unreadable:")


def test_too_many_pixels_are_refused_before_decoding():
    header = encode(Image.new("1", (20_000, 20_000)))  # 400 million pixels in 50 kB
    assert len(header) < 100_000
    assert "20000x20000" in reason(header, 50_000_000) or reason(header, 50_000_000).startswith("too large:")
    assert reason(encode(picture(101, 100)), 10_000).startswith("too large: 101x100")
    assert decode_image(encode(picture(100, 100)), 10_000).size == (100, 100)


def test_too_many_bytes_are_refused():
    assert reason(encode(picture()) + bytes(max_file_bytes(100)), 100).startswith("too large:")


def test_content_id_is_of_the_picture_not_the_file():
    image = picture()
    assert content_id(image) == content_id(decode_image(encode(image, compress_level=1), MAX_PIXELS))
    assert content_id(image) == content_id(decode_image(encode(image, "WEBP", lossless=True), MAX_PIXELS))
    assert len(content_id(image)) == 16
    reshaped = Image.fromarray(np.asarray(image).reshape(12, 8, 3))  # the same bytes, another size
    assert content_id(reshaped) != content_id(image)


def test_shrink_keeps_the_shape_and_never_enlarges():
    assert shrink(picture(100, 50), 20).size == (20, 10)
    assert shrink(picture(1000, 1), 20).size == (20, 1)
    assert shrink(picture(12, 8), 20).size == (12, 8)
    assert shrink(picture(12, 8), None).size == (12, 8)
