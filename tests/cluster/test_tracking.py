import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow.tracking import MlflowClient

from cluster.artifacts import commit, read_artifact
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.tracking import RunTracking, StageTracker, open_command, start_run, store_folder

CONFIGS = {"train": {"steps": 100, "optimizer": {"name": "adamw", "lr": 1e-3}}, "report": {}}


def start(root: Folder, run_id: str = "20260102-101500-abcdef") -> RunTracking:
    return start_run(root, run_id, "starter", ["train", "report"], CONFIGS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("tracked"))


@pytest.fixture(scope="module")
def tracking(root: Folder) -> Iterator[RunTracking]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")
        tracking = start(root)
        yield tracking
        tracking.end("FINISHED", {"results": {"byg": {"whole_scene_right": 0.5, "num_items": 10}}, "stages": {}})


@pytest.fixture(scope="module")
def client(tracking: RunTracking) -> MlflowClient:
    return MlflowClient(tracking.tracking_uri)


def test_the_server_is_this_machines_alone(tracking: RunTracking, root: Folder):
    assert tracking.tracking_uri.startswith("http://127.0.0.1:")
    assert (store_folder(root) / "mlflow.db").is_file()
    refused = requests.get(
        f"{tracking.tracking_uri}/api/2.0/mlflow/experiments/get?experiment_id=0",
        headers={"Host": "evil.example"},
        timeout=30,
    )
    assert refused.status_code == 403


def test_a_stage_is_a_child_with_parameters_and_inputs(
    tracking: RunTracking, client: MlflowClient, root: Folder, tmp_path: Path
):
    folder = root.sub("encode/abcdef0123456789")
    folder.write_text("latents.txt", "x")
    identity = {
        "stage": "encode",
        "version": "1",
        "fingerprint": "abcdef0123456789",
        "parents": {},
        "config": {},
    }
    commit(folder, **identity, identity={}, rows=12, code_version="v", run_id="r", figures={"psnr": 31.5})
    artifact = read_artifact(root, "encode", "abcdef0123456789")
    run_id = tracking.stage_run("train", "f00d", CONFIGS["train"], {"encode": artifact})
    tracking.end_stage(run_id, "FINISHED", artifact)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == tracking.parent_run_id
    assert run.data.tags["artifact"] == folder.url
    assert run.data.params == {"steps": "100", "optimizer.name": "adamw", "optimizer.lr": "0.001"}
    assert run.data.metrics == {"psnr": 31.5, "rows": 12}
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("encode", "abcdef0123456789")
    parent = client.get_run(tracking.parent_run_id)
    assert parent.data.params["train.optimizer.lr"] == "0.001" and parent.data.tags["profile"] == "starter"


def test_a_stages_process_logs_by_run_id(tracking: RunTracking, client: MlflowClient, tmp_path: Path):
    run_id = tracking.stage_run("train", "f00d", {"steps": 3}, {})
    tracker = StageTracker(tracking.tracking_uri, run_id)
    errors = []

    def log() -> None:  # from a thread that MLflow's own active run wouldn't reach
        try:
            for step in range(3):
                tracker.log_metrics({"loss": 1.0 / (step + 1), "grad_norm/prior": 2.0}, step)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=log)
    thread.start()
    thread.join()
    assert not errors
    (tmp_path / "plot.txt").write_text("plot")
    tracker.log_artifact(tmp_path / "plot.txt", "plots")
    tracker.log_input("samples", "0" * 64, 50)
    history = client.get_metric_history(run_id, "loss")
    assert [(item.step, round(item.value, 3)) for item in history] == [(0, 1.0), (1, 0.5), (2, 0.333)]
    assert client.get_run(run_id).data.params == {"steps": "3"}
    assert [item.path for item in client.list_artifacts(run_id, "plots")] == ["plots/plot.txt"]
    assert client.get_run(run_id).inputs.dataset_inputs[0].dataset.digest == "0" * 36
    until = time.monotonic() + 30
    while not any(name.startswith("system/") for name in client.get_run(run_id).data.metrics):
        assert time.monotonic() < until, "no system metrics"
        time.sleep(0.5)
    tracking.end_stage(run_id, "FAILED")
    assert client.get_run(run_id).info.status == "FAILED"


def test_an_adapter_becomes_a_version_of_a_registered_model(
    tracking: RunTracking, client: MlflowClient, tmp_path: Path
):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    run_id = tracking.stage_run("train_byg", "f00d", {}, {})
    tracker = StageTracker(tracking.tracking_uri, run_id)
    assert tracker.register_adapter(tmp_path, "pairless-byg", {"rank": 32}) == "1"
    assert tracker.register_adapter(tmp_path, "pairless-byg") == "2"
    version = client.get_model_version("pairless-byg", "1")
    assert version.run_id == run_id and version.source.startswith("models:/m-")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert model.source_run_id == run_id and model.params == {"rank": "32"} and str(model.status) == "READY"
    # Both versions came out of this run; the server promises no order.
    assert {o.model_id for o in client.get_run(run_id).outputs.model_outputs} == {
        client.get_model_version("pairless-byg", number).source.removeprefix("models:/") for number in ("1", "2")
    }
    files = client.list_logged_model_artifacts(model.model_id)
    assert [file.path for file in files] == ["pytorch_lora_weights.safetensors"]
    tracking.end_stage(run_id, "FINISHED")


def test_a_run_goes_on_after_a_crash(tracking: RunTracking, client: MlflowClient, root: Folder):
    stage = tracking.stage_run("train", "f00d", {"steps": 3}, {})
    tracking.end_stage(stage, "KILLED")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri)
        assert open_command(root) == f"open {tracking.tracking_uri}"
        again = start(root)
        assert again.parent_run_id == tracking.parent_run_id
        other = start(root, "20260102-111500-abcdef")
        assert other.parent_run_id != tracking.parent_run_id
    assert other.stage_run("train", "f00d", {"steps": 3}, {}, resume_run_id=stage) == stage
    run = client.get_run(stage)
    assert run.info.status == "RUNNING" and run.data.tags["mlflow.parentRunId"] == other.parent_run_id
    fresh = other.stage_run("train", "f00d", {"steps": 3}, {}, resume_run_id="0" * 32)
    assert fresh not in (stage, "0" * 32)
    for run_id in (stage, fresh):
        other.end_stage(run_id, "FINISHED")
    other.end("FINISHED")
    assert requests.get(f"{tracking.tracking_uri}/health", timeout=10).ok  # a server of others isn't ended


def test_a_store_that_does_not_answer_is_explained(root: Folder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="MLflow at http://127.0.0.1:9 doesn't work.*MLFLOW_TRACKING_URI"):
        start(root)


def test_the_server_ends_with_a_killed_driver_and_its_store_stays_whole(tmp_path: Path):
    code = (
        "import os, signal, sys\n"
        "from cluster.folder import Folder\n"
        "from cluster.tracking import start_run\n"
        "tracking = start_run(Folder(sys.argv[1]), 'run', 'starter', ['a'], {})\n"
        "print(tracking.tracking_uri, tracking.parent_run_id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120).stdout
    uri, run_id = output.split()
    until = time.monotonic() + 20
    with pytest.raises(requests.ConnectionError):
        while time.monotonic() < until:
            requests.get(f"{uri}/health", timeout=5)
            time.sleep(0.2)
    with sqlite3.connect(tmp_path / "mlflow" / "mlflow.db") as database:
        assert database.execute("select status from runs where run_uuid = ?", [run_id]).fetchall() == [("RUNNING",)]


def test_a_remote_root_keeps_its_store_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = store_folder(Folder("s3://bucket/root"))
    assert folder.parent == tmp_path and folder.name.startswith("mlruns-")
    assert folder != store_folder(Folder("s3://bucket/other"))
    assert f"sqlite:///{folder}/mlflow.db" in open_command(Folder("s3://bucket/root"))
