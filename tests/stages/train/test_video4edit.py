"""What Video4Edit's mathematics owes: both losses against float64 by hand, and a student that learns from a teacher."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from stages.train import flow
from stages.train.backbones import wan_i2v
from stages.train.backbones.packing import pack, unpack
from stages.train.backbones.pictures import to_pixels
from stages.train.methods import video4edit
from stages.train.methods.settings import Video4EditConfig
from stages.train.roles import Batch, Draws, Roles
from tests.tiny_wan import new_transformer

NUM_ROWS, GRID, CHANNELS = 4, (2, 2, 3), 16
NUM_TOKENS, FRAME_TOKENS = 12, 6


class Net:
    """A velocity that is linear in all it is given, with two hidden states on the way; keeps what it was given."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        sizes = {"x": CHANNELS, "reference": 20, "text": 5, "image": 7}
        self.weights = {
            name: (0.2 * torch.randn(size, CHANNELS, generator=draw).double()).requires_grad_()
            for name, size in sizes.items()
        }
        self.calls: list[tuple] = []

    def __call__(self, x_t, t, text, reference):
        self.calls.append((x_t, t, text, reference))
        first = x_t @ self.weights["x"] + reference @ self.weights["reference"]
        second = first + (text["prompt_embeds"] @ self.weights["text"]).mean(1, keepdim=True)
        second = second + (text["image_embeds"] @ self.weights["image"]).mean(1, keepdim=True)
        return second * (1 + t[:, None, None]), [first, second]


def batch_of(seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "rollout": (NUM_TOKENS, CHANNELS), "tail": (FRAME_TOKENS, CHANNELS),
        "source_condition": (NUM_TOKENS, 20), "pair_condition": (NUM_TOKENS, 20),
        "source_image_embeds": (3, 7), "pair_image_embeds": (6, 7),
    }  # fmt: skip
    latents = {
        name: torch.randn(NUM_ROWS, *shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()
    }
    assert set(latents) == set(video4edit.LATENTS)
    texts = {
        name: {"prompt_embeds": torch.randn(NUM_ROWS, 4, 5, generator=draw, dtype=torch.float64)}
        for name in video4edit.TEXTS
    }
    return Batch(list("abcd"), latents, texts, grid=GRID)


def stepped(config: Video4EditConfig, batch: Batch, student: Net, teacher: Net, rows: slice = slice(0, NUM_ROWS)):
    roles = Roles(
        None, None, None, lambda loss, name="student": loss.backward(), student_hidden=student, teacher_hidden=teacher
    )
    return video4edit.step(config, roles, batch, Draws(1, 0, NUM_ROWS, rows), 0)


def latent_frame(tokens: np.ndarray) -> np.ndarray:
    """Tokens `[6, 16]` of one latent frame as `[4 channels, 4, 6]`, one number at a time."""
    frame = np.zeros((4, 4, 6))
    for row in range(2):
        for column in range(3):
            for place, number in enumerate(tokens[row * 3 + column]):
                channel, y, x = place // 4, place // 2 % 2, place % 2
                frame[channel, 2 * row + y, 2 * column + x] = number
    return frame


def tail_by_hand(estimate: np.ndarray, tail: np.ndarray, beta: float) -> float:
    ours, wanted = latent_frame(estimate[-FRAME_TOKENS:]), latent_frame(tail)
    along_y = np.abs((ours[:, 1:] - ours[:, :-1]) - (wanted[:, 1:] - wanted[:, :-1])).mean()
    along_x = np.abs((ours[:, :, 1:] - ours[:, :, :-1]) - (wanted[:, :, 1:] - wanted[:, :, :-1])).mean()
    return np.abs(ours - wanted).mean() + beta * (along_y + along_x)


def test_the_tail_loss_is_that_of_the_last_latent_frame():
    batch = batch_of()
    estimate, tail = batch.latents["rollout"], batch.latents["tail"]
    for beta in (0.0, 0.7):
        ours = video4edit.tail_loss(estimate, tail, GRID, beta)
        wanted = [tail_by_hand(estimate[row].numpy(), tail[row].numpy(), beta) for row in range(NUM_ROWS)]
        assert ours.tolist() == pytest.approx(wanted, rel=1e-6)
    changed = estimate.clone()
    changed[:, :-FRAME_TOKENS] += 1
    assert torch.equal(video4edit.tail_loss(changed, tail, GRID, 0.7), video4edit.tail_loss(estimate, tail, GRID, 0.7))


def test_a_constant_error_has_no_gradient_term():
    tail = batch_of().latents["tail"]
    assert video4edit.tail_loss(tail + 0.25, tail, GRID, 100.0).tolist() == pytest.approx([0.25] * NUM_ROWS, rel=1e-4)


def test_late_times_count_more():
    weights = video4edit.tail_weight(torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0]))
    assert weights.tolist() == pytest.approx([1, 27 / 64, 1 / 8, 1e-3, 0], abs=1e-7)


def test_distillation_sums_blocks_whose_sizes_do_not_count():
    draw = torch.Generator().manual_seed(0)
    ours = [torch.randn(3, num, 8, generator=draw, dtype=torch.float64) for num in (4, 9)]
    theirs = [torch.randn(3, num, 8, generator=draw, dtype=torch.float64) for num in (4, 9)]
    wanted = sum(np.square(a.numpy() - b.numpy()).mean((1, 2)) for a, b in zip(ours, theirs, strict=True))
    assert video4edit.distillation_loss(ours, theirs).tolist() == pytest.approx(wanted.tolist(), rel=1e-6)


def test_a_step_is_the_papers_sum_by_hand():
    config = Video4EditConfig(lambda_kd=0.3, lambda_tail=2.0, beta=0.5, shift=2.0)
    batch, student, teacher = batch_of(), Net(0), Net(1)
    figures = stepped(config, batch, student, teacher)
    draws = Draws(1, 0, NUM_ROWS, slice(0, NUM_ROWS))
    noise = draws.normal(batch.latents["rollout"])
    t = draws.times(lambda n, g: flow.logit_normal(n, g, 2.0), "cpu")
    times = t.double()[:, None, None]
    x_t = (1 - times) * batch.latents["rollout"] + times * noise
    text, caption = (batch.texts[name]["prompt_embeds"] for name in video4edit.TEXTS)
    source, pair = (batch.latents[f"{name}_image_embeds"] for name in ("source", "pair"))
    student.weights = {name: weight.detach().clone().requires_grad_() for name, weight in student.weights.items()}
    velocity, hidden = student(
        x_t, t, {"prompt_embeds": text, "image_embeds": source}, batch.latents["source_condition"]
    )
    seen = {"prompt_embeds": caption, "image_embeds": pair}
    wanted_velocity, wanted = teacher(x_t, t, seen, batch.latents["pair_condition"])
    kd = sum((ours - theirs).square().mean() for ours, theirs in zip(hidden, wanted, strict=True))
    estimate = (x_t - times * velocity).detach().numpy()
    tail = np.mean(
        [
            (1 - t[row].item()) ** 3 * tail_by_hand(estimate[row], batch.latents["tail"][row].numpy(), 0.5)
            for row in range(NUM_ROWS)
        ]
    )
    assert figures["loss_kd"].item() == pytest.approx(kd.item(), rel=1e-6)
    assert figures["loss_tail"].item() == pytest.approx(tail, rel=1e-6)
    assert figures["loss_velocity"].item() == pytest.approx(
        (velocity - wanted_velocity).square().mean().item(), rel=1e-6
    )


def test_student_and_teacher_see_the_same_state_and_their_own_conditions():
    batch, student, teacher = batch_of(), Net(0), Net(1)
    stepped(Video4EditConfig(), batch, student, teacher)
    (ours,), (theirs,) = student.calls, teacher.calls
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert ours[2]["prompt_embeds"] is batch.texts["instruction"]["prompt_embeds"]
    assert theirs[2]["prompt_embeds"] is batch.texts["evolution_caption"]["prompt_embeds"]
    assert ours[3] is batch.latents["source_condition"] and theirs[3] is batch.latents["pair_condition"]
    assert all(weight.grad is None for weight in teacher.weights.values())
    plain = Net(1)
    stepped(Video4EditConfig(evolution_captions=False), batch, Net(0), plain)
    assert plain.calls[0][2]["prompt_embeds"] is batch.texts["instruction"]["prompt_embeds"]


def test_the_parts_are_weighted_and_can_be_left_out():
    gradients = {}
    for name, changes in {
        "both": {}, "kd": {"tail": False}, "tail": {"distillation": False},
        "paper": {"lambda_velocity": 0}, "half": {"lambda_kd": 0.5, "lambda_velocity": 0.5, "lambda_tail": 0.5},
    }.items():  # fmt: skip
        student, teacher = Net(0), Net(1)
        figures = stepped(Video4EditConfig(**changes), batch_of(), student, teacher)
        gradients[name] = student.weights["x"].grad
        assert ("loss_kd" in figures) == (name != "tail") == bool(teacher.calls)
        assert ("loss_tail" in figures) == (name != "kd")
    assert torch.allclose(gradients["both"], gradients["kd"] + gradients["tail"], rtol=1e-5)
    assert torch.allclose(gradients["both"], 2 * gradients["half"], rtol=1e-5)
    assert gradients["kd"].abs().max() > 0 and gradients["tail"].abs().max() > 0
    assert not torch.allclose(gradients["both"], gradients["paper"], rtol=1e-3)


def test_half_the_rows_give_half_of_the_gradient():
    batch, whole = batch_of(), Net(0)
    stepped(Video4EditConfig(), batch, whole, Net(1))
    parts = Net(0)
    for rows in (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4)):
        texts = {name: {"prompt_embeds": text["prompt_embeds"][rows]} for name, text in batch.texts.items()}
        part = Batch(batch.ids[rows], {name: latents[rows] for name, latents in batch.latents.items()}, texts, {}, GRID)
        stepped(Video4EditConfig(), part, parts, Net(1), rows)
    assert torch.allclose(parts.weights["x"].grad / 4, whole.weights["x"].grad, rtol=1e-5, atol=1e-9)


def test_blocks_are_spread_evenly_or_named():
    assert Video4EditConfig().distilled_blocks(40) == (9, 19, 29, 39)
    assert Video4EditConfig(blocks=3).distilled_blocks(40) == (12, 25, 39)
    assert Video4EditConfig(blocks=2).distilled_blocks(2) == (0, 1)
    assert Video4EditConfig(blocks=(0, 7)).distilled_blocks(8) == (0, 7)
    for blocks, num_layers in ((3, 2), ((0, 8), 8)):
        with pytest.raises(ValueError, match="can't be taken"):
            Video4EditConfig(blocks=blocks).distilled_blocks(num_layers)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"distillation": False, "tail": False}, "leave one on"),
        ({"blocks": (3, 1)}, "rising"),
        ({"blocks": ()}, "rising"),
        ({"blocks": 0}, "greater than"),
        ({"gamma": 1}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Video4EditConfig(**changes)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in pixels]


def test_the_teachers_rollout_is_the_pipelines(tiny_wans, pictures):
    pipeline = WanImageToVideoPipeline.from_pretrained(tiny_wans["flf2v"])
    pipeline.set_progress_bar_config(disable=True)
    encoder, grid = wan_i2v.Encoder(tiny_wans["flf2v"]), (2, 2, 2)
    caption, negative = (encoder.encode_text([text]) for text in ("red circle", "gray"))
    noise = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        image=pictures[0], last_image=pictures[1], height=16, width=16, num_frames=5, num_inference_steps=4,
        guidance_scale=3.0, latents=noise, output_type="latent", **caption,
        negative_prompt_embeds=negative["prompt_embeds"],
    ).frames  # fmt: skip
    embeds = {"image_embeds": encoder.encode_images(pictures[:1], pictures[1:])}
    condition = encoder.encode_condition(to_pixels(pictures[:1]), to_pixels(pictures[1:]))

    def teacher(x_t, t, text, reference):
        return wan_i2v.velocity(pipeline.transformer, x_t, t, text, reference, grid)

    pipeline.scheduler.set_timesteps(4)
    nodes = pipeline.scheduler.sigmas
    ours = video4edit.rollout(teacher, pack(noise), caption | embeds, condition, nodes, 3.0, negative | embeds)
    assert (unpack(ours, grid) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("part", ["both", "distillation", "tail", "velocity"])
def test_a_student_learns_from_a_teacher(tiny_wans, pictures, part):
    """Real tiny networks, trained whole in a bare loop, on a clip that the teacher sampled itself."""
    encoder, grid = wan_i2v.Encoder(tiny_wans["flf2v"]), (2, 2, 2)
    source, edited = to_pixels(pictures[:1]), to_pixels(pictures[1:])
    texts = {"instruction": encoder.encode_text(["red"]), "evolution_caption": encoder.encode_text(["red circle"])}
    latents = {
        "source_condition": encoder.encode_condition(source),
        "pair_condition": encoder.encode_condition(source, edited),
        "source_image_embeds": encoder.encode_images(pictures[:1]),
        "pair_image_embeds": encoder.encode_images(pictures[:1], pictures[1:]),
        "tail": encoder.encode_tail(source, edited),
    }
    whole = Video4EditConfig(blocks=2, lambda_tail=5.0, lambda_velocity=0.0)  # the velocity's pull is another one
    parts = {
        "both": {},
        "distillation": {"tail": False},
        "tail": {"distillation": False},
        "velocity": {"tail": False, "lambda_velocity": 1.0},
    }
    config = whole.model_copy(update=parts[part])
    student, teacher = new_transformer("i2v", seed=5).requires_grad_(), new_transformer("flf2v")
    blocks = whole.distilled_blocks(len(teacher.blocks))

    def shown_by(transformer):
        return lambda x_t, t, text, reference: wan_i2v.velocity_and_hidden_states(
            transformer, x_t, t, text, reference, grid, blocks
        )

    captioned = texts["evolution_caption"] | {"image_embeds": latents["pair_image_embeds"]}
    noise = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(0))
    latents["rollout"] = video4edit.rollout(
        lambda *inputs: shown_by(teacher)(*inputs)[0], noise, captioned, latents["pair_condition"],
        flow.sampling_nodes(4),
    )  # fmt: skip
    batch = Batch(["row"], latents, texts, grid=grid)
    roles = Roles(
        None, None, None, lambda loss, name="student": loss.backward(),
        student_hidden=shown_by(student), teacher_hidden=shown_by(teacher),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3, weight_decay=0.01)

    def losses() -> dict[str, float]:
        """Means over draws that aren't trained on."""
        with torch.no_grad():
            watching = dataclasses.replace(roles, backward=lambda loss, name="student": None)
            seen = [video4edit.step(whole, watching, batch, Draws(1, at, 1, slice(0, 1)), at) for at in range(10)]
        return {name: sum(figures[name].item() for figures in seen) / len(seen) for name in seen[0]}

    before = losses()
    for index in range(50):
        optimizer.zero_grad()
        video4edit.step(config, roles, batch, Draws(0, index, 1, slice(0, 1)), index)
        optimizer.step()
    after = losses()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert (after["loss_kd"] < 0.2 * before["loss_kd"]) == config.distillation
    assert (after["loss_tail"] < 0.85 * before["loss_tail"]) == config.tail
    assert (after["loss_velocity"] < 0.5 * before["loss_velocity"]) == (part == "velocity"), (before, after)
