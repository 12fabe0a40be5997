"""How CLIP and DINOv2 are taught: the mathematics in float64, that steps lower the losses, and resuming to the bit."""

import math
import re

import numpy as np
import pytest
import torch

from stages.starter import clip_model, dinov2_model, oracle
from stages.starter.clip_model import ClipModelSettings, ClipPool, draw_batch, new_processor, train_clip_model
from stages.starter.dinov2_model import (
    Dinov2ModelSettings,
    SelfDistillation,
    dino_loss,
    draw_views,
    koleo_loss,
    momentum_at,
    sample_pictures,
    teacher_targets,
    train_dinov2,
    views,
)
from stages.starter.pretrain import write_model
from stages.starter.progress import Progress

CLIP = ClipModelSettings(num_steps=6, num_edits=4, num_clips=2, clip_pool=2, checkpoint_seconds=0, warmup_steps=1)
DINO = Dinov2ModelSettings(
    num_steps=6, num_scenes=4, batch_size=4, num_edits=1, num_prototypes=16, checkpoint_seconds=0, warmup_steps=1
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def numbers():
    return np.random.default_rng(0)


def test_the_loss_of_dino_is_the_cross_entropy_with_the_other_view(numbers):
    student, targets = numbers.normal(size=(2, 3, 5)), numbers.dirichlet(np.ones(5), size=(2, 3))
    expected = []
    for s, t in ((0, 1), (1, 0)):
        for picture in range(3):
            logits = student[s, picture] / 0.1
            log_sum = math.log(sum(math.exp(x) for x in logits))
            expected.append(-sum(p * (x - log_sum) for p, x in zip(targets[t, picture], logits, strict=True)))
    found = dino_loss(torch.from_numpy(student), torch.from_numpy(targets), temperature=0.1)
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-12)


def test_targets_are_sinkhorns(numbers):
    logits = numbers.normal(size=(2, 4, 6))
    shares = np.exp(logits.reshape(8, 6) / 0.3)
    for _ in range(3):
        shares = shares / shares.sum(0)
        shares = shares / shares.sum(1)[:, None]
    found = teacher_targets(torch.from_numpy(logits), 0.3, num_iterations=3)
    np.testing.assert_allclose(found.flatten(0, 1).numpy(), shares, rtol=1e-10)


def test_centring_keeps_one_prototype_from_taking_all(numbers):
    logits = torch.from_numpy(numbers.uniform(-0.2, 0.2, size=(2, 64, 8)))
    logits[..., 3] += 0.7
    plain = (logits / 0.1).softmax(-1).mean((0, 1))
    assert plain[3] > 0.9
    centred = teacher_targets(logits, 0.1, num_iterations=3)
    np.testing.assert_allclose(centred.sum(-1), 1)
    assert centred.mean((0, 1)).max() < 1.05 / 8  # and every view still has favourites of its own
    assert centred.max(-1).values.mean() > 0.3


def test_a_lower_temperature_sharpens(numbers):
    logits = torch.from_numpy(numbers.uniform(-1, 1, size=(2, 32, 8)))
    entropies = [dinov2_model.entropy(teacher_targets(logits, t, 3)).mean() for t in (1.0, 0.1, 0.01)]
    assert entropies[0] > entropies[1] > entropies[2]
    assert dinov2_model.entropy(torch.full((8,), 1 / 8)) == pytest.approx(math.log(8))


def test_koleo_is_the_mean_log_distance_to_the_nearest(numbers):
    embeddings = numbers.normal(size=(6, 4))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    nearest = [min(np.linalg.norm(a - b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    found = koleo_loss(torch.from_numpy(embeddings))
    assert found.item() == pytest.approx(-np.mean(np.log(nearest)), rel=1e-6)


def test_the_teacher_is_the_average_of_the_student_and_is_taught_nothing_else():
    torch.manual_seed(0)
    module = SelfDistillation(num_prototypes=8)
    start = [p.detach().clone().double() for p in module.student.parameters()]
    expected = [p.clone() for p in start]
    for step in range(3):
        with torch.no_grad():
            for parameter in module.student.parameters():
                parameter += 0.1 * (step + 1)
        module.update_teacher(momentum=0.9)
        expected = [0.9 * e + 0.1 * p.double() for e, p in zip(expected, module.student.parameters(), strict=True)]
    for parameter, wanted in zip(module.teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.double(), wanted, atol=1e-6, rtol=1e-5)
    loss, targets = dinov2_model.training_loss(module, torch.rand(2, 3, 3, 32, 32), DINO)
    loss.backward()
    assert all(p.grad is None for p in module.teacher.parameters()) and not targets.requires_grad
    assert all(p.grad is not None for n, p in module.student.named_parameters() if "mask_token" not in n)


def test_the_teachers_momentum_rises_to_one():
    settings = Dinov2ModelSettings(num_steps=10, teacher_momentum=0.9)
    momenta = [momentum_at(step, settings) for step in range(11)]
    assert momenta[0] == pytest.approx(0.9) and momenta[5] == pytest.approx(0.95) and momenta[10] == 1
    assert momenta == sorted(momenta)


def test_a_view_is_a_crop_of_the_picture():
    picture = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)  # as bright as it is far to the right
    draw = torch.Generator().manual_seed(0)
    still = DINO.model_copy(update={"brightness": 0.0, "noise": 0.0, "light": 0.0, "area": (0.25, 0.25)})
    seen = views(picture.expand(20, 3, 32, 32), still, draw)
    assert seen.shape == (20, 3, 32, 32)
    slope = (seen[..., 24] - seen[..., 8]) / (picture[..., 24] - picture[..., 8])
    assert slope == pytest.approx(0.5, abs=1e-3)  # half of a side fills the view
    assert seen[..., 0].min() < 0.1 and seen[..., -1].max() > 0.9 and seen[:, 0, 0, 0].std() > 0.05
    whole = views(picture, still.model_copy(update={"area": (1.0, 1.0)}), draw)
    torch.testing.assert_close(whole, picture)


def test_a_view_has_another_light():
    gray = torch.full((30, 3, 32, 32), 0.5)
    plain = DINO.model_copy(update={"noise": 0.0, "brightness": 0.0, "area": (1.0, 1.0)})
    seen = views(gray, plain, torch.Generator().manual_seed(0)).mean(1)
    assert (seen.unflatten(-1, (4, 8)).unflatten(1, (4, 8)).std(dim=(2, 4)) < 1e-6).all()  # a patch has one light
    strength = (seen - 0.5).abs().amax((1, 2))
    assert 0.09 < strength.max() <= 0.12 + 1e-6 and strength.min() < 0.03
    assert len({tuple(np.sign(s.numpy() - 0.5).ravel()) for s in seen}) == 30


def test_pictures_stand_beside_their_edits_in_the_same_light():
    pictures = sample_pictures(DINO)
    assert pictures.shape == (4, 2, 3, 32, 32) and pictures.dtype == torch.uint8
    assert len({picture.numpy().tobytes() for picture in pictures.flatten(0, 1)}) == 8
    lights = [[oracle.read(p.permute(1, 2, 0).numpy()).light for p in family] for family in pictures]
    assert all(first == second for first, second in lights) and len({first for first, _ in lights}) == 4
    seen = draw_views(pictures, DINO, step=1)
    assert seen.shape == (2, 8, 3, 32, 32) and torch.equal(seen, draw_views(pictures, DINO, step=1))


def test_no_caption_is_twice_in_a_batch_and_none_is_cut():
    settings = ClipModelSettings(num_edits=40, num_clips=6, clip_pool=12)
    pool = ClipPool(12, seed=0)
    pictures, captions = draw_batch(settings, 3, pool)
    assert pictures.shape == (92, 32, 32, 3) and pictures.dtype == np.uint8
    assert len(captions) == len(set(captions)) == 92
    again, texts = draw_batch(settings, 3, pool)
    assert texts == captions and np.array_equal(again, pictures)
    inputs = clip_model.to_inputs(new_processor(), pictures, captions)
    ends = (inputs["input_ids"] == new_processor().tokenizer.eos_token_id).any(-1)
    assert inputs["input_ids"].shape[1] < clip_model.MAX_CAPTION_LENGTH and ends.all()


def test_pictures_are_prepared_as_the_processor_does():
    processor = new_processor()
    pictures, captions = draw_batch(CLIP, 0, ClipPool(2, seed=0))
    inputs = clip_model.to_inputs(processor, pictures, captions)
    expected = processor(text=captions, images=list(pictures), return_tensors="pt", padding=True)
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)


def losses(lines):
    return [float(re.search(r"loss (-?[\d.]+)", line).group(1)) for line in lines]


@pytest.mark.parametrize("train, settings", [(train_clip_model, CLIP), (train_dinov2, DINO)])
def test_steps_lower_the_loss(train, settings, tmp_path):
    lines: dict[int, list[str]] = {1: [], 25: []}
    for num_steps, log in lines.items():
        train(tmp_path / f"{num_steps}", settings.model_copy(update={"num_steps": num_steps}), log.append)
    assert losses(lines[25])[-1] < losses(lines[1])[-1] - 0.3


@pytest.mark.parametrize("train, settings", [(train_clip_model, CLIP), (train_dinov2, DINO)])
def test_a_killed_training_ends_like_an_undisturbed_one(train, settings, tmp_path, monkeypatch):
    write_model(tmp_path / "whole", *train(tmp_path / "a", settings, lambda line: None))
    step, num_steps = Progress.step, 0

    def killing_step(progress):
        nonlocal num_steps
        num_steps += 1
        if num_steps == 4:
            raise KeyboardInterrupt
        step(progress)

    monkeypatch.setattr(Progress, "step", killing_step)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", settings, lambda line: None)
    write_model(tmp_path / "resumed", *train(tmp_path / "b", settings, lambda line: None))
    assert num_steps == 7
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "resumed").iterdir()}
    assert "model.safetensors" in files and b"_name_or_path" not in files["config.json"]
