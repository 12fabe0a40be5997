import math

import numpy as np
import pytest

from stages.evaluate.motion.fidelity import motion_fidelity


def walks(num_points, num_frames=6, seed=0):
    return np.random.default_rng(seed).normal(size=(num_frames, num_points, 2)).cumsum(axis=0)


def similarity(a, b):
    """The mean cosine of two tracks' displacements, by loops."""
    total = 0.0
    for t in range(len(a) - 1):
        ax, ay, bx, by = a[t + 1][0] - a[t][0], a[t + 1][1] - a[t][1], b[t + 1][0] - b[t][0], b[t + 1][1] - b[t][1]
        total += (ax * bx + ay * by) / (math.sqrt(ax**2 + ay**2) * math.sqrt(bx**2 + by**2))
    return total / (len(a) - 1)


def official_by_loops(source, edited):
    scores = []
    for n in range(edited.shape[1]):
        values = [similarity(edited[:, n], source[:, m]) - (n == m) for m in range(source.shape[1])]
        scores.append(max(values))
    return sum(scores) / len(scores)


def corrected_by_loops(source, edited):
    best = [max(similarity(source[:, n], edited[:, m]) for m in range(edited.shape[1])) for n in range(source.shape[1])]
    return sum(best) / len(best)


# Two points, three frames. The source's first goes right, right; its second right, down.
SOURCE = np.array([[[0, 0], [9, 9]], [[2, 0], [10, 9]], [[3, 0], [10, 12]]], dtype=float)
# The edited first goes right, down; its second left, left.
EDITED = np.array([[[0, 0], [9, 9]], [[5, 0], [8, 9]], [[5, 1], [5, 9]]], dtype=float)
# Mean cosines over the two steps:            edited 0        edited 1
#   source 0 (right, right)              (1 + 0) / 2 = .5   (-1 - 1) / 2 = -1
#   source 1 (right, down)               (1 + 1) / 2 = 1    (-1 + 0) / 2 = -.5


def test_by_hand():
    # each source track's best: .5 and 1
    assert motion_fidelity(SOURCE, EDITED, "corrected") == 0.75
    # each edited track's best after the identity is gone: max(.5 - 1, 1) = 1 and max(-1, -.5 - 1) = -1
    assert motion_fidelity(SOURCE, EDITED, "official") == 0.0
    # the other way round. Corrected: max(.5, 1) = 1 and max(-1, -.5) = -.5; official: max(-.5, -1) and max(1, -1.5)
    assert motion_fidelity(EDITED, SOURCE, "corrected") == 0.25
    assert motion_fidelity(EDITED, SOURCE, "official") == 0.25


def test_against_loops():
    source, edited = walks(7, seed=1), walks(7, seed=2)
    assert motion_fidelity(source, edited, "official") == pytest.approx(official_by_loops(source, edited), abs=1e-12)
    assert motion_fidelity(source, edited, "corrected") == pytest.approx(corrected_by_loops(source, edited), abs=1e-12)
    fewer = edited[:, :4]
    assert motion_fidelity(source, fewer, "corrected") == pytest.approx(corrected_by_loops(source, fewer), abs=1e-12)


def test_only_directions_count():
    source, edited = walks(5, seed=1), walks(5, seed=2)
    for variant in ("official", "corrected"):
        wanted = motion_fidelity(source, edited, variant)
        assert motion_fidelity(source + 100, 3 * edited, variant) == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(5))
def test_equal_tracks(seed):
    tracks = walks(30, num_frames=9, seed=seed)
    assert motion_fidelity(tracks, tracks, "corrected") == 1.0
    official = motion_fidelity(tracks, tracks, "official")
    assert official == pytest.approx(official_by_loops(tracks, tracks), abs=1e-12) and official < 0.7


def test_equal_tracks_that_are_alike_score_as_high_officially_too():
    tracks = np.arange(4.0)[:, None, None] + np.zeros((1, 3, 2))  # three points, all moving the same way
    assert motion_fidelity(tracks, tracks, "official") == pytest.approx(1.0)
    assert motion_fidelity(tracks[:, :1], tracks[:, :1], "official") == pytest.approx(0.0)  # one point: 1 - 1


def test_the_points_order_matters_officially_alone():
    source, edited = walks(20, seed=3), walks(20, seed=4)
    order = np.random.default_rng(5).permutation(20)
    assert motion_fidelity(source, source[:, order], "corrected") == 1.0
    wanted = motion_fidelity(source, edited, "corrected")
    assert motion_fidelity(source[:, order], edited, "corrected") == pytest.approx(wanted)
    assert motion_fidelity(source, edited[:, order], "corrected") == pytest.approx(wanted)
    assert motion_fidelity(source, source[:, order], "official") > motion_fidelity(source, source, "official") + 0.1


def test_a_point_that_stands_still():
    still = np.zeros((4, 1, 2))
    right = np.zeros((4, 1, 2))
    right[:, 0, 0] = np.arange(4)
    paused = right.copy()
    paused[2:, 0, 0] -= 1  # right, still, right
    assert motion_fidelity(still, still, "corrected") == 1.0
    assert motion_fidelity(still, right, "corrected") == motion_fidelity(right, still, "corrected") == 0.0
    assert motion_fidelity(paused, right, "corrected") == pytest.approx(2 / 3)
    assert motion_fidelity(paused, paused, "corrected") == 1.0
    moving = walks(8, num_frames=4)
    with_one = np.concatenate([moving, still], axis=1)
    assert math.isnan(motion_fidelity(with_one, with_one, "official"))
    assert math.isnan(motion_fidelity(with_one, walks(9, num_frames=4), "official"))
    assert motion_fidelity(with_one, with_one, "corrected") == 1.0


def test_what_has_no_score():
    tracks = walks(3)
    with pytest.raises(ValueError, match="unequal lengths: 6 and 5"):
        motion_fidelity(tracks, tracks[:5], "corrected")
    with pytest.raises(ValueError, match="single frame"):
        motion_fidelity(tracks[:1], tracks[:1], "official")
    with pytest.raises(ValueError, match=r"\[frames, points, 2\], not \[6, 2\]"):
        motion_fidelity(tracks[:, 0], tracks, "corrected")
    with pytest.raises(ValueError, match="as many tracks"):
        motion_fidelity(tracks, tracks[:, :2], "official")
    with pytest.raises(ValueError, match="not finite"):
        motion_fidelity(tracks, np.where(tracks > 0, np.nan, tracks), "corrected")
