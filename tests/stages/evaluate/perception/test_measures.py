import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Sam2Model, pipeline

from stages.evaluate.perception.measures import EditToSee, Perception
from stages.evaluate.perception.scores import clip_directional, cosine
from stages.evaluate.perception.segmenter import without_background
from stages.evaluate.perception.settings import PerceptionSettings


@pytest.fixture(scope="module")
def perception(folders):
    return Perception(
        PerceptionSettings(
            clip={"model": str(folders["clip"])},
            dino={"model": str(folders["dino"]), "size": 32, "resize": "square"},
            dinov2={"model": str(folders["dinov2"]), "size": 28},
            segmenter={
                "detector": str(folders["detector"]), "segmenter": str(folders["sam2"]), "box_threshold": 0.0,
            },
            batch_size=3,
        )
    )  # fmt: skip


@pytest.fixture
def edits(pictures):
    a, b, c, d, e = pictures
    texts = {"src_caption": "a red cat", "tgt_caption": "a blue dog", "noun": "cat"}
    return [EditToSee([a], [e], **texts), EditToSee([b], [c], **texts | {"noun": "Dog"}), EditToSee([d], [d], **texts)]


def test_the_best_box_is_the_librarys(folders, perception, pictures):
    find = pipeline(
        "zero-shot-object-detection", model=str(folders["detector"]), image_processor=str(folders["detector"]),
        tokenizer=str(folders["detector"]), device="cpu",
    )  # fmt: skip
    for image in pictures[:3]:
        (box,) = perception.segmenter.boxes([image], " Cat")
        best = max(find(image, candidate_labels=["cat."], threshold=0.0), key=lambda row: row["score"])
        assert [int(x) for x in box] == [best["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")]


def test_the_mask_is_sam2s_at_the_pictures_size(folders, perception, pictures):
    model = Sam2Model.from_pretrained(folders["sam2"]).double()
    masks = perception.segmenter.masks(pictures, ["cat"] * len(pictures))
    for image, mask in zip(pictures, masks, strict=True):
        (box,) = perception.segmenter.boxes([image], "cat")
        pixels = perception.segmenter.processor.image_processor(image, return_tensors="pt")["pixel_values"].double()
        scale = torch.tensor([64 / image.width, 64 / image.height] * 2)
        with torch.no_grad():
            boxes = (torch.tensor(box) * scale).double()[None, None]
            logits = model(pixel_values=pixels, input_boxes=boxes, multimask_output=False).pred_masks[:, 0]
        logits = F.interpolate(logits, size=(image.height, image.width), mode="bilinear", align_corners=False)[0, 0]
        expected = logits.numpy() > 0
        assert mask is None and not expected.any() or (mask == expected).mean() > 0.999
    assert any(mask is not None and 0 < mask.mean() < 1 for mask in masks)


def test_metrics_are_the_scores_of_the_embeddings(perception, edits):
    rows = perception.measure(edits)
    for edit, row in zip(edits[:2], rows, strict=False):
        images = [perception.clip.encode_squares(side)[0] for side in (edit.source, edit.edited)]
        texts = perception.clip.encode_texts([edit.src_caption, edit.tgt_caption])
        assert row["clip_directional"] == pytest.approx(clip_directional(*images, *texts), abs=1e-4)
        for name, encoder in (("dino", perception.dino), ("dinov2", perception.dinov2)):
            first, second = encoder.encode([*edit.source, *edit.edited])
            assert row[name] == pytest.approx(cosine(first, second), abs=1e-5)
        alone = []
        for image in (*edit.source, *edit.edited):
            (mask,) = perception.segmenter.masks([image], [edit.noun])
            alone.append(without_background(image, mask))
        first, second = perception.dinov2.encode(alone)
        assert row["dinov2_masked"] == pytest.approx(cosine(first, second), abs=1e-5)


def test_a_copy_is_alike_and_has_no_direction(perception, edits):
    row = perception.measure(edits)[2]
    assert row["dino"] == pytest.approx(1) and row["dinov2"] == pytest.approx(1)
    assert row["dinov2_masked"] == pytest.approx(1)
    assert row["clip_directional"] == "the edit is its source, which has no direction"


def test_other_edits_beside_it_do_not_matter(perception, edits):
    rows = perception.measure(edits)
    for i in (2, 0, 1):
        (alone,) = perception.measure([edits[i]])
        assert alone == pytest.approx(rows[i], abs=1e-5)
    assert perception.measure([]) == []


def test_what_lies_outside_the_mask_does_not_matter(perception, pictures):
    image, other = pictures[0], pictures[4]
    mask = np.zeros((image.height, image.width), dtype=bool)
    mask[8:30, 10:50] = True
    elsewhere = Image.fromarray(np.where(mask[..., None], np.asarray(image), np.asarray(other)))
    assert np.abs(np.asarray(elsewhere).astype(int) - np.asarray(image)).max() > 20
    first, second = perception.dinov2.encode([without_background(p, mask) for p in (image, elsewhere)])
    assert cosine(first, second) == pytest.approx(1)
    pixels = np.asarray(without_background(image, mask))
    assert (pixels[~mask] == 0).all() and (pixels[mask] == np.asarray(image)[mask]).all()


def test_what_lacks_says_so(folders, perception, pictures):
    a, b = pictures[:2]
    (row,) = perception.measure([EditToSee([a], [b], tgt_caption="a dog")])
    assert row["clip_directional"] == "the item has no src_caption" and isinstance(row["clip_score"], float)
    assert row["dinov2_masked"] == "the item has no noun"
    (row,) = perception.measure([EditToSee([a], [b], "a dog", "a dog", "cat")])
    assert row["clip_directional"] == "both captions are the same"
    strict = PerceptionSettings(
        dinov2={"model": str(folders["dinov2"]), "size": 28},
        segmenter={"detector": str(folders["detector"]), "segmenter": str(folders["sam2"]), "box_threshold": 0.9999},
    )
    (row,) = Perception(strict).measure([EditToSee([a], [b], noun="cat")])
    assert row["dinov2_masked"] == "no 'cat' is found in the source and the edited picture"


def test_a_clip_is_the_mean_of_its_frames(perception, pictures):
    a, b, c, d, e = pictures
    texts = {"src_caption": "a cat", "tgt_caption": "a dog", "noun": "cat"}
    rows = perception.measure(
        [EditToSee([a], [e], **texts), EditToSee([b], [c], **texts), EditToSee([d], [d], **texts)]
    )
    (clip,) = perception.measure([EditToSee([a, b, d], [e, c, d], **texts)])
    for name in ("clip_score", "dino", "dinov2", "dinov2_masked"):
        assert clip[name] == pytest.approx(np.mean([row[name] for row in rows]), abs=1e-5)
    # the third frame has no direction
    assert clip["clip_directional"] == pytest.approx(np.mean([row["clip_directional"] for row in rows[:2]]), abs=1e-5)
    with pytest.raises(ValueError, match="1 frames, where the source has 2"):
        EditToSee([a, b], [c])


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="needs the model of dinov2"):
        PerceptionSettings(segmenter={})
