"""Figures over many steps."""

from stages.train.figures import means


def test_means_are_of_the_steps_asked_for():
    history = [(1, "loss", 4.0), (2, "loss", 1.0), (2, "norm", 7.0), (3, "loss", 3.0)]
    assert means(history, 2, 3) == {"loss": 2.0, "norm": 7.0}
