"""Every encoder against the library's own preparation and forward pass, or float64."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BitImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTImageProcessorPil,
)

from cluster.errors import UserError
from stages.evaluate.perception.encoders import ClipEncoder, DinoEncoder
from stages.evaluate.perception.scores import clip_score
from stages.evaluate.perception.segmenter import Segmenter
from stages.evaluate.perception.settings import ClipSettings, DinoSettings, SegmenterSettings

CAPTIONS = ["a red cat", "a blue dog on a mat", "snow"]


@pytest.fixture
def clip(folders):
    return ClipEncoder(ClipSettings(model=str(folders["clip"])), "cpu", batch_size=2)


def test_clip_score_is_the_librarys_cosine(folders, clip, pictures):
    model = CLIPModel.from_pretrained(folders["clip"])
    processor = CLIPProcessor.from_pretrained(folders["clip"])
    images, texts = clip.encode_crops(pictures), clip.encode_texts(CAPTIONS)
    for image, embedding in zip(pictures, images, strict=True):
        inputs = processor(text=CAPTIONS, images=image, return_tensors="pt", padding=True)
        with torch.no_grad():
            cosines = model(**inputs).logits_per_image[0] / model.logit_scale.exp()
        expected = [100 * max(c, 0.0) for c in cosines.tolist()]
        assert [clip_score(embedding, text) for text in texts] == pytest.approx(expected, abs=1e-4)


def cubic(distance):
    """Keys' kernel with a = -0.75, as PyTorch's and OpenCV's bicubic has it."""
    x, a = np.abs(distance), -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def bicubic(length, side):
    """Weights `[side, length]` of four neighbours each, half-pixel centres, the border repeated."""
    weights = np.zeros((side, length))
    for i in range(side):
        centre = (i + 0.5) * length / side - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[i, np.clip(j, 0, length - 1)] += cubic(centre - j)
    return weights


def test_squares_are_bicubic_of_the_whole_picture(folders, clip, pictures):
    model = CLIPModel.from_pretrained(folders["clip"]).double()
    processor = clip.processor.image_processor
    for image, embedding in zip(pictures, clip.encode_squares(pictures), strict=True):
        pixels = np.asarray(image, dtype=np.float64) / 255
        square = np.einsum("ih,hwc,jw->ijc", bicubic(image.height, 32), pixels, bicubic(image.width, 32))
        square = (square - processor.image_mean) / processor.image_std
        with torch.no_grad():
            expected = model.get_image_features(torch.from_numpy(square).permute(2, 0, 1)[None]).pooler_output[0]
        np.testing.assert_allclose(embedding, expected.numpy(), rtol=0, atol=2e-4)


def test_a_long_caption_is_cut_as_clip_cuts_it(clip):
    start = "a red cat and a blue dog"
    first, second = clip.encode_texts([start + " in the snow", start + " in the grass"])
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.abs(clip.encode_texts(["a cat"]) - clip.encode_texts(["a dog"])).max() > 1e-3


@pytest.mark.parametrize("kind, side, resize", [("dino", 32, "square"), ("dinov2", 28, "crop"), ("dino", 16, "square")])
def test_class_tokens_are_the_librarys(folders, pictures, kind, side, resize):
    settings = DinoSettings(model=str(folders[kind]), size=side, resize=resize)
    found = DinoEncoder(settings, "cpu", batch_size=2).encode(pictures)
    model = AutoModel.from_pretrained(folders[kind]).double().eval()
    common = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
    if resize == "square":
        processor = ViTImageProcessorPil(size={"height": side, "width": side}, **common)
    else:  # 28 * 256 / 224 = 32
        crop = {"height": side, "width": side}
        processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop, **common)
    options = {"interpolate_pos_encoding": True} if kind == "dino" else {}
    for image, token in zip(pictures, found, strict=True):
        pixels = processor(image, return_tensors="pt")["pixel_values"].double()
        assert pixels.shape == (1, 3, side, side)
        with torch.no_grad():
            outputs = model(pixels, **options)
        # DINOv2's pooled output is the class token after the last normalisation
        expected = outputs.pooler_output if kind == "dinov2" else outputs.last_hidden_state[:, 0]
        np.testing.assert_allclose(token, expected[0].numpy(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", ["dinov2_with_registers", "dinov3"])
def test_register_tokens_are_not_taken_for_the_class_token(family, tmp_path, pictures):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
    if family == "dinov3":
        model = DINOv3ViTModel(DINOv3ViTConfig(**sizes, intermediate_size=64, num_register_tokens=4))
    else:
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, image_size=28, num_register_tokens=4))
    model.save_pretrained(tmp_path)
    processor = ViTImageProcessorPil(size={"height": 28, "width": 28}, resample=3)
    processor.save_pretrained(tmp_path)
    encoder = DinoEncoder(DinoSettings(model=str(tmp_path), size=28, resize="square"), "cpu", batch_size=2)
    with torch.no_grad():
        expected = model.eval()(processor(pictures, return_tensors="pt")["pixel_values"]).pooler_output
    np.testing.assert_allclose(encoder.encode(pictures), expected.numpy(), atol=2e-5)


def test_order_and_batches_do_not_matter(folders, clip, pictures):
    order = [3, 0, 4, 2, 1]
    dino = DinoEncoder(DinoSettings(model=str(folders["dinov2"]), size=28), "cpu", batch_size=3)
    for encode in (clip.encode_squares, clip.encode_crops, dino.encode):
        np.testing.assert_allclose(encode([pictures[i] for i in order]), encode(pictures)[order], atol=1e-5)


def test_what_cannot_be_loaded_is_told(folders, tmp_path):
    with pytest.raises(UserError, match="perception.clip.model = .*nowhere.* can't be loaded as CLIP"):
        ClipEncoder(ClipSettings(model=str(tmp_path / "nowhere")), "cpu", 1)
    with pytest.raises(UserError, match="perception.dinov2.model.*of type clip"):
        DinoEncoder(DinoSettings(model=str(folders["clip"])), "cpu", 1, "perception.dinov2")
    with pytest.raises(UserError, match="perception.dino.size = 30 is no multiple of 8"):
        DinoEncoder(DinoSettings(model=str(folders["dino"]), size=30), "cpu", 1)

    with pytest.raises(UserError, match="perception.clip.model.*can't be loaded as CLIP"):
        ClipEncoder(ClipSettings(model=str(folders["dino"])), "cpu", 1)
    with pytest.raises(UserError, match="perception.segmenter.segmenter.*can't be loaded as SAM 2"):
        settings = SegmenterSettings(detector=str(folders["detector"]), segmenter=str(folders["dinov2"]))
        Segmenter(settings, "cpu", 1)


def test_missing_weights_are_not_drawn_at_random(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "clip")
    weights = load_file(folders["clip"] / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 of its weights are not there, such as visual_projection.weight"):
        ClipEncoder(ClipSettings(model=str(tmp_path / "clip")), "cpu", 1)


def test_weights_that_are_no_safetensors_are_refused(folders, tmp_path):
    for file in folders["clip"].iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(CLIPModel.from_pretrained(folders["clip"]).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        ClipEncoder(ClipSettings(model=str(tmp_path)), "cpu", 1)


def test_a_picture_of_one_pixel_is_seen(folders, clip):
    dot = Image.new("RGB", (1, 1), "red")
    dino = DinoEncoder(DinoSettings(model=str(folders["dinov2"]), size=28), "cpu", 1)
    for encode in (clip.encode_squares, clip.encode_crops, dino.encode):
        assert np.isfinite(encode([dot])).all()
