"""What NP-Edit's mathematics owes: DMD's sign and value on Gaussians, the unrolling, whose turn trains what."""

import pytest
import torch

from stages.train import flow
from stages.train.methods import np_edit
from stages.train.methods.settings import NPEditConfig
from stages.train.roles import Batch, Draws, Roles

NUM_ROWS, NUM_TOKENS, NUM_CHANNELS = 6, 4, 3
SHAPE = (NUM_ROWS, NUM_TOKENS, NUM_CHANNELS)


class Net:
    """A velocity that is linear in all it is given."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights = {
            name: (0.4 * torch.randn(NUM_CHANNELS, NUM_CHANNELS, generator=generator).double()).requires_grad_()
            for name in ("x", "text", "reference")
        }
        self.calls: list[float] = []

    def __call__(self, x_t, t, text, reference):
        self.calls.append(t[0].item())
        velocity = x_t @ self.weights["x"] + text["prompt_embeds"] @ self.weights["text"]
        if reference is not None:
            velocity = velocity + reference @ self.weights["reference"]
        return velocity * (1 + t[:, None, None])


class Judge:
    """Likes edits that lie near a point; three questions in four are answered rightly."""

    def __init__(self, wanted: float) -> None:
        self.wanted = wanted

    def __call__(self, edited, batch):
        return (edited - self.wanted).square().flatten(1).mean(1), torch.full((len(edited),), 0.75)


def batch_of(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)  # noqa: E731
    return Batch(list("abcdef"), {"source": draw()}, {name: {"prompt_embeds": draw()} for name in np_edit.TEXTS})


def roles_of(student: Net, auxiliary: Net, wanted: float = 0.0) -> Roles:
    return Roles(student, student, Net(3), lambda loss, name="student": loss.backward(), auxiliary, Judge(wanted))


def draws_of(step: int = 0) -> Draws:
    return Draws(1, step, NUM_ROWS, slice(0, NUM_ROWS))


def gaussian_velocity(x_t, t, mean, variance):
    """The velocity field whose flow carries noise to N(mean, variance): E[eps - x0 | x_t], in closed form."""
    spread = (1 - t) ** 2 * variance + t**2
    residual = x_t - (1 - t) * mean
    clean = mean + (1 - t) * variance / spread * residual
    noise = t / spread * residual
    return noise - clean


@pytest.mark.parametrize("t", [0.2, 0.6, 0.95])
def test_dmd_is_the_difference_of_scores_of_two_gaussians_with_its_sign(t):
    generator = torch.Generator().manual_seed(0)
    real, fake, variances = 1.5, -0.5, (0.2, 0.4)
    x0 = fake + variances[1] ** 0.5 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    times = torch.full((NUM_ROWS,), t, dtype=torch.float64)
    x_t = flow.noised(x0, noise, times)
    v_real, v_fake = (gaussian_velocity(x_t, t, *of) for of in zip((real, fake), variances, strict=True))
    ours = np_edit.dmd_gradient(x0, x_t, times, v_real, v_fake)
    # the gradient of KL(fake || real) by x_t is s_fake - s_real, the scores of the marginals at t
    s_real, s_fake = (
        -(x_t - (1 - t) * mean) / ((1 - t) ** 2 * variance + t**2)
        for mean, variance in zip((real, fake), variances, strict=True)
    )
    scale = (x0 - (x_t - t * v_real)).abs().mean((1, 2), keepdim=True)
    assert torch.allclose(ours * scale, t**2 / (1 - t) * (s_fake - s_real), atol=1e-6)
    assert ours.mean() < 0  # descending moves the edits up, to the teacher's larger mean


def test_descending_dmd_moves_a_gaussian_onto_the_teachers():
    teacher, mean = 1.5, torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    optimizer, variance = torch.optim.SGD([mean], lr=0.02), 0.3

    def velocity_of(center):
        return lambda x_t, t, text, reference: gaussian_velocity(x_t, t[:, None, None], center, variance)

    for step in range(150):
        draws = draws_of(step)
        x0 = mean + variance**0.5 * draws.normal(torch.zeros(SHAPE, dtype=torch.float64))
        batch = Batch([], {}, {"tgt_caption": {}})
        roles = Roles(None, None, velocity_of(teacher), None, velocity_of(mean.detach().clone()))
        optimizer.zero_grad()
        np_edit.dmd_loss(NPEditConfig(), roles, batch, draws, x0).mul(x0[0].numel()).backward()
        optimizer.step()
    assert mean.item() == pytest.approx(teacher, abs=0.05)


def test_each_sample_of_dmd_has_its_own_scale():
    generator = torch.Generator().manual_seed(2)
    x0, x_t, v_real, v_fake = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(4))
    t = torch.rand(NUM_ROWS, generator=generator, dtype=torch.float64)
    ours = np_edit.dmd_gradient(x0, x_t, t, v_real, v_fake)
    for row in range(NUM_ROWS):
        x_real, x_fake = (x_t[row] - t[row] * v[row] for v in (v_real, v_fake))
        wanted = (x_fake - x_real) / (x0[row] - x_real).abs().mean()
        assert torch.allclose(ours[row], wanted, rtol=1e-5)


def test_two_steps_are_unrolled_as_written():
    config = NPEditConfig(times=(0.5,), single_step_turns=2)
    student, batch = Net(0), batch_of()
    draws = draws_of()
    noise, fresh = draws.normal(batch.latents["source"]), draws.normal(batch.latents["source"])
    text, source = batch.texts["instruction"], batch.latents["source"]
    ones = torch.ones(NUM_ROWS)
    first = noise - student(noise, ones, text, source)
    x_t = 0.5 * first + 0.5 * fresh
    second = x_t - 0.5 * student(x_t, 0.5 * ones, text, source)
    roles = roles_of(student, Net(1))
    assert torch.allclose(np_edit.unroll(config, roles, batch, draws_of(), num_turns=1), first)
    assert torch.allclose(np_edit.unroll(config, roles, batch, draws_of(), num_turns=2), second)


def test_sampling_in_two_steps_is_what_was_trained():
    config = NPEditConfig(times=(0.5, 1.0), single_step_turns=0)
    assert config.few_step_times == (1.0, 0.5)
    student, batch, draws = Net(0), batch_of(), draws_of()
    noises = [draws.normal(batch.latents["source"]) for _ in config.few_step_times]
    text, source = batch.texts["instruction"], batch.latents["source"]
    sampled = flow.few_step(lambda x, t: student(x, t, text, source), noises, config.few_step_times)
    two_steps = NPEditConfig(times=(0.5,), single_step_turns=0)
    trained = np_edit.unroll(two_steps, roles_of(student, Net(1)), batch, draws_of(), num_turns=0)
    assert torch.allclose(sampled, trained)


def test_a_model_that_knows_the_answer_gives_it_at_any_times():
    answer = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))
    noises = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    seen = []

    def velocity(x_t, t):
        seen.append(t[0].item())
        return (x_t - answer) / t[:, None, None]

    for times in ((1.0,), NPEditConfig().few_step_times):
        seen.clear()
        assert torch.allclose(flow.few_step(velocity, noises, times), answer, atol=1e-5)
        assert seen == list(times)


@pytest.mark.parametrize("through_both_steps", [True, False])
def test_gradient_goes_through_both_steps_or_the_last_alone(through_both_steps):
    config = NPEditConfig(times=(0.5,), single_step_turns=0, through_both_steps=through_both_steps)
    batch, gradients = batch_of(), []
    student = Net(0)
    np_edit.unroll(config, roles_of(student, Net(1)), batch, draws_of(), 0).sum().backward()
    gradients.append(student.weights["x"].grad.clone())
    student.weights["x"].grad = None
    draws = draws_of()
    noise, fresh = draws.normal(batch.latents["source"]), draws.normal(batch.latents["source"])
    text, source, ones = batch.texts["instruction"], batch.latents["source"], torch.ones(NUM_ROWS)
    first = noise - student(noise, ones, text, source)
    x_t = 0.5 * (first if through_both_steps else first.detach()) + 0.5 * fresh
    (x_t - 0.5 * student(x_t, 0.5 * ones, text, source)).sum().backward()
    assert torch.allclose(gradients[0], student.weights["x"].grad)


def test_turns_follow_the_algorithm():
    config = NPEditConfig(identity_warmup=2, num_auxiliary_updates=2)
    turns = [np_edit.turn_of(config, index) for index in range(8)]
    a = "auxiliary"
    assert turns == [
        ("warmup", 0), ("warmup", 0), ("student", 0), (a, 1), (a, 1), ("student", 1), (a, 2), (a, 2)
    ]  # fmt: skip
    alone = config.model_copy(update={"dmd": False})
    assert [np_edit.turn_of(alone, index)[0] for index in range(2, 6)] == ["student"] * 4


def test_each_turn_trains_its_own_network_alone():
    config = NPEditConfig(identity_warmup=1, num_auxiliary_updates=1, nothing_probability=0)
    for index, (trains_student, trains_auxiliary) in enumerate([(True, False), (True, False), (False, True)]):
        student, auxiliary = Net(0), Net(1)
        figures = np_edit.step(config, roles_of(student, auxiliary), batch_of(), draws_of(index), index)
        assert (student.weights["x"].grad is not None) == trains_student
        assert (auxiliary.weights["x"].grad is not None) == trains_auxiliary
        assert all(torch.isfinite(value) for value in figures.values())


def test_the_parts_are_weighted_and_can_be_left_out():
    gradients = {}
    for name, changes in {
        "both": {}, "vlm": {"dmd": False}, "dmd": {"vlm": False}, "half": {"lambda_vlm": 0.005, "lambda_dmd": 0.25}
    }.items():  # fmt: skip
        config = NPEditConfig(identity_warmup=0, nothing_probability=0, **changes)
        student = Net(0)
        np_edit.student_step(config, roles_of(student, Net(1), wanted=2.0), batch_of(), draws_of(), 0)
        gradients[name] = student.weights["x"].grad
    assert torch.allclose(gradients["both"], gradients["vlm"] + gradients["dmd"], rtol=1e-4)
    assert torch.allclose(gradients["both"], 2 * gradients["half"], rtol=1e-4)


def test_do_nothing_pulls_the_edit_to_the_source():
    config = NPEditConfig(identity_warmup=0, nothing_probability=1)
    student, batch = Net(0), batch_of()
    figures = np_edit.student_step(config, roles_of(student, Net(1)), batch, draws_of(), 0)
    draws = draws_of()
    assert draws.chance(1)
    edited = np_edit.unroll(config, roles_of(student, Net(1)), batch, draws, 0, "nothing")
    assert figures["loss_nothing"].item() == pytest.approx((edited - batch.latents["source"]).square().mean().item())


def test_half_the_rows_give_half_of_the_gradient():
    config = NPEditConfig(identity_warmup=0, nothing_probability=0)
    student, batch = Net(0), batch_of()
    np_edit.student_step(config, roles_of(student, Net(1)), batch, draws_of(), 5000)
    whole, student.weights["x"].grad = student.weights["x"].grad.clone(), None
    for rows in (slice(0, 3), slice(3, 6)):
        texts = {name: {"prompt_embeds": text["prompt_embeds"][rows]} for name, text in batch.texts.items()}
        half = Batch(batch.ids[rows], {"source": batch.latents["source"][rows]}, texts)
        np_edit.student_step(config, roles_of(student, Net(1)), half, Draws(1, 0, NUM_ROWS, rows), 5000)
    assert torch.allclose(student.weights["x"].grad / 2, whole, rtol=1e-4, atol=1e-9)


def test_settings_that_teach_nothing_are_refused():
    with pytest.raises(ValueError, match="leave one of them on"):
        NPEditConfig(vlm=False, dmd=False)
    with pytest.raises(ValueError, match="times lie above 0"):
        NPEditConfig(times=(0.0, 1.0))
