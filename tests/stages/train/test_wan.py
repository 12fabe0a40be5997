"""Wan's text-to-video backbone against diffusers' pipeline, and the reference's positions against ones made by hand."""

import pytest
import torch
from diffusers import WanPipeline

from stages.train.adapters import Adapters
from stages.train.backbones import wan
from stages.train.backbones.packing import pack, unpack
from tests.tiny_wan import HIDDEN_SIZE, new_transformer

HEIGHT, WIDTH, NUM_FRAMES = 16, 32, 9
GRID = (3, 2, 4)
NUM_TOKENS = 24
SHAPE = (2, NUM_TOKENS, 64)


@pytest.fixture(scope="module")
def pipeline(tiny_wans) -> WanPipeline:
    loaded = WanPipeline.from_pretrained(tiny_wans["t2v"])
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def encoder(tiny_wans) -> wan.Encoder:
    return wan.Encoder(tiny_wans["t2v"], max_length=16, num_frames=NUM_FRAMES)


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "x_t": torch.randn(SHAPE, generator=draw),
        "t": torch.tensor([0.9, 0.35]),
        "text": {"prompt_embeds": torch.randn(2, 16, HIDDEN_SIZE, generator=draw)},
        "reference": torch.randn(SHAPE, generator=draw),
    }


def velocity(transformer, inputs, **arguments) -> torch.Tensor:
    return wan.velocity(transformer, **inputs, grid=GRID, **arguments)


def test_tokens_are_patches_frame_by_frame():
    latents = torch.randn(2, 16, 3, 4, 8)
    tokens = pack(latents)
    for frame, row, column in ((0, 0, 0), (1, 1, 2), (2, 0, 3)):
        token = tokens[:, (frame * 2 + row) * 4 + column]
        patch = latents[:, :, frame, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(token, patch.flatten(1))
    assert torch.equal(unpack(tokens, GRID), latents)


def test_we_sample_as_the_pipeline_does_with_either_expert(pipeline, encoder):
    texts, noise = ["red circle", "blue square on gray background"], torch.randn(2, 16, 3, 4, 8)
    theirs = pipeline(
        texts, "green", height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES, num_inference_steps=4, guidance_scale=4.0,
        latents=noise, max_sequence_length=16, output_type="latent",
    ).frames  # fmt: skip
    text, negative = encoder.encode_text(texts), encoder.encode_text(["green"] * 2)
    nodes, state, experts = pipeline.scheduler.sigmas, pack(noise), []
    for t, next_t in zip(nodes[:-1], nodes[1:], strict=True):
        times = t.expand(2)
        experts.append(wan.expert_of(times, pipeline.config.boundary_ratio))
        with torch.no_grad():
            guided, unguided = (
                wan.velocity(getattr(pipeline, experts[-1]), state, times, given, None, GRID)
                for given in (text, negative)
            )
        state = state + (next_t - t) * (unguided + 4.0 * (guided - unguided))
    assert set(experts) == {"transformer", "transformer_2"}
    assert (unpack(state, GRID) - theirs).abs().max() < 1e-5


def test_without_reference_we_are_the_librarys_forward(inputs):
    transformer = new_transformer()
    ours = velocity(transformer, inputs | {"reference": None})
    theirs = transformer(
        hidden_states=unpack(inputs["x_t"], GRID),
        timestep=inputs["t"] * 1000,
        encoder_hidden_states=inputs["text"]["prompt_embeds"],
    ).sample
    assert torch.equal(unpack(ours, GRID), theirs)


class RopeOf(torch.nn.Module):
    """Rotary frequencies of the given positions (frame, row, column), computed one by one in float64."""

    def __init__(self, positions: list[tuple[int, int, int]], head_dim: int) -> None:
        super().__init__()
        side = 2 * (head_dim // 6)
        angles = torch.tensor(
            [
                [
                    place * 10000 ** (-2 * pair / width)
                    for place, width in zip(position, (head_dim - 2 * side, side, side), strict=True)
                    for pair in range(width // 2)
                ]
                for position in positions
            ],
            dtype=torch.float64,
        ).repeat_interleave(2, dim=1)
        self.frequencies = tuple(part.float()[None, :, None] for part in (angles.cos(), angles.sin()))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.frequencies


def test_the_references_positions_are_those_made_by_hand(inputs):
    transformer = new_transformer()
    ours = velocity(transformer, inputs)
    positions = [
        (frame, row, column)
        for _ in ("clip", "reference")
        for frame in range(GRID[0])
        for row in range(GRID[1])
        for column in range(GRID[2])
    ]
    transformer.rope = RopeOf(positions, transformer.config.attention_head_dim)
    clips = [unpack(inputs[name], GRID) for name in ("x_t", "reference")]
    theirs = transformer(
        hidden_states=torch.cat(clips, dim=2),
        timestep=inputs["t"] * 1000,
        encoder_hidden_states=inputs["text"]["prompt_embeds"],
    ).sample
    assert (unpack(ours, GRID) - theirs[:, :, : GRID[0]]).abs().max() < 1e-5


def test_shared_positions_are_for_one_forward_alone(inputs):
    transformer, twice = new_transformer(), (2 * GRID[0], *GRID[1:])
    alone = {name: inputs[name] for name in ("t", "text")} | {"reference": None, "grid": twice}
    both = torch.cat([inputs["x_t"], inputs["reference"]], dim=1)
    before = wan.velocity(transformer, both, **alone)
    shared = velocity(transformer, inputs)
    with pytest.raises(RuntimeError):
        velocity(transformer, inputs | {"text": {"prompt_embeds": torch.zeros(2, 16, 5)}})
    assert torch.equal(wan.velocity(transformer, both, **alone), before)
    assert (shared - before[:, :NUM_TOKENS]).abs().max() > 1e-3  # later frames have other positions


def test_time_reaches_the_sinusoids_in_float32(inputs):
    transformer, seen = new_transformer().to(torch.bfloat16), []
    transformer.condition_embedder.timesteps_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    half = {name: inputs[name].bfloat16() for name in ("x_t", "reference")}
    text = {"prompt_embeds": inputs["text"]["prompt_embeds"].bfloat16()}
    velocity(transformer, {"t": torch.tensor([0.12345678, 0.98765432]), "text": text, **half})
    assert seen[0].dtype == torch.float32
    assert torch.allclose(seen[0].double(), torch.tensor([123.45678, 987.65432], dtype=torch.float64), rtol=1e-7)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_reference_and_every_lora_tensor(inputs, checkpointing):
    transformer = new_transformer()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    adapters = Adapters(transformer)
    lora = adapters.add("student", 4, 4, wan.LORA_TARGETS, seed=0)
    with torch.no_grad():
        lora.flat.copy_(0.2 * torch.randn(lora.flat.shape, generator=torch.Generator().manual_seed(1)))
    lora.require_gradient()
    reference = inputs["reference"].clone().requires_grad_()
    with adapters.use("student"):
        adapters.backward(velocity(transformer, inputs | {"reference": reference}).square().mean(), "student")
    assert {path.split(".lora_")[0].split(".", 2)[-1] for path in lora.tensors} >= {"attn1.to_q", "attn2.to_out.0"}
    assert all(tensor.grad.abs().max() > 0 for tensor in lora.tensors.values())
    assert all(row.abs().max() > 0 for row in reference.grad.flatten(0, 1))
    number = lora.tensors["blocks.0.attn1.to_k.lora_B.weight"]
    shift = torch.zeros_like(number)
    shift[0, 0] = 1e-2
    sides = []
    for sign in (1, -1):
        with torch.no_grad(), adapters.use("student"):
            number += sign * shift
            sides.append(velocity(transformer.double(), {
                "x_t": inputs["x_t"].double(), "t": inputs["t"], "reference": inputs["reference"].double(),
                "text": {"prompt_embeds": inputs["text"]["prompt_embeds"].double()},
            }).square().mean())  # fmt: skip
            number -= sign * shift
    assert ((sides[0] - sides[1]) / 2e-2).item() == pytest.approx(number.grad[0, 0].item(), rel=1e-2)


def test_a_lora_of_ours_is_one_of_the_librarys(inputs, tmp_path):
    transformer = new_transformer()
    adapters = Adapters(transformer)
    lora = adapters.add("student", 4, 8, wan.LORA_TARGETS, seed=0)
    with torch.no_grad():
        lora.flat.copy_(0.2 * torch.randn(lora.flat.shape, generator=torch.Generator().manual_seed(1)))
    with adapters.use("student"):
        ours = velocity(transformer, inputs)
    modules = sorted({path.rsplit(".lora_", 1)[0] for path in lora.tensors})
    metadata = {"r": 4, "lora_alpha": 8.0, "target_modules": modules}
    WanPipeline.save_lora_weights(tmp_path, lora.tensors, transformer_lora_adapter_metadata=metadata)
    plain = new_transformer()
    plain.load_lora_adapter(tmp_path, use_safetensors=True)
    assert (velocity(plain, inputs) - ours).abs().max() < 1e-5
    assert (velocity(new_transformer(), inputs) - ours).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("times", "boundary_ratio", "expert"),
    [
        ([0.2, 0.9], None, "transformer"),
        ([0.875, 1.0], 0.875, "transformer"),
        ([0.8749, 0.0], 0.875, "transformer_2"),
        ([0.9], 0.9, "transformer"),
    ],
)
def test_the_boundary_belongs_to_the_high_noise_expert(times, boundary_ratio, expert):
    assert wan.expert_of(torch.tensor(times), boundary_ratio) == expert


def test_a_step_of_two_experts_is_refused():
    with pytest.raises(ValueError, match="both sides"):
        wan.expert_of(torch.tensor([0.1, 0.95]), 0.875)


def test_texts_are_encoded_to_their_end_alone(pipeline, tiny_wans):
    texts = ["red circle", "a blue square on gray background"]
    embeds = wan.Encoder(tiny_wans["t2v"]).encode_text(texts)["prompt_embeds"]
    assert embeds.shape == (2, 512, HIDDEN_SIZE)
    for text, row in zip(texts, embeds, strict=True):
        ids = pipeline.tokenizer(text, return_tensors="pt").input_ids
        alone = pipeline.text_encoder(ids).last_hidden_state[0]
        assert (row[: len(alone)] - alone).abs().max() < 1e-5
        assert not row[len(alone) :].any()


def test_clips_are_encoded_normalised_and_decoded_as_the_pipeline_does(pipeline, encoder):
    clips = torch.rand(2, 3, NUM_FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = encoder.encode_pixels(clips)
    assert tokens.shape == SHAPE and encoder.grid(HEIGHT, WIDTH) == GRID
    assert (encoder.token_size, encoder.token_channels, encoder.shift(NUM_TOKENS)) == (8, 64, 3.0)
    vae = pipeline.vae
    with torch.no_grad():
        latents = vae.encode(clips).latent_dist.mode()
    for channel, (mean, std) in enumerate(zip(vae.config.latents_mean, vae.config.latents_std, strict=True)):
        ours = unpack(tokens, GRID)[:, channel]
        assert (ours - (latents[:, channel] - mean) / std).abs().max() < 1e-5
    pixels = encoder.decode_pixels(tokens, HEIGHT, WIDTH)
    with torch.no_grad():
        assert (pixels * 2 - 1 - vae.decode(latents).sample).abs().max() < 1e-4
    first = encoder.encode_pixels(clips[:, :, :1])
    assert (first - tokens[:, :8]).abs().max() < 1e-5  # the first latent frame knows nothing of later ones


def test_gradients_go_through_decoding(encoder):
    tokens = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pixels = encoder.decode(tokens, HEIGHT, WIDTH)
    assert pixels.shape == (1, 3, 5, HEIGHT, WIDTH)
    pixels[:, :, 0].sum().backward()  # the first frame depends on the first latent frame alone
    assert (tokens.grad[0, :8].abs().amax(1) > 0).all() and not tokens.grad[0, 8:].any()


def test_a_clip_that_the_autoencoder_would_cut_is_refused(encoder):
    with pytest.raises(ValueError, match="8 frames"):
        encoder.encode_pixels(torch.zeros(1, 3, 8, HEIGHT, WIDTH))
