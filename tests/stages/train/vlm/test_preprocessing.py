"""Differentiable preprocessing equals the processors of transformers, and has the right gradients.

The library resizes floating-point images without rounding: on images that no bicubic overshoot takes out of
[0, 1] both agree to 1e-6. It resizes uint8 images (what PIL images become) by a kernel that rounds and limits to
0..255 after each axis: then both agree to 1.2 levels, on any image.
"""

import pytest
import torch
from transformers import LlavaOnevisionImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from stages.starter.vlm_tokenizer import build_processor
from stages.train.vlm import preprocessing
from stages.train.vlm.preprocessing import OneVisionSettings, QwenSettings, model_inputs, pixel_settings

FLOAT_TOLERANCE = 1e-6  # of the range [0, 1]
UINT8_TOLERANCE = 1.2 / 255

STARTER = build_processor().image_processor
QWEN2_5 = Qwen2VLImageProcessor()  # as published: patches of 14, merged by 2, CLIP's mean and deviation
ONEVISION = LlavaOnevisionImageProcessor(
    size={"height": 56, "width": 56}, image_grid_pinpoints=[[56, 56], [56, 112], [112, 56], [112, 112], [56, 168]]
)
CASES = [
    (STARTER, [(32, 32)]),
    (STARTER, [(32, 32), (64, 64)]),
    (STARTER, [(48, 80)]),
    (QWEN2_5, [(56, 84)]),
    (QWEN2_5, [(100, 150), (37, 211)]),
    (QWEN2_5, [(1200, 900)]),  # more than the most pixels
    (ONEVISION, [(56, 56)]),
    (ONEVISION, [(40, 61)]),
    (ONEVISION, [(150, 47)]),
    (ONEVISION, [(33, 101)]),
    (ONEVISION, [(40, 61), (73, 56)]),
]


def levels(low, high, sizes):
    """Two rows of random images, uint8."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(low, high, (2, 3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def unnormalized(pixel_values, settings):
    mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
    if isinstance(settings, QwenSettings):
        return pixel_values.unflatten(-1, (3, -1)) * std[:, None] + mean[:, None]
    return pixel_values * std[:, None, None] + mean[:, None, None]


@pytest.mark.parametrize(("processor", "sizes"), CASES)
@pytest.mark.parametrize("path", ["float", "uint8"])
def test_equals_the_processor(processor, sizes, path):
    low, high, tolerance = (70, 186, FLOAT_TOLERANCE) if path == "float" else (0, 256, UINT8_TOLERANCE)
    images = levels(low, high, sizes)
    settings = pixel_settings(processor)
    found = model_inputs([image.float() / 255 for image in images], settings)
    given = [image.float() if path == "float" else image for image in images]
    expected = processor([[image[row] for image in given] for row in range(2)], return_tensors="pt")
    assert found.keys() == expected.keys()
    for name in found.keys() - {"pixel_values"}:
        assert torch.equal(found[name], expected[name]), name
    assert found["pixel_values"].shape == expected["pixel_values"].shape
    difference = unnormalized(found["pixel_values"], settings) - unnormalized(expected["pixel_values"], settings)
    assert difference.abs().max() <= tolerance


def test_image_that_keeps_its_size_is_exact():
    images = levels(0, 256, [(56, 56)])
    for processor in (QWEN2_5, ONEVISION):
        found = model_inputs([images[0] / 255], pixel_settings(processor))["pixel_values"]
        expected = processor([[row] for row in images[0]], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


SMALL_QWEN = QwenSettings((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 2, 2, 2, min_pixels=64, max_pixels=144)
SMALL_ONEVISION = OneVisionSettings((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 4, ((4, 4), (4, 8), (8, 8)))


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [(SMALL_QWEN, [(5, 7)]), (SMALL_ONEVISION, [(5, 6)]), (SMALL_ONEVISION, [(3, 5), (4, 4)])],
)
def test_gradient_equals_finite_differences(settings, sizes):
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand((1, 3, *s), generator=generator, dtype=torch.float64) * 0.4 + 0.3 for s in sizes]
    images = [image.requires_grad_() for image in images]
    assert torch.autograd.gradcheck(lambda *pixels: model_inputs(pixels, settings)["pixel_values"], images)
    for gradient in torch.autograd.grad(model_inputs(images, settings)["pixel_values"].sum(), images):
        assert gradient.isfinite().all() and (gradient != 0).all()


def test_bfloat16_pixels_are_resized_in_float32():
    pixels = torch.rand(1, 3, 5, 7).bfloat16()
    found = preprocessing.resized(pixels, (8, 12))
    assert found.dtype == torch.float32 and torch.equal(found, preprocessing.resized(pixels.float(), (8, 12)))


def test_unknown_processors_are_refused():
    with pytest.raises(ValueError, match="its image processor, none, is not that of a known model"):
        pixel_settings(None)
    with pytest.raises(ValueError, match="bicubic"):
        pixel_settings(Qwen2VLImageProcessor(resample=2))
