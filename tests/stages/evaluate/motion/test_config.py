import pytest

from cluster.config import build_configs
from cluster.errors import RequestError
from stages.evaluate.motion.config import MotionConfig
from stages.evaluate.settings import EvaluateConfig, EvaluateVideoConfig
from stages.evaluate.stage import evaluate_sources

RAFT = {"weights": "raft.safetensors"}
HEAD = {"clip": "models/clip", "head": "head.safetensors"}


def refused(motion, message):
    with pytest.raises(RequestError, match=message):
        build_configs({"evaluate_video": EvaluateVideoConfig}, {"evaluate_video": {"motion": motion}})


def test_off_by_default_and_for_clips_alone():
    assert EvaluateVideoConfig().motion is None and evaluate_sources(EvaluateVideoConfig()) == []
    assert "motion" not in EvaluateConfig.model_fields


def test_each_metric_has_its_model():
    refused({"metrics": ["dynamic_degree"]}, "dynamic_degree needs flow.weights")
    refused({"metrics": ["motion_fidelity"]}, "motion_fidelity needs tracks, or flow.weights")
    refused({"metrics": ["aesthetic"], "flow": RAFT}, "aesthetic needs aesthetic.head")
    refused({"metrics": []}, "at least 1")
    refused({"metrics": ["dynamic_degre"], "flow": RAFT}, "did you mean 'dynamic_degree'")
    refused({"metrics": ["dynamic_degree"], "flows": RAFT}, "no field evaluate_video.motion.flows; did you mean 'flow'")


def test_only_safetensors():
    flow = {"weights": "models/raft-things.pth"}
    refused(
        {"metrics": ["dynamic_degree"], "flow": flow},
        r"raft-things.pth is no .safetensors file.*Convert.*weights_only=True.*raft-things.safetensors",
    )
    refused({"metrics": ["aesthetic"], "aesthetic": HEAD | {"head": "linear.pth"}}, "linear.pth is no .safetensors")


def test_the_files_that_are_read_belong_to_the_fingerprint(tmp_path):
    for name in ("raft.safetensors", "head.safetensors"):
        (tmp_path / name).write_bytes(b"")
    for name in ("clip", "tracks"):
        (tmp_path / name).mkdir()
    paths = {name: str(tmp_path / name) for name in ("raft.safetensors", "head.safetensors", "clip", "tracks")}
    models = {
        "flow": {"weights": paths["raft.safetensors"]},
        "tracks": paths["tracks"],
        "aesthetic": {"clip": paths["clip"], "head": paths["head.safetensors"]},
    }

    def sources(**motion):
        return evaluate_sources(EvaluateVideoConfig(motion=MotionConfig.model_validate(motion)))

    everything = sources(metrics=("motion_fidelity", "dynamic_degree", "aesthetic"), **models)
    assert everything == [paths[name] for name in ("raft.safetensors", "tracks", "clip", "head.safetensors")]
    assert sources(metrics=("motion_fidelity",), **models) == [paths["tracks"]]
    assert sources(metrics=("motion_fidelity",), flow=models["flow"]) == [paths["raft.safetensors"]]
    assert sources(metrics=("aesthetic",), aesthetic=HEAD | {"clip": "some/hub-id"}) == ["head.safetensors"]
