"""What every backbone owes, with tiny random instances of the real classes: diffusers' own results, and training."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.sampler import Sampler
from stages.train.adapters import Adapter
from stages.train.backbones import sd3
from stages.train.backbones.backbone import BACKBONES, backbone_of, loading
from stages.train.backbones.image_encoder import pack, unpack
from stages.train.backbones.pictures import to_images, to_pixels
from stages.train.engine import Trainer
from stages.train.export import FILE as ADAPTER_FILE
from stages.train.export import save_lora
from stages.train.methods import byg
from stages.train.preview import Item, Preview
from stages.train.stage import identity_of
from tests.stages.train.test_engine import assert_alike, ranks, trained

CPU = torch.device("cpu")
TEXTS = ["red circle", "blue square on gray background"]
HEIGHT, WIDTH, GRID = 16, 24, (2, 3)
# A model that takes the guidance scale as an input is asked with one; another without classifier-free guidance.
GUIDANCE_SCALE = {True: 2.5, False: 1.0}


@pytest.fixture(params=["flux", "sd3"])
def model(request, tiny_flux, tiny_sd3) -> str:
    """The folder of a tiny pipeline of each backbone."""
    return str({"flux": tiny_flux, "sd3": tiny_sd3}[request.param])


@pytest.fixture
def pictures() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in pixels]


def pipeline_of(model: str):
    pipeline = backbone_of(model).PIPELINE.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draws(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def as_the_pipeline_has_them(tokens: torch.Tensor, backbone) -> torch.Tensor:
    return unpack(tokens, GRID) if backbone is sd3 else tokens


def as_tokens(latents: torch.Tensor) -> torch.Tensor:
    return pack(latents) if latents.ndim == 4 else latents


def randomized(trainer: Trainer) -> Trainer:
    """With a student and an average whose `B` are not zero, so that every tensor of theirs matters."""
    numbers = 0.2 * draws(trainer.ema.flat.numel())
    with torch.no_grad():
        trainer.ema.flat.copy_(numbers)
        trainer.student.flat.copy_(numbers)
    return trainer


def test_a_model_says_which_backbone_it_is(model, tmp_path):
    file = tmp_path / "model_index.json"
    for name, backbone in BACKBONES.items():
        file.write_text(json.dumps({"_class_name": name}))
        assert backbone_of(str(tmp_path)) is backbone
    assert type(pipeline_of(model)) is backbone_of(model).PIPELINE
    file.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UserError, match=r"model_index.json names the pipeline StableDiffusionPipeline, .*FluxPipeline"):
        backbone_of(str(tmp_path))
    file.unlink()
    with pytest.raises(UserError, match="model_index.json can't be read .*--set edit.model"):
        backbone_of(str(tmp_path), "edit.model")


def test_a_kontext_model_is_a_flux(tiny_flux, tmp_path):
    from diffusers import FluxKontextPipeline

    FluxKontextPipeline.from_pretrained(tiny_flux).save_pretrained(tmp_path)
    kontext, plain = Sampler(tmp_path, num_inference_steps=1), Sampler(tiny_flux, num_inference_steps=1)
    assert torch.equal(*(sampler.sample(TEXTS, draws(2, 4, 64), 16, 16) for sampler in (kontext, plain)))


def test_the_identity_of_a_training_names_the_backbone(byg_config, model):
    config = byg_config.model_copy(update={"model": model})
    assert identity_of(config)["backbone"] == backbone_of(model).NAME in ("flux", "sd3")


def test_what_goes_wrong_while_loading_names_the_pipeline(tiny_sd3, tmp_path):
    index = json.loads((tiny_sd3 / "model_index.json").read_text())
    shutil.copytree(tiny_sd3, tmp_path / "model", ignore=shutil.ignore_patterns("text_encoder_3"))
    model = str(tmp_path / "model")
    file = tmp_path / "model" / "model_index.json"
    file.write_text(json.dumps(index | {"text_encoder_3": [None, None]}))
    with pytest.raises(UserError, match="StableDiffusion3Pipeline .*text_encoder_3.*--set encode.model"):
        with loading(model, "encode.model") as backbone:
            backbone.Encoder(model)


def test_every_step_of_sampling_is_the_pipelines_own(model):
    backbone, pipeline = backbone_of(model), pipeline_of(model)
    noise, scale, theirs = draws(2, math.prod(GRID), 64), GUIDANCE_SCALE[backbone.GUIDANCE_IS_INPUT], []

    def keep(pipeline, step, timestep, values):
        theirs.append(as_tokens(values["latents"]))
        return values

    pipeline(
        prompt=TEXTS, height=HEIGHT, width=WIDTH, num_inference_steps=3, guidance_scale=scale,
        latents=as_the_pipeline_has_them(noise, backbone), max_sequence_length=16, output_type="latent",
        callback_on_step_end=keep,
    )  # fmt: skip
    text, state, nodes = backbone.Encoder(model).encode_text(TEXTS), noise, pipeline.scheduler.sigmas
    assert len(theirs) == 3
    for t, next_t, expected in zip(nodes[:-1], nodes[1:], theirs, strict=True):
        with torch.no_grad():
            velocity = backbone.velocity(pipeline.transformer, state, t.expand(2), text, None, GRID, scale, "shared")
        state = state + (next_t - t) * velocity
        assert (state - expected).abs().max() < 1e-5
    assert (state - noise).abs().max() > 0.1


def test_pixels_are_encoded_and_decoded_as_the_pipeline_does(model, pictures):
    backbone, pipeline = backbone_of(model), pipeline_of(model)
    encoder, vae, pixels = backbone.Encoder(model), pipeline.vae, to_pixels(pictures)
    tokens = encoder.encode_pixels(pixels)
    mode = vae.encode(pixels).latent_dist.mode()
    latents = (mode - vae.config.shift_factor) * vae.config.scaling_factor
    assert torch.equal(tokens, pack(latents)) and torch.equal(unpack(tokens, (2, 2)), latents)
    assert tokens.shape == (2, 4, encoder.token_channels) and encoder.grid(16, 16) == (2, 2)
    expected = pipeline.image_processor.postprocess(vae.decode(mode).sample.detach(), output_type="pil")
    decoded = to_images(encoder.decode_pixels(tokens, 16, 16))
    assert all(np.abs(np.int32(a) - np.int32(b)).max() <= 1 for a, b in zip(decoded, expected, strict=True))
    tokens.requires_grad_()
    encoder.decode(tokens, 16, 16).sum().backward()
    assert (tokens.grad.abs().amax(dim=2) > 0).all()
    assert all(parameter.grad is None for parameter in encoder.pipeline.vae.parameters())


def test_a_reference_matters_and_its_gradient_comes_back(model, pictures):
    backbone = backbone_of(model)
    encoder = backbone.Encoder(model)
    transformer = backbone.TRANSFORMER.from_pretrained(model, subfolder="transformer").requires_grad_(False)
    text, x_t, t = encoder.encode_text(TEXTS), draws(2, 4, 64), torch.tensor([0.3, 0.8])

    def velocity(reference):
        return backbone.velocity(transformer, x_t, t, text, reference, (2, 2), 2.5, "shared")

    reference = encoder.encode_pixels(to_pixels(pictures)).requires_grad_()
    without, given, other = velocity(None), velocity(reference), velocity(reference.detach().flip(0))
    assert given.shape == without.shape == x_t.shape
    assert (given - without).abs().max() > 1e-3 and (given - other).abs().max() > 1e-4
    given.square().sum().backward()
    assert (reference.grad.abs().amax(dim=2) > 0).all()
    assert torch.equal(velocity(None), without)  # nothing stays behind


def test_sd3_reference_has_the_positions_of_the_picture(tiny_sd3):
    """The library's own forward over both, one below the other, where the table of positions holds its middle twice."""
    transformer = sd3.TRANSFORMER.from_pretrained(tiny_sd3, subfolder="transformer").requires_grad_(False)
    text = sd3.Encoder(tiny_sd3).encode_text(TEXTS)
    x_t, reference, t = draws(2, 6, 64), draws(2, 6, 64).flip(0), torch.tensor([0.3, 0.8])
    ours = sd3.velocity(transformer, x_t, t, text, reference, GRID)
    embed = transformer.pos_embed
    middle = embed.cropped_pos_embed(2 * GRID[0], 2 * GRID[1])
    embed.pos_embed = middle.repeat(1, 2, 1)
    embed.cropped_pos_embed = lambda height, width: embed.pos_embed
    stacked = torch.cat([unpack(x_t, GRID), unpack(reference, GRID)], dim=2)
    theirs = transformer(
        hidden_states=stacked, encoder_hidden_states=text["prompt_embeds"],
        pooled_projections=text["pooled_prompt_embeds"], timestep=1000 * t,
    ).sample  # fmt: skip
    assert (ours - pack(theirs[:, :, : 2 * GRID[0]])).abs().max() < 1e-6


def test_sd3_times_stay_exact_in_bfloat16(tiny_sd3):
    transformer = sd3.TRANSFORMER.from_pretrained(tiny_sd3, subfolder="transformer", torch_dtype=torch.bfloat16)
    text = {name: embeds.bfloat16() for name, embeds in sd3.Encoder(tiny_sd3).encode_text(TEXTS).items()}
    seen = []
    transformer.time_text_embed.time_proj.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    t = torch.tensor([0.5001, 0.9999])
    velocity = sd3.velocity(transformer, draws(2, 6, 64).bfloat16(), t, text, None, GRID)
    assert velocity.dtype == torch.bfloat16
    assert seen[0].dtype == torch.float32 and torch.allclose(seen[0], torch.tensor([500.1, 999.9]))


def test_a_step_of_byg_reaches_every_tensor_of_the_lora(byg_config, data, model):
    method = byg.ByGConfig(identity_warmup=0, identity_steps=False, num_rollout_steps=3)
    trainer = randomized(Trainer(byg_config.model_copy(update={"model": model, "byg": method}), data, CPU))
    figures = trainer.train_step()
    assert {"loss_cycle", "loss_prior_forward"} <= set(figures) and all(map(math.isfinite, figures.values()))
    gradients = Adapter.views(trainer.student.gradient, trainer.student.shapes)
    assert [path for path, gradient in gradients.items() if not gradient.abs().max() > 0] == []


def test_the_exported_lora_gives_the_same_velocity_in_diffusers(byg_config, data, model, tmp_path):
    config = byg_config.model_copy(update={"model": model, "alpha": 7.0})  # not the rank
    trainer = randomized(Trainer(config, data, CPU))
    save_lora(Folder(tmp_path), trainer.ema.tensors, config.rank, config.lora_alpha, trainer.backbone)
    pipeline = pipeline_of(model)
    pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
    batch, t = trainer.batch([0, 1, 2]), torch.tensor([0.2, 0.5, 0.9])
    x_t, text, reference = batch.latents["target"], batch.texts["instruction"], batch.latents["source"]
    with torch.no_grad():
        ours, base = (trainer.role(name)(x_t, t, text, reference) for name in ("ema", None))
        theirs = trainer.backbone.velocity(
            pipeline.transformer, x_t, t, text, reference, data.grid, config.guidance_scale, config.reference_positions
        )
    assert (ours - base).abs().max() > 1e-2
    assert (ours - theirs).abs().max() < 1e-5


def test_a_preview_is_what_the_sampler_makes_with_the_exported_lora(byg_config, data, model, pictures, tmp_path):
    config = byg_config.model_copy(update={"model": model, "guidance_scale": 1.0})
    trainer = randomized(Trainer(config, data, CPU))
    save_lora(Folder(tmp_path), trainer.ema.tensors, config.rank, config.lora_alpha, trainer.backbone)
    items = [Item(text, picture, text, text, "") for picture, text in zip(pictures, TEXTS, strict=True)]
    preview = Preview(trainer, items, None, 3)
    ours, _ = preview.tokens()
    sampler = Sampler(model, {"byg": tmp_path}, num_inference_steps=3, guidance_scale=1.0)
    reference = sampler.tokens(pictures)
    theirs = sampler.sample(TEXTS, preview.noises[0], 16, 16, reference=reference, adapter="byg")
    assert (ours - theirs).abs().max() < 1e-5
    assert (sampler.sample(TEXTS, preview.noises[0], 16, 16, reference=reference) - theirs).abs().max() > 1e-2


def test_sd3_under_zero3_on_two_ranks_equals_one_plain_process(byg_config, data, encoded_folder, tiny_sd3, tmp_path):
    config = byg_config.model_copy(update={"model": str(tiny_sd3)})
    settings = {"num_steps": 3, "sharding": "zero3", "persistence_threshold": 0, "num_workers": 2}
    facts = ranks(config.model_copy(update=settings), encoded_folder, tmp_path, 2)
    assert facts["held"] < 0.6 * facts["whole"]
    assert_alike(trained(config, data, 3), tmp_path, num_stray=8)  # of 145,000, in student and average
