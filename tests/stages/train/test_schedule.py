"""The learning rate of each step."""

import math

import pytest

from stages.train.schedule import learning_rate_at
from stages.train.settings import TrainByGConfig


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_the_learning_rate_rises_and_falls(shape):
    config = TrainByGConfig(
        num_steps=20, learning_rate=1e-2, learning_rate_warmup=1, learning_rate_decay=0.95, learning_rate_shape=shape
    )
    rates = [learning_rate_at(step, config) / 1e-2 for step in range(20)]
    progress = [step / 19 for step in range(19)]
    falling = [1 - p if shape == "linear" else 0.5 * (1 + math.cos(math.pi * p)) for p in progress]
    assert rates == pytest.approx([0.5, *falling])


def test_it_stays_where_no_decay_is_asked_for():
    config = TrainByGConfig(num_steps=5, learning_rate=1e-3, learning_rate_warmup=0, learning_rate_decay=0)
    assert [learning_rate_at(step, config) for step in range(5)] == [1e-3] * 5
