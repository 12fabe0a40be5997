import numpy as np
import pytest
import torch
from PIL import Image

from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.editors import Copy, FewStepEditor, FlowEdit, InstructionEditor, Item, Regenerate, SDEdit
from stages.edit.sampler import Sampler
from stages.starter import world
from stages.train import flow
from stages.train.adapters import Adapters
from stages.train.backbones.backbone import backbone_of
from stages.train.backbones.image_encoder import scheduler_shift
from stages.train.export import FILE as ADAPTER_FILE
from stages.train.export import save_lora

TEXTS = ["red circle top left on gray background", "blue square top right on teal background at night"]


@pytest.fixture(scope="module")
def sampler(tiny_flux):
    return Sampler(tiny_flux, num_inference_steps=4)


@pytest.fixture(scope="module")
def pipeline(tiny_flux):
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(tiny_flux)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def items():
    generator = np.random.default_rng(3)
    edits = [world.sample_edit(world.sample_scene(generator), generator) for _ in range(3)]
    return [
        Item(f"item-{index}", Image.fromarray(world.render(edit.source)), *texts_of(edit))
        for index, edit in enumerate(edits)
    ]


def item_noise(item_id, seed, *shape):
    return torch.randn(shape, generator=flow.item_generator(item_id, seed))


def texts_of(edit):
    return edit.instruction, edit.src_caption, edit.tgt_caption


def save_adapter(model, folder, seed, rank=2, alpha=4.0):
    """A random LoRA of the model, written as training writes it."""
    backbone = backbone_of(str(model))
    transformer = backbone.TRANSFORMER.from_pretrained(model, subfolder="transformer")
    tensors = Adapters(transformer).add("random", rank, alpha, ["to_q", "to_v", "proj_out"], seed).tensors
    generator = torch.Generator().manual_seed(seed)
    random = {path: torch.randn(t.shape, generator=generator) * 0.3 for path, t in tensors.items()}
    save_lora(folder, random, rank, alpha, backbone)


def draw(pipeline, texts, noise, height=32, width=32, num_inference_steps=4, output_type="latent"):
    return pipeline(
        prompt=texts,
        latents=noise,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        guidance_scale=3.5,
        max_sequence_length=16,
        output_type=output_type,
    ).images


@pytest.mark.parametrize("dynamic", [False, True])
def test_text_to_image_is_the_pipelines_own(sampler, pipeline, dynamic, monkeypatch):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, use_dynamic_shifting=dynamic, base_shift=0.5, max_shift=1.15
    )
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    monkeypatch.setattr(sampler.encoder.pipeline, "scheduler", scheduler)
    noise = sampler.noise(["a", "b"], 0, 32, 32)
    tokens = sampler.sample(TEXTS, noise, 32, 32)
    assert (tokens - draw(pipeline, TEXTS, noise)).abs().max() < 1e-5
    pictures = draw(pipeline, TEXTS, noise, output_type="pil")
    for ours, theirs in zip(sampler.pictures(tokens, 32, 32), pictures, strict=True):
        assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs)).max() <= 1


def test_shift_of_flux_dev_depends_on_the_size():
    flux_dev = {
        "use_dynamic_shifting": True,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
    }
    assert scheduler_shift(flux_dev, 256) == pytest.approx(np.exp(0.5))
    assert scheduler_shift(flux_dev, 4096) == pytest.approx(np.exp(1.15))
    assert scheduler_shift({"use_dynamic_shifting": False, "shift": 3.0}, 1024) == 3.0


def test_other_sizes_than_squares(sampler, pipeline):
    noise = sampler.noise(["a"], 0, 16, 48)
    tokens = sampler.sample(TEXTS[:1], noise, 16, 48)
    assert (tokens - draw(pipeline, TEXTS[:1], noise, 16, 48)).abs().max() < 1e-5
    assert sampler.pictures(tokens, 16, 48)[0].size == (48, 16)


def test_sdedit_from_codec_to_text_to_image(sampler, items):
    images, texts = [item.image for item in items], [item.tgt_caption for item in items]
    source = sampler.tokens(images)
    noise = sampler.noise([item.item_id for item in items], 0, 32, 32)
    assert torch.equal(sampler.vary(texts, noise, 32, 32, source, 0.0), source)
    drawn = sampler.sample(texts, noise, 32, 32)
    assert torch.equal(sampler.vary(texts, noise, 32, 32, source, 1.0), drawn)
    distances = [(sampler.vary(texts, noise, 32, 32, source, strength) - source).norm() for strength in (0.2, 0.5, 0.8)]
    assert 0 < distances[0] < distances[1] < distances[2]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    vae = sampler.encoder.pipeline.vae
    with torch.no_grad():
        decoded = vae(pixels / 127.5 - 1).sample
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).byte().numpy()
    for picture, array in zip(sampler.pictures(source, 32, 32), expected, strict=True):
        assert np.abs(np.asarray(picture, dtype=int) - array).max() <= 1


def test_an_items_picture_does_not_depend_on_its_batch(sampler, items):
    flow_edit = FlowEdit(sampler, 0, 0.75, 0.25, 2, (1.5, 5.5))
    few_step = FewStepEditor(sampler, 0, None, (1.0, 0.5))
    untuned = (Copy(), InstructionEditor(sampler, 0), Regenerate(sampler, 0))
    for editor in (*untuned, few_step, SDEdit(sampler, 0, 0.6), flow_edit):
        together = editor.edit(items)
        alone = [editor.edit([item])[0] for item in reversed(items)][::-1]
        for a, b in zip(together, alone, strict=True):
            assert a.size == (32, 32) and a.mode == "RGB"
            assert np.abs(np.asarray(a, dtype=int) - np.asarray(b)).max() <= 1


def test_flow_edit_is_the_papers_algorithm(sampler, items):
    """Algorithm 1 step by step, on the velocities that the transformer gives when it is called by hand."""
    guidance_scales, num_steps, n_max, n_min, n_avg = (1.5, 5.5), 4, 3, 1, 2
    encoder, item = sampler.encoder, items[0]
    x_src = sampler.tokens([item.image])
    generator = flow.item_generator(item.item_id, 0)
    positions = torch.tensor([[0.0, row, column] for row in range(4) for column in range(4)])

    def v(z, t, caption, guidance_scale):
        text = encoder.encode_text([caption])
        with torch.no_grad():
            return sampler.transformer(
                hidden_states=z,
                encoder_hidden_states=text["prompt_embeds"],
                pooled_projections=text["pooled_prompt_embeds"],
                timestep=torch.tensor([t]),
                guidance=torch.tensor([guidance_scale]),
                img_ids=positions,
                txt_ids=torch.zeros(text["prompt_embeds"].shape[1], 3),
            ).sample

    def draw_noise():
        return torch.randn(16, 64, generator=generator)

    z_fe = x_src
    for i in range(n_max, n_min, -1):
        t, delta = i / num_steps, 0
        for _ in range(n_avg):
            z_src = (1 - t) * x_src + t * draw_noise()
            z_tar = z_fe + z_src - x_src
            v_tgt = v(z_tar, t, item.tgt_caption, guidance_scales[1])
            delta = delta + (v_tgt - v(z_src, t, item.src_caption, guidance_scales[0])) / n_avg
        z_fe = z_fe - delta / num_steps
    t = n_min / num_steps
    z_tar = z_fe + ((1 - t) * x_src + t * draw_noise()) - x_src
    for i in range(n_min, 0, -1):
        z_tar = z_tar - v(z_tar, i / num_steps, item.tgt_caption, guidance_scales[1]) / num_steps

    edited = FlowEdit(sampler, 0, n_max / num_steps, n_min / num_steps, n_avg, guidance_scales).edit([item])[0]
    expected = sampler.pictures(z_tar, 32, 32)[0]
    assert np.abs(np.asarray(edited, dtype=int) - np.asarray(expected)).max() <= 1
    assert np.abs(np.asarray(edited, dtype=int) - np.asarray(item.image)).max() > 10


def test_flow_edit_with_equal_captions_is_the_codec(sampler, items):
    same = [Item(item.item_id, item.image, "", item.src_caption, item.src_caption) for item in items]
    edited = FlowEdit(sampler, 0, 1.0, 0.0, 1, (3.5, 3.5)).edit(same)
    decoded = sampler.pictures(sampler.tokens([item.image for item in items]), 32, 32)
    for ours, codec in zip(edited, decoded, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(codec))


def test_noise_is_the_items_own(sampler):
    draw_noise = sampler.noises(["a", "b"], 0, 32, 32)
    first, second = draw_noise(), draw_noise()
    assert torch.equal(first, sampler.noise(["a", "b"], 0, 32, 32))
    assert torch.equal(first[1], item_noise("b", 0, 16, 64))
    alone = sampler.noises(["b"], 0, 32, 32)
    alone()
    assert torch.equal(alone()[0], second[1]) and not torch.equal(first, second)
    assert torch.equal(item_noise("a", 0, 16, 64), item_noise("a", 0, 16, 64))
    assert not torch.equal(item_noise("a", 0, 16, 64), item_noise("b", 0, 16, 64))
    assert not torch.equal(item_noise("a", 0, 16, 64), item_noise("a", 1, 16, 64))
    assert item_noise("a", 0, 1000, 64).std() == pytest.approx(1, abs=0.02)


def test_reference_and_instruction_matter(sampler, items):
    editor = InstructionEditor(sampler, 0)
    edited = np.asarray(editor.edit(items[:1])[0], dtype=int)
    other_source = Item("item-0", items[1].image, items[0].instruction, "", "")
    other_text = Item("item-0", items[0].image, items[1].instruction, "", "")
    for other in (other_source, other_text):
        assert np.abs(np.asarray(editor.edit([other])[0], dtype=int) - edited).max() > 0


def test_adapters_are_those_of_the_pipeline_and_do_not_mix(tiny_flux, tmp_path, pipeline):
    seeds = {"byg": 1, "sft": 2}
    folders = {name: tmp_path / name for name in seeds}
    for name, seed in seeds.items():
        save_adapter(tiny_flux, Folder(folders[name]), seed)
    sampler = Sampler(tiny_flux, folders, num_inference_steps=2)
    noise = sampler.noise(["a", "b"], 0, 32, 32)
    base = Sampler(tiny_flux, num_inference_steps=2).sample(TEXTS, noise, 32, 32)
    for name in ("byg", "sft", "byg"):
        pipeline.load_lora_weights(folders[name], weight_name=ADAPTER_FILE, adapter_name=name)
        expected = draw(pipeline, TEXTS, noise, num_inference_steps=2)
        pipeline.unload_lora_weights()
        tokens = sampler.sample(TEXTS, noise, 32, 32, adapter=name)
        assert (tokens - expected).abs().max() < 1e-4
        assert (tokens - base).abs().max() > 1e-2
        assert torch.equal(sampler.sample(TEXTS, noise, 32, 32), base)


def test_bfloat16_is_near(tiny_flux, sampler, items):
    coarse = Sampler(tiny_flux, num_inference_steps=4, dtype=torch.bfloat16)
    ours, theirs = (InstructionEditor(s, 0).edit(items[:1])[0] for s in (coarse, sampler))
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs)).mean() < 4


def test_size_that_is_not_made_of_tokens_is_named(sampler):
    item = Item("item-7", Image.new("RGB", (36, 32)), "remove the red circle", "", "")
    with pytest.raises(UserError, match=r"'item-7' is 36x32 pixels; .* multiples of 8"):
        Regenerate(sampler, 0).edit([item])


def test_what_cannot_be_loaded_is_named(tiny_flux, tmp_path):
    with pytest.raises(UserError, match="--set edit.model"):
        Sampler(tmp_path / "nothing")
    with pytest.raises(UserError, match="adapter 'byg'"):
        Sampler(tiny_flux, {"byg": tmp_path / "nothing"})
    from safetensors.torch import save_file

    (tmp_path / "foreign").mkdir()
    save_file({"unet.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "foreign" / ADAPTER_FILE)
    with pytest.raises(UserError, match="holds no LoRA"):
        Sampler(tiny_flux, {"byg": tmp_path / "foreign"})
    (tmp_path / "misfit").mkdir()
    shapes = {"A": (2, 9), "B": (9, 2)}
    key = "transformer.transformer_blocks.0.attn.to_q.lora_{}.weight"
    save_file({key.format(n): torch.zeros(s) for n, s in shapes.items()}, tmp_path / "misfit" / ADAPTER_FILE)
    with pytest.raises(UserError, match="doesn't fit the model"):
        Sampler(tiny_flux, {"byg": tmp_path / "misfit"})
