"""FlowEdit on Gaussian data, where the velocity, and the way that it leads, are known in closed form."""

import numpy as np
import pytest
import torch

from stages.edit.flow_edit import flow_edit

SIGMA = np.array([0.4, 1.0, 1.7])  # of both distributions, by channel
MU_SRC, MU_TGT = np.array([1.0, -2.0, 0.5]), np.array([-1.0, 0.5, 3.0])


def variance(t):
    return (1 - t) ** 2 * SIGMA**2 + t**2


def gaussian(mu, sigma=SIGMA):
    """The exact velocity E[eps - x0 | x_t] of data from N(mu, sigma^2)."""
    mu, sigma = torch.from_numpy(mu), torch.from_numpy(np.asarray(sigma))

    def velocity(x_t, t):
        t = t.double().view(-1, 1, 1)
        slope = (t - (1 - t) * sigma**2) / ((1 - t) ** 2 * sigma**2 + t**2)
        return slope * (x_t.double() - (1 - t) * mu) - mu

    return velocity


@pytest.fixture
def source():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)


def noises(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)


def distance(edited, expected):
    return np.abs(edited.numpy() - expected).max()


@pytest.mark.parametrize("num_steps", [1, 7])
def test_between_equal_covariances_it_translates_by_the_means(source, num_steps):
    nodes = torch.linspace(1, 0, num_steps + 1)
    edited = flow_edit(gaussian(MU_SRC), gaussian(MU_TGT), source, noises(), nodes)
    assert distance(edited, source.numpy() + MU_TGT - MU_SRC) < 1e-5


def test_a_later_start_goes_that_part_of_the_way(source):
    start = 0.6
    nodes = torch.linspace(start, 0, 2001)
    edited = flow_edit(gaussian(MU_SRC), gaussian(MU_TGT), source, noises(), nodes)
    share = 1 - (1 - start) * SIGMA / np.sqrt(variance(start))
    assert np.all((share > 0.2) & (share < 0.95))
    assert distance(edited, source.numpy() + share * (MU_TGT - MU_SRC)) < 2e-3


def test_the_last_steps_are_sampled_under_the_target(source):
    end, draws = 0.4, noises(5)
    nodes = torch.cat([torch.linspace(1, end, 11), torch.linspace(end, 0, 2001)[1:]])
    used = []

    def draw_noise():
        used.append(draws().numpy())
        return torch.from_numpy(used[-1])

    edited = flow_edit(gaussian(MU_SRC), gaussian(MU_TGT), source, draw_noise, nodes, num_sampled_steps=2000)
    state = (1 - end) * (source.numpy() + MU_TGT - MU_SRC) + end * used[-1]
    expected = MU_TGT + SIGMA / np.sqrt(variance(end)) * (state - (1 - end) * MU_TGT)
    assert len(used) == 11 and distance(edited, expected) < 2e-3


def test_a_step_averages_over_its_draws(source):
    """Between unequal covariances the noise doesn't cancel; the velocities are linear, so averages carry over."""
    v_src, v_tgt = gaussian(MU_SRC), gaussian(MU_TGT, [1.5, 0.3, 0.8])
    nodes, draws, singles = torch.linspace(0.9, 0, 5), noises(2), noises(2)
    averaged = flow_edit(v_src, v_tgt, source, draws, nodes, num_averages=3)

    def mean_of_three():
        return (singles() + singles() + singles()) / 3

    assert distance(averaged, flow_edit(v_src, v_tgt, source, mean_of_three, nodes).numpy()) < 1e-5
    assert distance(averaged, flow_edit(v_src, v_tgt, source, noises(2), nodes).numpy()) > 1e-2


def test_equal_velocities_give_the_source_to_the_bit(source):
    source = source.float()
    nodes = torch.linspace(0.9, 0, 6)
    v = gaussian(MU_SRC)
    edited = flow_edit(v, v, source, lambda: noises(3)().float(), nodes, num_averages=2)
    assert torch.equal(edited, source)
