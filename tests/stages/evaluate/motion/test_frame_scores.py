import numpy as np
import pytest
import torch

from stages.evaluate.motion.frame_scores import (
    aesthetic_score,
    clip_directional,
    frame_similarity,
    temporal_flickering,
)


def test_temporal_flickering_by_hand():
    frames = np.zeros((3, 2, 2, 3), dtype=np.uint8)
    frames[1] = 51  # up by 51, down by 51: uint8 must not wrap around
    assert temporal_flickering(list(frames)) == pytest.approx((255 - 51) / 255)
    assert temporal_flickering(list(frames[[0, 0, 0]])) == 1.0
    assert temporal_flickering([frames[0], 255 - frames[0]]) == 0.0
    assert temporal_flickering([frames[0]]) is None
    with pytest.raises(ValueError, match="unequal sizes"):
        temporal_flickering([frames[0], frames[0][:1]])


def test_aesthetic_score_against_torch():
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    head = torch.nn.Linear(8, 1).double()
    with torch.no_grad():
        wanted = (head(torch.nn.functional.normalize(embeds, dim=-1)).squeeze() / 10).mean().item()
        found = aesthetic_score(embeds.numpy(), head.weight.numpy(), head.bias.numpy())
    assert found == pytest.approx(wanted, abs=1e-14)


def test_aesthetic_score_by_hand():
    # normalised (.6, .8) and (0, 1): heads' values 5 * .6 + 1 = 4 and 1
    assert aesthetic_score(np.array([[3.0, 4], [0, 2]]), np.array([5.0, 0]), 1.0) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="takes 3 numbers, the frames' embeddings have 2"):
        aesthetic_score(np.ones((1, 2)), np.ones(3), 0.0)


def test_frame_similarity_by_hand():
    source = np.array([[2.0, 0], [0, 1]])
    edited = np.array([[3.0, 4], [0, -9]])
    assert frame_similarity(source, edited) == pytest.approx((0.6 - 1) / 2)
    assert frame_similarity(edited, edited) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="unequal shapes"):
        frame_similarity(source, edited[:1])


def test_clip_directional_by_hand():
    # normalised, the frames go from (1, 0) to (0, 1), direction (-1, 1), and to (-1, 0), direction (-2, 0); the
    # captions from (1, 0) to (0, 1): cosines 1 and 1 / sqrt(2). Without normalising before, the first were another.
    source, edited = np.array([[5.0, 0], [1, 0]]), np.array([[0, 2.0], [-3, 0]])
    found = clip_directional(source, edited, np.array([2.0, 0]), np.array([0, 7.0]))
    assert found == pytest.approx((1 + 1 / np.sqrt(2)) / 2)


def test_no_direction_is_no_score():
    source, edited = np.array([[1.0, 0], [1, 0]]), np.array([[0, 2.0], [3, 0]])
    before, after = np.array([1.0, 0]), np.array([0, 1.0])
    assert clip_directional(source, edited, before, after) is None  # the second frame is its source's
    assert clip_directional(source[:1], edited[:1], before, 2 * before) is None
    with pytest.raises(ValueError, match="an embedding is zero"):
        clip_directional(source, 0 * edited, before, after)
    with pytest.raises(ValueError, match="captions of"):
        clip_directional(source, edited, np.ones(3), np.arange(3.0))
