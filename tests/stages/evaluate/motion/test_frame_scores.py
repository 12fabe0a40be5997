import numpy as np
import pytest
import torch

from stages.evaluate.motion.frame_scores import (
    aesthetic_score,
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
