import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.evaluate.motion.tracks import follow, point_grid, read_tracks


def test_the_grid_by_hand():
    # 64 wide: the margin is 1, on the upper and lower edge, too
    wanted = [[1, 1], [32, 1], [63, 1], [1, 16], [32, 16], [63, 16], [1, 31], [32, 31], [63, 31]]
    np.testing.assert_allclose(point_grid(32, 64, 3), wanted)
    assert point_grid(480, 832).shape == (3025, 2)


def test_points_go_with_the_flow_between_pixels():
    flows = np.zeros((2, 4, 6, 2), dtype=np.float32)
    flows[0, ..., 0] = np.arange(6)  # as fast to the right as they are far from the left
    flows[1, ..., 1] = np.arange(4)[:, None] / 2  # then down
    tracks = follow(flows, np.array([[1.5, 2.0], [0.25, 0.5]]))
    np.testing.assert_allclose(tracks[1], [[3.0, 2.0], [0.5, 0.5]])
    np.testing.assert_allclose(tracks[2], [[3.0, 3.0], [0.5, 0.75]])


def test_outside_of_the_picture_the_edge_counts():
    flows = np.zeros((2, 4, 6, 2))
    flows[..., 5, 0] = 2  # the last column goes right
    tracks = follow(flows, np.array([[5.0, 1.0]]))
    np.testing.assert_allclose(tracks[:, 0], [[5, 1], [7, 1], [9, 1]])


def test_tracks_from_files(tmp_path):
    tracks = {"source/a/1": np.zeros((3, 2, 2), np.float32), "edited/byg/a/1": np.ones((3, 2, 2), np.float32)}
    for name, values in tracks.items():
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True)
        save_file({"tracks": values}, path)
    np.testing.assert_array_equal(read_tracks(str(tmp_path), "a/1", None), tracks["source/a/1"])
    np.testing.assert_array_equal(read_tracks(str(tmp_path), "a/1", "byg"), tracks["edited/byg/a/1"])
    with pytest.raises(ValueError, match="there are no tracks edited/other/a/1.safetensors"):
        read_tracks(str(tmp_path), "a/1", "other")
    save_file({"points": tracks["source/a/1"]}, tmp_path / "source/b.safetensors")
    with pytest.raises(ValueError, match="source/b.safetensors can't be read"):
        read_tracks(str(tmp_path), "b", None)
