"""The learning rate of every step."""

from __future__ import annotations

import math

from stages.train.settings import TrainConfig


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The rate after `step` steps: it rises over the warm-up, stays, and if asked to falls to 0 at the end."""
    rise = min(1.0, (step + 1) / (config.learning_rate_warmup + 1))
    fall = 1.0
    if config.learning_rate_decay:
        num_falling = config.learning_rate_decay * config.num_steps
        fall = min(1.0, (config.num_steps - step) / num_falling)
        if config.learning_rate_shape == "cosine":
            fall = (1 - math.cos(math.pi * fall)) / 2
    return config.learning_rate * rise * fall
