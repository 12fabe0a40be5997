"""FLUX with a reference, exported files and previews against diffusers' own pipelines; see also test_backbones.py."""

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.errors import UserError
from cluster.folder import Folder
from stages.train import flow
from stages.train.backbones import flux
from stages.train.backbones.pictures import to_pixels
from stages.train.engine import Trainer
from stages.train.export import FILE, read_lora, save_lora
from stages.train.preview import Item, Preview

CPU = torch.device("cpu")
NUM_STEPS = 3


def nontrivial(trainer: Trainer) -> Trainer:
    with torch.no_grad():
        trainer.ema.flat.copy_(0.2 * torch.randn(trainer.ema.flat.shape, generator=torch.Generator().manual_seed(9)))
    return trainer


@pytest.fixture
def pictures() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in pixels]


def pipeline_of(name: str, folder, **arguments):
    import diffusers

    pipeline = getattr(diffusers, name).from_pretrained(folder, **arguments)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def followed(encoder, transformer, texts, noise, reference, grid) -> torch.Tensor:
    text, state, nodes = encoder.encode_text(texts), noise, flow.sampling_nodes(NUM_STEPS)
    with torch.no_grad():
        for t, next_t in zip(nodes[:-1], nodes[1:], strict=True):
            velocity = flux.velocity(transformer, state, t.expand(len(state)), text, reference, grid, 2.5)
            state = state + (next_t - t) * velocity
    return state


def test_with_reference_we_do_what_kontext_does(flux_folder, pictures):
    pipeline = pipeline_of("FluxKontextPipeline", flux_folder)
    encoder = flux.Encoder(flux_folder, max_length=16)
    noise, texts = torch.randn(2, 4, 64), ["make the red circle blue", "remove the blue square"]
    theirs = pipeline(
        image=to_pixels(pictures) / 2 + 0.5, prompt=texts, height=16, width=16, num_inference_steps=NUM_STEPS,
        guidance_scale=2.5, latents=noise, max_sequence_length=16, output_type="latent", max_area=16 * 16,
        _auto_resize=False,
    ).images  # fmt: skip
    reference = encoder.encode_pixels(to_pixels(pictures))
    ours = followed(encoder, pipeline.transformer, texts, noise, reference, (2, 2))
    assert (ours - theirs).abs().max() < 1e-5
    without = followed(encoder, pipeline.transformer, texts, noise, None, (2, 2))
    assert (ours - without).abs().max() > 1e-3


def test_an_exported_lora_comes_back_and_its_bytes_are_always_the_same(byg_config, data, tmp_path):
    trainer = nontrivial(Trainer(byg_config, data, CPU))
    for name in "ab":
        save_lora(Folder(tmp_path / name), trainer.ema.tensors, byg_config.rank, byg_config.lora_alpha, flux)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()
    header = (tmp_path / "a" / FILE).read_bytes()[8:]
    assert header.index(b'"__metadata__"') == 1 and header.index(b'"format"') < header.index(b'"lora_adapter_metadata"')
    tensors = read_lora(tmp_path / "a", trainer.ema.shapes, byg_config.lora_alpha)
    other = Trainer(byg_config, data, CPU)
    assert all(torch.equal(tensor, trainer.ema.tensors[path]) for path, tensor in tensors.items())
    other.start_from(tmp_path / "a")
    assert torch.equal(other.student.flat, trainer.ema.flat) and torch.equal(other.ema.flat, trainer.ema.flat)


def test_a_lora_that_does_not_fit_is_refused(byg_config, data, tmp_path):
    trainer = Trainer(byg_config, data, CPU)
    save_lora(Folder(tmp_path), trainer.ema.tensors, byg_config.rank, byg_config.lora_alpha, flux)
    wider = Trainer(byg_config.model_copy(update={"rank": 8}), data, CPU)
    with pytest.raises(UserError, match="same model and rank"):
        read_lora(tmp_path, wider.ema.shapes, byg_config.lora_alpha)
    with pytest.raises(UserError, match="an alpha of 4, this training one of 9"):
        read_lora(tmp_path, trainer.ema.shapes, 9.0)
    with pytest.raises(UserError, match="can't be read"):
        read_lora(tmp_path / "nowhere", trainer.ema.shapes, 4.0)


def test_a_preview_is_what_the_exported_adapter_makes_at_inference(byg_config, data, flux_folder, pictures, tmp_path):
    trainer = nontrivial(Trainer(byg_config, data, CPU))
    texts = ("remove the blue square", "add a blue square")
    items = [Item(str(i), picture, *texts, "") for i, picture in enumerate(pictures)]
    seen = []

    def metric(item: Item, image: np.ndarray) -> dict[str, float]:
        seen.append(image)
        return {"brightness": float(image.mean())}

    preview = Preview(trainer, items, metric, NUM_STEPS)
    figures, png = preview()
    assert png.startswith(b"\x89PNG")
    assert figures.pop("preview_brightness") == pytest.approx(np.mean([image.mean() for image in seen]))
    assert list(figures) == [f"validation_cycle_t{level}" for level in (0.2, 0.4, 0.6, 0.8)]
    tokens, losses = preview.tokens()
    assert losses == figures
    t = torch.full((2,), 0.4)
    with torch.no_grad():
        x_t = flow.noised(preview.source, preview.noises[0], t)
        velocity = trainer.role("ema")(x_t, t, preview.reverse_text, tokens)
    expected = (velocity - (preview.noises[0] - preview.source)).square().mean().item()
    assert losses["validation_cycle_t0.4"] == pytest.approx(expected, rel=1e-5)
    save_lora(Folder(tmp_path), trainer.ema.tensors, byg_config.rank, byg_config.lora_alpha, flux)
    pipeline = pipeline_of("FluxKontextPipeline", flux_folder)
    pipeline.load_lora_weights(tmp_path)
    theirs = pipeline(
        image=to_pixels(pictures) / 2 + 0.5, prompt=[item.instruction for item in items], height=16, width=16,
        num_inference_steps=NUM_STEPS, guidance_scale=byg_config.guidance_scale, latents=preview.noises[0],
        max_sequence_length=16, max_area=16 * 16, _auto_resize=False,
    ).images  # fmt: skip
    assert all(np.abs(np.int32(a) - np.int32(b)).max() <= 1 for a, b in zip(seen, theirs, strict=True))


def test_previews_and_their_scores_change_nothing_in_training(byg_config, data, flux_folder, pictures):
    """A trainer that is previewed and scored after every step ends with the same bits as one that isn't."""
    plain = Trainer(byg_config, data, torch.device("cpu"))
    watched = Trainer(byg_config, data, torch.device("cpu"))
    texts = ("make it blue", "make it red")
    items = [Item(str(index), picture, *texts, "truth") for index, picture in enumerate(pictures[:2])]
    preview = Preview(watched, items, lambda item, image: {"whole_scene_right": float(image.mean() > 0)}, 2)
    for _ in range(3):
        plain.train_step()
        watched.train_step()
        scores, _ = preview()
        assert "preview_whole_scene_right" in scores
    for name, tensor in plain.state_tensors().items():
        assert torch.equal(tensor, watched.state_tensors()[name]), name


def test_previews_sample_at_the_times_of_the_models_scheduler(byg_config, data, flux_folder, pictures):
    from diffusers import FlowMatchEulerDiscreteScheduler

    items = [Item("0", pictures[0], "add", "remove", "")]
    preview = Preview(Trainer(byg_config, data, CPU), items, None, NUM_STEPS)
    assert torch.allclose(preview.nodes, torch.linspace(1, 0, NUM_STEPS + 1))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    preview.encoder.pipeline.scheduler = scheduler
    nodes = preview._nodes(NUM_STEPS)
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (4 - 256)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / NUM_STEPS, NUM_STEPS), mu=mu)
    assert torch.allclose(nodes, scheduler.sigmas, atol=1e-6)
