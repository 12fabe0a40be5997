"""What Flow-GRPO's mathematics owes: the same marginals as the flow, likelihoods, advantages, a gradient by hand."""

import numpy as np
import pytest
import torch

from stages.train import flow
from stages.train.methods import flow_grpo
from stages.train.methods.settings import FlowGRPOConfig
from stages.train.roles import Batch, Draws, Roles
from stages.train.settings import JudgedConfig, TrainFlowGRPOConfig
from stages.train.stage import new_trainer

CPU = torch.device("cpu")
NUM_ROWS, NUM_TOKENS, CHANNELS, GROUP = 3, 2, 4, 4


class Net:
    """A velocity that is linear in all it is given."""

    def __init__(self, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.weights = [
            (0.3 * torch.randn(CHANNELS, CHANNELS, generator=draw).double()).requires_grad_() for _ in range(3)
        ]

    def __call__(self, x_t, t, text, reference):
        a, b, c = self.weights
        return x_t @ a + reference @ b + text["prompt_embeds"] @ c * t[:, None, None]


def batch_of(seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    latents, embeds = torch.randn(2, NUM_ROWS, NUM_TOKENS, CHANNELS, generator=draw, dtype=torch.float64)
    labels = {name: [f"{name}{row}" for row in range(NUM_ROWS)] for name in flow_grpo.LABELS}
    return Batch(list("abc"), {"source": latents}, {"instruction": {"prompt_embeds": embeds}}, labels)


def judge(edited, batch):
    """Likes edits that are near twice their source; remembers what it was shown."""
    losses = (edited - 2 * batch.latents["source"]).square().flatten(1).mean(1)
    judge.seen = (edited, batch)
    return losses, (losses < 0.5).double()


def stepped(config: FlowGRPOConfig, net: Net, batch: Batch, index: int = 0, rows: slice = slice(0, NUM_ROWS)):
    roles = Roles(net, None, None, lambda loss: loss.backward(), judge=judge)
    return flow_grpo.step(config, roles, batch, Draws(1, index, NUM_ROWS, rows), index)


def test_stochastic_sampling_keeps_the_marginals_of_the_flow():
    """Numbers from N(0.7, 0.4^2), whose velocity is known: both ways of sampling end there, and pass t = 0.5 alike."""
    mean, deviation = 0.7, 0.4

    def exact(x, t):
        variance = (1 - t) ** 2 * deviation**2 + t**2
        x0 = mean + (1 - t) * deviation**2 / variance * (x - (1 - t) * mean)
        noise = t / variance * (x - (1 - t) * mean)
        return noise - x0

    draw = torch.Generator().manual_seed(0)
    state = torch.randn(200_000, 1, 1, generator=draw, dtype=torch.float64)
    nodes = flow.sampling_nodes(200).double()
    for t, next_t in zip(nodes[:-1], nodes[1:], strict=True):
        centre, spread = flow_grpo.stochastic_step(state, exact(state, t), t, next_t, 0.7)
        state = centre + spread * torch.randn(state.shape, generator=draw, dtype=torch.float64)
        if abs(next_t - 0.5) < 1e-6:
            assert state.mean().item() == pytest.approx(0.5 * mean, abs=0.01)
            assert state.std().item() == pytest.approx((0.25 * deviation**2 + 0.25) ** 0.5, rel=0.02)
    assert state.mean().item() == pytest.approx(mean, abs=0.01)
    assert state.std().item() == pytest.approx(deviation, rel=0.03)


def test_likelihoods_and_advantages_by_hand():
    draw = torch.Generator().manual_seed(0)
    state, mean = torch.randn(2, 3, 5, 4, generator=draw, dtype=torch.float64)
    deviation = torch.tensor(0.3, dtype=torch.float64)
    wanted = torch.distributions.Normal(mean, deviation).log_prob(state).flatten(1).mean(1)
    assert flow_grpo.log_probability(state, mean, deviation).tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    rewards = np.array([0.1, 0.4, 0.1, 0.2, 0.7, 0.7, 0.7, 0.7])
    ours = flow_grpo.advantages(torch.tensor(rewards), 4).numpy()
    first = (rewards[:4] - rewards[:4].mean()) / (rewards[:4].std() + 1e-4)
    assert ours == pytest.approx(np.concatenate([first, np.zeros(4)]))


def test_groups_are_rows_side_by_side_with_noise_of_their_own():
    config = FlowGRPOConfig(group_size=GROUP, num_rollout_steps=3)
    batch = batch_of()
    stepped(config, Net(), batch)
    edited, shown = judge.seen
    assert len(edited) == NUM_ROWS * GROUP and len({tuple(edit.flatten().tolist()) for edit in edited}) == len(edited)
    assert shown.ids == [row for row in "abc" for _ in range(GROUP)]
    assert shown.labels["object"][:GROUP] == ["object0"] * GROUP
    assert torch.equal(shown.latents["source"][GROUP], batch.latents["source"][1])


@pytest.mark.parametrize("num_trained", [11, 1])
def test_the_gradient_is_that_of_the_policy_by_hand(num_trained):
    config = FlowGRPOConfig(group_size=GROUP, num_rollout_steps=4, num_trained_steps=num_trained, noise_level=0.5)
    net, batch = Net(), batch_of()
    figures = stepped(config, net, batch)
    ours = [weight.grad.clone() for weight in net.weights]

    draws = Draws(1, 0, NUM_ROWS, slice(0, NUM_ROWS))
    nodes = [1.0, 0.75, 0.5, 0.25, 0.0]
    like = torch.zeros(NUM_ROWS, GROUP, NUM_TOKENS, CHANNELS, dtype=torch.float64)
    noises = [draws.normal(like).flatten(0, 1) for _ in nodes]
    places = draws.subset(3, min(num_trained, 3))
    assert len(places) == min(num_trained, 3)
    source = batch.latents["source"].repeat_interleave(GROUP, 0)
    text = batch.texts["instruction"]["prompt_embeds"].repeat_interleave(GROUP, 0)
    a, b, c = [weight.detach().clone().requires_grad_() for weight in net.weights]
    state, logarithms = noises[0], []
    for place in range(4):
        t, next_t = nodes[place], nodes[place + 1]
        velocity = state @ a + source @ b + text @ c * t
        if next_t == 0:
            state = state - t * velocity.detach()
            break
        sigma = 0.5 * (t / (1 - (t if t < 1 else next_t))) ** 0.5
        drift = velocity + sigma**2 / (2 * t) * (state + (1 - t) * velocity)
        policy = torch.distributions.Normal(state + (next_t - t) * drift, sigma * (t - next_t) ** 0.5)
        state = (policy.mean + policy.stddev * noises[place + 1]).detach()
        if place in places:
            logarithms.append(policy.log_prob(state).flatten(1).mean(1))
    losses, _ = judge(state, flow_grpo.repeated(batch, GROUP))
    rewards = (-losses).exp().view(NUM_ROWS, GROUP)
    better = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, correction=0, keepdim=True) + 1e-4)
    objective = torch.stack([(better.flatten() * logarithm).mean() for logarithm in logarithms]).mean()
    (-objective).backward()
    for mine, theirs in zip(ours, (a, b, c), strict=True):
        assert torch.allclose(mine, theirs.grad, rtol=1e-4, atol=1e-8)
    assert figures["reward"].item() == pytest.approx(rewards.mean().item(), rel=1e-5)


def test_half_the_rows_give_half_of_the_gradient():
    config, batch, whole, parts = FlowGRPOConfig(group_size=GROUP, num_rollout_steps=3), batch_of(), Net(), Net()
    stepped(config, whole, batch)
    for row in range(NUM_ROWS):
        rows = slice(row, row + 1)
        texts = {"instruction": {"prompt_embeds": batch.texts["instruction"]["prompt_embeds"][rows]}}
        labels = {name: column[rows] for name, column in batch.labels.items()}
        stepped(
            config, parts, Batch(batch.ids[rows], {"source": batch.latents["source"][rows]}, texts, labels), 0, rows
        )
    for mine, theirs in zip(parts.weights, whole.weights, strict=True):
        assert torch.allclose(mine.grad / NUM_ROWS, theirs.grad, rtol=1e-4, atol=1e-9)


def test_the_reward_rises():
    config = FlowGRPOConfig(group_size=16, num_rollout_steps=4)
    net, batch = Net(), batch_of()
    optimizer = torch.optim.Adam(net.weights, lr=0.02)
    rewards = []
    for index in range(150):
        optimizer.zero_grad()
        rewards.append(stepped(config, net, batch, index)["reward"].item())
        optimizer.step()
    assert np.mean(rewards[-10:]) > 2 * np.mean(rewards[:10])


def test_the_engine_trains_it_with_the_real_judge(np_edit_config, labelled_data):
    shared = np_edit_config.model_dump(include=set(JudgedConfig.model_fields) - {"alpha"})
    method = FlowGRPOConfig(group_size=2, num_rollout_steps=3)
    trainer = new_trainer(TrainFlowGRPOConfig(**shared, flow_grpo=method), labelled_data, CPU)
    before = trainer.student.flat.clone()
    figures = trainer.train_step()
    assert 0 < figures["reward"] < 1 and figures["gradient_norm"] > 0
    assert not torch.equal(trainer.student.flat, before)
