import math

import numpy as np
import pytest

from stages.evaluate.perception.scores import clip_directional, clip_score, cosine, geometric_score, normalised, tifa

VECTORS = np.random.default_rng(0).normal(size=(4, 8)) * np.array([[1.0], [20.0], [0.1], [3.0]])


def test_clip_directional_normalises_before_it_subtracts():
    # worked out by hand: image (1,0) -> (0,1), whatever their lengths; caption (1,0) -> (-1,0)
    found = clip_directional(np.array([5, 0]), np.array([0, 0.1]), np.array([2, 0]), np.array([-7, 0]))
    assert found == pytest.approx(1 / math.sqrt(2))
    # had they been subtracted first: (-5, 0.1) with (-9, 0)
    assert found != pytest.approx(5 / math.hypot(5, 0.1), abs=0.1)


def test_lengths_do_not_matter_and_the_way_back_with_its_captions_is_the_same():
    i0, i1, t0, t1 = VECTORS
    value = clip_directional(i0, i1, t0, t1)
    assert clip_directional(3 * i0, 0.2 * i1, 9 * t0, t1 / 7) == pytest.approx(value)
    assert clip_directional(i1, i0, t1, t0) == pytest.approx(value)
    assert clip_directional(i1, i0, t0, t1) == pytest.approx(-value)


def test_no_change_has_no_direction():
    i0, i1, t0, t1 = VECTORS
    assert clip_directional(i0, i0, t0, t1) is None
    assert clip_directional(i0, 2 * i0, t0, t1) is None
    assert clip_directional(i0, i1, t0, t0) is None
    assert clip_directional(i0, (i0 * (1 + 1e-7)).astype(np.float32), t0, t1) is None


def test_clip_score_is_a_hundred_cosines_and_never_below_zero():
    assert clip_score(np.array([3.0, 4.0]), np.array([1.0, 0.0])) == pytest.approx(60)
    assert clip_score(np.array([-3.0, 4.0]), np.array([1.0, 0.0])) == 0
    assert clip_score(VECTORS[0], 5 * VECTORS[0]) == pytest.approx(100)


def test_cosine():
    assert cosine(np.array([1.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(math.cos(math.pi / 4))
    assert cosine(VECTORS[0], VECTORS[0]) == pytest.approx(1) and cosine(VECTORS[0], VECTORS[0]) <= 1
    assert cosine(VECTORS[0], -VECTORS[0]) == pytest.approx(-1)


def test_an_embedding_that_is_no_direction_is_refused():
    for bad in ([0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="no direction"):
            normalised(np.array(bad))


def test_tifa_is_the_share_answered_as_the_caption_does():
    assert tifa(["Yes", "No", "No", "Yes"], ["Yes", "Yes", "No", "Yes"]) == 0.75
    assert tifa([], []) is None
    with pytest.raises(ValueError):
        tifa(["Yes"], ["Yes", "Yes"])


def test_geometric_score():
    assert geometric_score(0.81, 0.49) == pytest.approx(0.63)
    assert geometric_score(1.0, -0.2) == 0
