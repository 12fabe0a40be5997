"""The judge on decoded edits, with the starter's own autoencoder and vision-language model."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cluster.errors import UserError
from stages.starter import vlm_questions, world
from stages.train.backbones import flux
from stages.train.roles import Batch
from stages.train.vlm.judge import EditJudge
from stages.train.vlm.questions import QuestionTemplates
from tests.stages.train.vlm.conftest import MODELS

TEMPLATES = QuestionTemplates(
    edit_done=vlm_questions.EDIT_DONE, rest_same=vlm_questions.REST_SAME, has_object=vlm_questions.HAS_OBJECT
)


@pytest.fixture(scope="module")
def encoder() -> flux.Encoder:
    return flux.Encoder(MODELS / "flux", max_length=16)


@pytest.fixture(scope="module")
def edits() -> list[world.Edit]:
    generator = np.random.default_rng(3)
    return [world.sample_edit(world.sample_scene(generator), generator) for _ in range(24)]


def tokens(encoder: flux.Encoder, scenes: list[world.Scene]) -> torch.Tensor:
    pictures = np.stack([world.render_float(scene) for scene in scenes])
    return encoder.encode_pixels(torch.from_numpy(pictures).float().permute(0, 3, 1, 2) * 2 - 1)


@pytest.fixture(scope="module")
def batch(encoder, edits) -> Batch:
    labels = {
        "edit_type": [edit.edit_type for edit in edits],
        "instruction": [edit.instruction for edit in edits],
        "object": [edit.object for edit in edits],
    }
    return Batch([], {"source": tokens(encoder, [edit.source for edit in edits])}, {}, labels)


def test_true_edits_lose_less_than_copies_and_scenes_drawn_anew(encoder, starter, edits, batch):
    judge = EditJudge(encoder, starter, TEMPLATES, (32, 32))
    generator = np.random.default_rng(4)
    other = [world.sample_scene(generator) for _ in edits]
    shown = {"true": [e.target for e in edits], "copy": [e.source for e in edits], "other": other}
    with torch.no_grad():
        loss, right = zip(*(judge(tokens(encoder, scenes), batch) for scenes in shown.values()), strict=True)
    assert loss[0].mean() < 0.5 * min(loss[1].mean(), loss[2].mean())
    assert right[0].mean() > 0.9 and right[1].mean() < 0.7 and right[2].mean() < 0.4


def test_its_gradient_moves_an_edit_towards_what_was_asked(encoder, starter, edits, batch):
    judge = EditJudge(encoder, starter, TEMPLATES, (32, 32))
    edited = batch.latents["source"].clone().requires_grad_()
    before, _ = judge(edited, batch)
    before.sum().backward()
    assert torch.isfinite(edited.grad).all() and (edited.grad.flatten(1).norm(dim=1) > 0).all()
    with torch.no_grad():
        after, _ = judge(edited - 0.02 * edited.grad / edited.grad.flatten(1).norm(dim=1)[:, None, None], batch)
    assert (after < before).float().mean() > 0.9


def test_without_the_identity_question_only_the_edit_counts(encoder, starter, edits, batch):
    both, one = (EditJudge(encoder, starter, TEMPLATES, (32, 32), identity) for identity in (True, False))
    target = tokens(encoder, [edit.target for edit in edits])
    with torch.no_grad():
        losses = [judge(target, batch)[0] for judge in (both, one)]
    assert (losses[0] > losses[1]).all()


def test_rows_are_judged_alike_in_any_company(encoder, starter, edits, batch):
    judge = EditJudge(encoder, starter, TEMPLATES, (32, 32))
    target = tokens(encoder, [edit.target for edit in edits])
    with torch.no_grad():
        together, _ = judge(target, batch)
        for row in (0, 5, 11):
            labels = {name: [column[row]] for name, column in batch.labels.items()}
            alone = Batch([], {"source": batch.latents["source"][row : row + 1]}, {}, labels)
            assert judge(target[row : row + 1], alone)[0] == pytest.approx(together[row].item(), abs=1e-4)


def test_a_removal_without_its_object_is_refused(encoder, starter, batch):
    labels = {"edit_type": ["remove"], "instruction": ["remove the hat"], "object": [None]}
    row = Batch([], {"source": batch.latents["source"][:1]}, {}, labels)
    with pytest.raises(UserError, match='"remove the hat" does not say which object'):
        EditJudge(encoder, starter, TEMPLATES, (32, 32))(row.latents["source"], row)


def test_the_profile_asks_in_the_words_that_its_model_knows():
    profile = yaml.safe_load((Path(__file__).parents[4] / "pipelines/profiles/np-edit.yaml").read_text())
    assert QuestionTemplates(**profile["train_np_edit"]["questions"]) == TEMPLATES
