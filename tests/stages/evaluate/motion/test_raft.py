import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import optical_flow
from torchvision.models.optical_flow import Raft_Small_Weights

from cluster.errors import UserError
from stages.evaluate.motion.raft import Raft
from tests.stages.evaluate.motion.models import ARCHITECTURE, noise, write_raft


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_raft(tmp_path_factory.mktemp("raft"))


def library_flow(weights, before, after):
    """By torchvision's model and its own preparation of the pictures."""
    model = getattr(optical_flow, ARCHITECTURE)()
    model.load_state_dict(load_file(weights))
    pair = (torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None] for frame in (before, after))
    prepared = Raft_Small_Weights.C_T_V2.transforms()(*pair)
    with torch.no_grad():
        return model.eval()(*prepared, num_flow_updates=20)[-1][0].permute(1, 2, 0).numpy()


def test_flows_are_the_librarys(weights):
    frames = noise(3, 128, 128)
    flows = Raft(weights, ARCHITECTURE, "cpu").flows(frames)
    assert flows.shape == (2, 128, 128, 2) and flows.dtype == np.float32
    np.testing.assert_allclose(flows[1], library_flow(weights, *frames[1:]), atol=1e-3)


def test_small_and_odd_sizes_are_continued_by_their_edges(weights):
    frames = noise(2, 20, 131)
    flows = Raft(weights, ARCHITECTURE, "cpu").flows(frames)
    padded = [np.pad(frame, ((54, 54), (2, 3), (0, 0)), mode="edge") for frame in frames]  # to 128 x 136
    np.testing.assert_allclose(flows[0], library_flow(weights, *padded)[54:74, 2:133], atol=1e-3)


def test_one_frame_has_no_flow(weights):
    assert Raft(weights, ARCHITECTURE, "cpu").flows(noise(1, 20, 24)).shape == (0, 20, 24, 2)


def test_other_weights_are_refused(weights, tmp_path):
    with pytest.raises(
        UserError, match="has no weights of torchvision's raft_large .*evaluate_video.motion.flow.weights"
    ):
        Raft(weights, "raft_large", "cpu")
    with pytest.raises(
        UserError, match="raft.pth is no .safetensors file.*torch.load.*weights_only=True.*raft.safetensors"
    ):
        Raft("/models/raft.pth", ARCHITECTURE, "cpu")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    for name in ("broken", "missing"):
        with pytest.raises(UserError, match=f"{name}.safetensors can't be read"):
            Raft(str(tmp_path / f"{name}.safetensors"), ARCHITECTURE, "cpu")


def test_the_conversion_that_is_advised_works(weights, tmp_path, monkeypatch):
    from stages.evaluate.motion.weights import weights_problem

    monkeypatch.chdir(tmp_path)
    torch.save(load_file(weights), "raft.pth")
    command = weights_problem("raft.pth").split('python -c "')[1].rstrip('"')
    exec(command, {})
    converted, original = load_file("raft.safetensors"), load_file(weights)
    assert converted.keys() == original.keys()
    assert all(torch.equal(converted[name], original[name]) for name in original)
    save_file({"a": torch.zeros(1)}, "other.safetensors")
    assert weights_problem("other.safetensors") is None
