"""Wan's image-to-video and first/last-frame backbones against diffusers' pipeline."""

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from stages.train.backbones import wan_i2v
from stages.train.backbones.packing import pack, unpack
from stages.train.backbones.pictures import to_pixels
from tests.tiny_wan import HIDDEN_SIZE, IMAGE_TOKENS, new_transformer

HEIGHT, WIDTH, NUM_FRAMES = 16, 32, 9
GRID = (3, 2, 4)
KINDS = ["i2v", "flf2v"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipeline(tiny_wans, kind) -> WanImageToVideoPipeline:
    loaded = WanImageToVideoPipeline.from_pretrained(tiny_wans[kind])
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def encoder(tiny_wans, kind) -> wan_i2v.Encoder:
    return wan_i2v.Encoder(tiny_wans[kind], num_frames=NUM_FRAMES)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Two first pictures and two last ones."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in pixels]


@pytest.fixture(scope="module")
def known(kind, pictures) -> tuple[list[Image.Image], list[Image.Image] | None]:
    return pictures[:2], (pictures[2:] if kind == "flf2v" else None)


@pytest.fixture(scope="module")
def condition(encoder, known) -> torch.Tensor:
    first, last = known
    return encoder.encode_condition(to_pixels(first), last and to_pixels(last))


@pytest.fixture(scope="module")
def text(encoder, known) -> dict[str, torch.Tensor]:
    embeds = encoder.encode_text(["make it blue", "red circle"])
    return embeds | {"image_embeds": encoder.encode_images(*(pictures for pictures in known if pictures))}


def test_mask_and_condition_are_the_pipelines(pipeline, condition, known):
    first, last = known
    for row in range(2):
        _, theirs = pipeline.prepare_latents(
            to_pixels(first)[row : row + 1], 1, 16, HEIGHT, WIDTH, NUM_FRAMES, torch.float32,
            torch.device("cpu"), None, None, last and to_pixels(last)[row : row + 1],
        )  # fmt: skip
        ours = unpack(condition[row : row + 1], GRID)
        assert ours.shape == (1, 20, 3, 4, 8)
        assert torch.equal(ours[:, :4], theirs[:, :4])
        assert (ours[:, 4:] - theirs[:, 4:]).abs().max() < 1e-5


def test_pictures_are_seen_as_the_pipeline_sees_them(pipeline, text, known):
    first, last = known
    for row in range(2):
        theirs = pipeline.encode_image([first[row], last[row]] if last else first[row])
        assert text["image_embeds"][row].shape == (IMAGE_TOKENS * (2 if last else 1), HIDDEN_SIZE)
        assert (text["image_embeds"][row] - theirs.flatten(0, 1)).abs().max() < 1e-5


def test_we_sample_as_the_pipeline_does(pipeline, condition, text, known):
    first, last = known
    noise = torch.randn(2, 16, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    state = pack(noise)
    pipeline.scheduler.set_timesteps(3)
    nodes = pipeline.scheduler.sigmas
    for t, next_t in zip(nodes[:-1], nodes[1:], strict=True):
        with torch.no_grad():
            velocity = wan_i2v.velocity(pipeline.transformer, state, t.expand(2), text, condition, GRID)
        state = state + (next_t - t) * velocity
    for row in range(2):
        theirs = pipeline(
            image=first[row], last_image=last and last[row], prompt_embeds=text["prompt_embeds"][row : row + 1],
            height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES, num_inference_steps=3, guidance_scale=1.0,
            latents=noise[row : row + 1], output_type="latent",
        ).frames  # fmt: skip
        assert (unpack(state[row : row + 1], GRID) - theirs).abs().max() < 1e-5


def test_a_text_of_another_length_is_refused(pipeline, condition, text):
    short = text | {"prompt_embeds": text["prompt_embeds"][:, :300]}
    with pytest.raises(ValueError, match="300 tokens"):
        wan_i2v.velocity(pipeline.transformer, torch.randn(2, 24, 64), torch.rand(2), short, condition, GRID)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidden_states_are_what_the_next_layers_read(kind, condition, text, checkpointing):
    transformer = new_transformer(kind, num_layers=4).requires_grad_()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    read: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: read.update({name: args[0]}))
        for name, module in (("after 1", transformer.blocks[2]), ("after 3", transformer.norm_out))
    ]
    x_t, t = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.9])
    velocity, states = wan_i2v.velocity_and_hidden_states(transformer, x_t, t, text, condition, GRID, (1, 3))
    for handle in handles:
        handle.remove()
    assert torch.equal(velocity, wan_i2v.velocity(transformer, x_t, t, text, condition, GRID))
    assert len(states) == 2 and states[0].shape == (2, 24, 24)  # the second forward added nothing
    assert torch.equal(states[0], read["after 1"]) and torch.equal(states[1], read["after 3"])
    states[0].square().sum().backward()
    gradients = [next(block.attn1.to_q.parameters()).grad for block in transformer.blocks]
    assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [True, True, False, False]


def test_tiling_a_picture_gives_its_own_latent_and_not_a_clips_end(encoder, pictures):
    source, edited = to_pixels(pictures[:2]), to_pixels(pictures[2:])
    vae = encoder.pipeline.vae
    with torch.no_grad():
        four_times = vae.encode(edited.unsqueeze(2).expand(-1, -1, 4, -1, -1)).latent_dist.mode()
        once = vae.encode(edited.unsqueeze(2)).latent_dist.mode()
    assert four_times.shape[2] == 1 and torch.equal(four_times, once)
    tiled = encoder.encode_tail(source, edited, "tiled")
    assert torch.equal(tiled, encoder.encode_pixels(edited.unsqueeze(2)))

    tail = encoder.encode_tail(source, edited)
    frames = [source] + [edited] * (NUM_FRAMES - 1)
    assert torch.equal(tail, encoder.encode_pixels(torch.stack(frames, dim=2))[:, -8:])
    assert (tail - tiled).abs().mean() > 0.1 * tiled.abs().mean()
    # it knows what came before: from another source the clip ends in another latent
    other = encoder.encode_tail(edited.flip(0), edited)
    assert (tail - other).abs().max() > 1e-4
