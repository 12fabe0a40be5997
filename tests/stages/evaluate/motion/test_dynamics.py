import numpy as np
import pytest

from stages.evaluate.motion.dynamics import dynamic_degree, sampled_frames, top_speed

SIDE = 256  # the threshold is 6 pixels


def moving(num_pairs, speed, share=0.1, height=SIDE, width=SIDE):
    """Flows of a clip in which a share of the pixels moves, `speed` pixels to the left."""
    flows = np.zeros((num_pairs, height, width, 2), dtype=np.float32)
    flows[:, : round(share * height), :, 0] = -speed
    return flows


@pytest.mark.parametrize(
    "fps, wanted",
    [(6.25, [0, 1, 2, 3, 4, 5, 6, 7, 8]), (8, [0, 1, 2, 3, 4, 5, 6, 7, 8]), (16, [0, 2, 4, 6, 8]), (24, [0, 3, 6])]
    + [(11.9, [0, 1, 2, 3, 4, 5, 6, 7, 8]), (12, [0, 2, 4, 6, 8]), (20, [0, 2, 4, 6, 8]), (30, [0, 4, 8])],
)
def test_sampled_frames(fps, wanted):
    # 12 / 8 = 1.5 and 20 / 8 = 2.5 both round to the even 2; 30 / 8 = 3.75 to 4
    assert sampled_frames(9, fps) == wanted


def test_frames_per_second_must_be_known():
    with pytest.raises(ValueError, match="0 frames per second"):
        sampled_frames(9, 0)


def test_top_speed_by_hand():
    flow = np.zeros((5, 20, 2))  # 100 pixels: the fastest five count
    flow[0, :4] = [3, 4]  # length 5
    flow[4, 19] = [0, -12]
    flow[2, 7] = [1, 0]
    assert top_speed(flow) == pytest.approx((4 * 5 + 12) / 5)
    assert top_speed(flow[:1, :19]) == 5  # 19 pixels: 0.95 of one, so the fastest


def test_the_threshold_goes_with_the_shorter_side():
    assert dynamic_degree(moving(8, 6.01)) and not dynamic_degree(moving(8, 6.0))
    assert dynamic_degree(moving(8, 11.3, height=480, width=832))  # 6 * 480 / 256 = 11.25
    assert not dynamic_degree(moving(8, 11.2, height=480, width=832))
    # 6 of 256 rows move, 1536 of the 3276 fastest pixels: the mean is 0.469 of their speed
    assert dynamic_degree(moving(8, 12.9, share=6 / 256)) and not dynamic_degree(moving(8, 12.7, share=6 / 256))


@pytest.mark.parametrize(
    "num_frames, num_needed", [(2, 1), (3, 1), (5, 1), (6, 2), (7, 2), (10, 2), (11, 3), (16, 4), (81, 20)]
)
def test_how_many_pairs_must_move(num_frames, num_needed):
    # round(n / 4), halves to even: 6 / 4 = 1.5 and 10 / 4 = 2.5 to 2; 2 / 4 = .5 would be none
    flows = moving(num_frames - 1, 0, height=16, width=16)
    flows[:num_needed] = 9
    assert dynamic_degree(flows) is True
    flows[0] = 0
    assert dynamic_degree(flows) is False


def test_a_still_clip_is_not_dynamic_and_a_frame_is_neither():
    for num_pairs in (1, 2, 15):
        assert dynamic_degree(moving(num_pairs, 0)) is False
    assert dynamic_degree(moving(0, 0)) is None
    with pytest.raises(ValueError, match=r"\[256, 256, 2\]"):
        dynamic_degree(moving(1, 0)[0])


def speed_at(num_frames, fps, pixels_per_frame):
    """The answer about a clip in which everything goes evenly, in a container of `fps`."""
    indices = sampled_frames(num_frames, fps)
    flows = np.zeros((len(indices) - 1, 16, 16, 2))
    flows[..., 0] = pixels_per_frame * np.diff(indices)[:, None, None] / (SIDE / 16)  # in pictures 16 times smaller
    return dynamic_degree(flows)


def test_the_containers_frame_rate_matters():
    # the same motion, recorded at three rates: the same answer
    assert [speed_at(16 * k, 8 * k, 5.0 / k) for k in (1, 2, 3)] == [False] * 3
    assert [speed_at(16 * k, 8 * k, 7.0 / k) for k in (1, 2, 3)] == [True] * 3
    # the same frames, said to be of three rates: 2.5 pixels a frame are 2.5, 5 and 7.5 between those looked at
    assert [speed_at(48, fps, 2.5) for fps in (8, 16, 24)] == [False, False, True]
