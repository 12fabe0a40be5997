import io
import pickle

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from stages.evaluate.motion import raft
from stages.evaluate.motion.config import AestheticConfig, FlowConfig, MotionConfig
from stages.evaluate.motion.dynamics import dynamic_degree
from stages.evaluate.motion.measure import ClipPair, MotionMeasure
from stages.evaluate.motion.raft import Raft
from stages.train.backbones.clip_files import clip_seconds
from tests.stages.evaluate.motion.models import ARCHITECTURE, noise, write_clip_model, write_head, write_raft


@pytest.fixture(autouse=True)
def fewer_updates(monkeypatch):
    monkeypatch.setattr(raft, "NUM_UPDATES", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of random models, and of a RAFT that sees nothing move."""
    folder = tmp_path_factory.mktemp("models")
    write_raft(folder), write_clip_model(folder), write_head(folder)
    blind = load_file(folder / "raft.safetensors")
    blind |= {name: 0 * tensor for name, tensor in blind.items() if "flow_head" in name}
    save_file(blind, folder / "blind.safetensors")
    return folder


def flow(folder, name="raft"):
    return FlowConfig(weights=str(folder / f"{name}.safetensors"), architecture=ARCHITECTURE)


def pair(source, edited, seconds=1.0):
    return ClipPair("item", "byg", source, edited, seconds)


def test_all_of_an_unchanged_clip(folder):
    frames = noise(4, 24, 32)
    head = AestheticConfig(clip=str(folder / "clip"), head=str(folder / "head_12.safetensors"))
    metrics = ("motion_fidelity", "dynamic_degree", "aesthetic")
    measure = MotionMeasure(MotionConfig(metrics=metrics, flow=flow(folder), aesthetic=head, device="cpu"))
    measure = pickle.loads(pickle.dumps(measure))  # as it reaches a worker
    row, reasons = measure(pair(frames, frames))
    assert reasons == []
    assert row["motion_fidelity"] == 1.0 and row["motion_fidelity_official"] < 1
    flows = Raft(str(folder / "raft.safetensors"), ARCHITECTURE, "cpu").flows(frames)
    assert row["dynamic_degree"] == float(dynamic_degree(flows))
    assert row["aesthetic"] == measure._aesthetic.score(frames)


def test_a_still_clip(folder):
    frames = noise(1, 24, 32) * 3
    measure = MotionMeasure(MotionConfig(metrics=("motion_fidelity", "dynamic_degree"), flow=flow(folder, "blind")))
    row, reasons = measure(pair(frames, frames))
    assert row == {"motion_fidelity": 1.0, "motion_fidelity_official": None, "dynamic_degree": 0.0}
    assert len(reasons) == 1 and reasons[0].startswith("motion_fidelity_official: a point stands still")


def as_webp(frames, milliseconds):
    buffer = io.BytesIO()
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(
        buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, lossless=True
    )
    return buffer.getvalue()


@pytest.mark.parametrize("milliseconds, fps, num_seen", [(125, None, 6), (62, None, 3), (42, None, 2), (125, 24, 2)])
def test_the_same_frames_at_several_rates(folder, monkeypatch, milliseconds, fps, num_seen):
    """8, 16 and 24 frames per second in the file: every one, every second, every third; the configuration's first."""
    frames, seen = noise(6, 24, 32), []
    flows_of = Raft.flows
    monkeypatch.setattr(Raft, "flows", lambda self, given: seen.append(given) or flows_of(self, given))
    measure = MotionMeasure(MotionConfig(metrics=("dynamic_degree",), flow=flow(folder, "blind"), fps=fps))
    row, reasons = measure(pair(frames, frames, clip_seconds(as_webp(frames, milliseconds))))
    assert (row, reasons) == ({"dynamic_degree": 0.0}, [])
    wanted = frames[:: 6 // num_seen]
    assert len(seen) == 1 and all(np.array_equal(a, b) for a, b in zip(seen[0], wanted, strict=True))


def test_what_has_no_score_says_why(folder, tmp_path):
    frames = noise(4, 24, 32)
    measure = MotionMeasure(MotionConfig(metrics=("dynamic_degree",), flow=flow(folder)))
    assert measure(pair(frames[:1], frames[:1])) == (
        {},
        ["dynamic_degree: of 1 frames one is looked at, which has no motion"],
    )
    row, reasons = measure(pair(frames, frames, seconds=0.0))
    assert row == {} and reasons[0].endswith("doesn't say how long it lasts; set evaluate_video.motion.fps")


def test_tracks_of_another_tracker(tmp_path):
    tracks = np.random.default_rng(0).normal(size=(2, 4, 5, 2)).cumsum(axis=1)
    for name, values in zip(("source/item", "edited/byg/item"), tracks, strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_arrays({"tracks": values}, tmp_path / f"{name}.safetensors")
    frames = noise(4, 24, 32)
    measure = MotionMeasure(MotionConfig(metrics=("motion_fidelity",), tracks=str(tmp_path)))
    row, reasons = measure(pair(frames, frames))
    assert set(row) == {"motion_fidelity", "motion_fidelity_official"} and reasons == []
    assert -1 < row["motion_fidelity_official"] <= 1 and row["motion_fidelity"] < 1
    save_arrays({"tracks": tracks[1][:3]}, tmp_path / "edited/byg/item.safetensors")
    assert measure(pair(frames, frames)) == ({}, ["motion_fidelity: tracks of unequal lengths: 4 and 3 frames"])
    save_arrays({"tracks": tracks[1][:, :3].copy()}, tmp_path / "edited/byg/item.safetensors")
    row, reasons = measure(pair(frames, frames))
    assert row["motion_fidelity_official"] is None and row["motion_fidelity"] is not None
    assert reasons == ["motion_fidelity_official: the official score needs as many tracks of both clips: 5, not 3"]
