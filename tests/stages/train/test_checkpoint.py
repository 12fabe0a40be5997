"""Checkpoints: exact, the newest good one is found, those of other training are refused."""

import pytest
import torch

from cluster.errors import UserError
from cluster.folder import Folder
from stages.train.checkpoint import Checkpoints

IDENTITY = {"method": "byg", "backbone": "flux", "rank": 4}
HISTORY = [(1, "loss", 0.1), (1, "norm", 1 / 3), (2, "loss", 5e-324)]


def saved(folder: Folder, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, IDENTITY)
    for step in steps:
        checkpoints.save(step, {"student/a": torch.full((2, 3), float(step))}, HISTORY)
    return checkpoints


@pytest.mark.parametrize("where", ["local", "memory"])
def test_comes_back_as_it_was(tmp_path, where):
    folder = Folder(tmp_path) if where == "local" else Folder(f"memory://{tmp_path.name}")
    step, tensors, history = saved(folder, 7).load()
    assert step == 7 and list(tensors) == ["student/a"]
    assert torch.equal(tensors["student/a"], torch.full((2, 3), 7.0))
    assert history == HISTORY


def test_nothing_yet(tmp_path):
    assert Checkpoints(Folder(tmp_path), IDENTITY).load() is None


def test_the_newest_two_are_kept_and_the_newest_is_loaded(tmp_path):
    checkpoints = saved(Folder(tmp_path), 5, 10, 100)
    assert Folder(tmp_path).list() == ["step-00000010.safetensors", "step-00000100.safetensors"]
    assert checkpoints.load()[0] == 100


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_one_is_passed_over(tmp_path, damage):
    checkpoints = saved(Folder(tmp_path), 5, 10)
    file = tmp_path / "step-00000010.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "bit":
        data[-1] ^= 1
    file.write_bytes({"cut": data[:-10], "bit": data, "empty": b""}[damage])
    told = []
    assert checkpoints.load(on_damage=told.append)[0] == 5
    assert len(told) == 1 and "step-00000010" in told[0]


@pytest.mark.parametrize("key, value", [("method", "sft"), ("backbone", "wan"), ("rank", 8)])
def test_other_training_is_refused_by_name(tmp_path, key, value):
    saved(Folder(tmp_path), 5)
    with pytest.raises(UserError, match=f"was made with {key} .*this training has {value!r}"):
        Checkpoints(Folder(tmp_path), IDENTITY | {key: value}).load()
