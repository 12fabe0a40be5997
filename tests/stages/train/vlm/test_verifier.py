from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from cluster.errors import UserError
from stages.starter import vlm_questions, world
from stages.train.vlm.questions import QuestionTemplates, local_questions
from stages.train.vlm.verifier import Verifier, load_verifier
from tests.tiny_vlms import onevision_model, onevision_processor, qwen2_5_model, qwen2_5_processor

MODELS = Path(__file__).parents[4] / "stages/starter/models"
QUESTIONS = ["red?", "Does the image have a blue square? Answer Yes or No.", "is it?\n"]
TEMPLATES = QuestionTemplates(
    edit_done=vlm_questions.EDIT_DONE, rest_same=vlm_questions.REST_SAME, has_object=vlm_questions.HAS_OBJECT
)


def kept_size(verifier: Verifier, num_images: int) -> tuple[int, int]:
    """A size that the processor doesn't resize, so that nothing is rounded."""
    name = type(verifier.processor).__name__
    if name == "Qwen3VLProcessor":
        return (64, 64)
    if name == "Qwen2_5_VLProcessor":
        return (56, 84)
    return (28, 28) if num_images == 1 else (20, 28)


def tokenizer_of_bytes() -> PreTrainedTokenizerFast:
    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=made)


def draw(num_images: int, size: tuple[int, int]) -> list[torch.Tensor]:
    """Rows of images whose values are exact levels."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (len(QUESTIONS), 3, *size), generator=generator) / 255 for _ in range(num_images)]


def last_logits(verifier: Verifier, images: list[torch.Tensor], question: str) -> torch.Tensor:
    """transformers' own way from PIL images to the logits `[V]` of the next token, for one row `[3, H, W]`."""
    pictures = [Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()) for image in images]
    content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": question}]
    inputs = verifier.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return verifier.model(**inputs).logits[0, -1]


@pytest.mark.parametrize("num_images", [1, 2])
def test_logits_and_losses_equal_transformers(verifier, num_images):
    images = draw(num_images, kept_size(verifier, num_images))
    rows = zip(*images, strict=True)
    full = torch.stack([last_logits(verifier, row, q) for row, q in zip(rows, QUESTIONS, strict=True)])
    vocabulary = verifier.processor.tokenizer.convert_tokens_to_ids
    assert (verifier.yes_id, verifier.no_id) == (vocabulary("Yes"), vocabulary("No"))
    logits = verifier.yes_no_logits(images, QUESTIONS)
    torch.testing.assert_close(logits, full[:, [verifier.yes_id, verifier.no_id]], atol=5e-5, rtol=0)
    assert logits.std(0).min() > 1e-3  # the rows differ

    right = [True, False, True]
    difference = torch.tensor([1.0, -1.0, 1.0]) * (logits[:, 0] - logits[:, 1])
    torch.testing.assert_close(verifier.loss(images, QUESTIONS, right), -torch.sigmoid(difference).log())
    targets = torch.tensor([verifier.yes_id if yes else verifier.no_id for yes in right])
    expected = F.cross_entropy(full, targets, reduction="none")
    found = verifier.loss(images, QUESTIONS, right, vocabulary=True)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("size", [(30, 41), (61, 28)])
def test_images_that_are_resized_answer_alike(verifier, size):
    """Where the processor rounds pixels, the answers stay as near as the pixels do."""
    images = draw(1, size)
    logits = verifier.yes_no_logits(images, QUESTIONS)
    tolerance = 0.1 if logits.abs().max() > 1 else 2e-3  # trained weights: logits of order 10; random ones: 0.1
    full = torch.stack([last_logits(verifier, [r], q) for r, q in zip(images[0], QUESTIONS, strict=True)])
    torch.testing.assert_close(logits, full[:, [verifier.yes_id, verifier.no_id]], atol=tolerance, rtol=0)


@pytest.mark.parametrize("vocabulary", [False, True])
def test_gradient_reaches_the_edited_pixels_alone(verifier, vocabulary):
    source, edited = draw(2, (30, 41))
    edited.requires_grad_()
    verifier.loss([source, edited], QUESTIONS, [True, False, True], vocabulary).sum().backward()
    assert edited.grad.isfinite().all() and (edited.grad != 0).float().mean() > 0.5
    assert source.grad is None and not any(p.requires_grad for p in verifier.model.parameters())
    assert not verifier.model.training


def test_a_step_along_the_gradient_lowers_the_loss(starter):
    source, edited = draw(2, (32, 32))
    edited.requires_grad_()
    loss = starter.loss([source, edited], QUESTIONS, [True, False, True])
    (gradient,) = torch.autograd.grad(loss.sum(), edited)
    after = starter.loss([source, edited - 1e-3 * gradient / gradient.norm()], QUESTIONS, [True, False, True])
    assert after.sum() < loss.sum()


@pytest.mark.parametrize(
    ("model", "processor"), [(qwen2_5_model, qwen2_5_processor), (onevision_model, onevision_processor)]
)
def test_bfloat16_weights_take_float32_pixels(model, processor):
    exact, coarse = Verifier(model(), processor()), Verifier(model().bfloat16(), processor())
    source, edited = draw(2, (30, 41))
    edited.requires_grad_()
    gradients = [
        torch.autograd.grad(one.loss([source, edited], QUESTIONS, [True] * 3).sum(), edited)[0]
        for one in (exact, coarse)
    ]
    assert gradients[1].dtype == torch.float32
    assert F.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.95


def test_rows_do_not_touch_each_other(qwen2_5):
    images = draw(2, (30, 41))
    images[1].requires_grad_()
    (gradient,) = torch.autograd.grad(qwen2_5.yes_no_logits(images, QUESTIONS)[1].sum(), images[1])
    assert (gradient[1] != 0).any() and not gradient[[0, 2]].any()


def test_starter_tells_a_true_edit_from_a_copy(starter):
    generator = np.random.default_rng(5)
    edits = [world.sample_edit(world.sample_scene(generator), generator) for _ in range(12)]

    def pixels(scenes):
        return torch.stack([torch.from_numpy(world.render(scene)) for scene in scenes]).permute(0, 3, 1, 2) / 255

    questions = [local_questions("any", edit.instruction, templates=TEMPLATES) for edit in edits]
    assert questions[0][0].text == vlm_questions.EDIT_DONE.format(instruction=edits[0].instruction)
    source, target = pixels([edit.source for edit in edits]), pixels([edit.target for edit in edits])
    done = [question.text for question, _ in questions]
    with torch.no_grad():
        edited = starter.yes_no_logits([source, target], done)
        copied = starter.yes_no_logits([source, source], done)
    assert ((edited[:, 0] - edited[:, 1]) > (copied[:, 0] - copied[:, 1])).sum() >= 10


def test_unknown_folders_and_answers_are_refused(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} can't verify edits .* name a folder with a Qwen2-VL"):
        load_verifier(str(tmp_path), "cpu", torch.float32)
    with pytest.raises(UserError, match="text_encoder can't verify edits"):
        load_verifier(str(MODELS / "flux/text_encoder"), "cpu", torch.float32)
    processor = onevision_processor()
    processor.tokenizer = tokenizer_of_bytes()
    with pytest.raises(ValueError, match="no single token for the answer Yes"):
        Verifier(onevision_model(), processor)


def test_text_that_stands_for_an_image_is_refused(onevision):
    with pytest.raises(UserError, match="holds <image>, which stands for an image"):
        onevision.yes_no_logits(draw(1, (28, 28)), ["red?", "<image> red?", "red?"])
