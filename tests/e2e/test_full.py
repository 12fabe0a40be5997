"""The whole starter, small: real vLLM, DeepSpeed ZeRO-3 on two ranks, MLflow and Ray; killed once on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PROFILE = Path(__file__).with_name("small.yaml")
METHODS = {"byg", "untrained", "copy", "regenerate", "sdedit", "flowedit", "sft"}
METRICS = {"whole_scene_right", "edit_success", "preservation", "judge_overall", "num_items"}


def command(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "pipelines/full.py", "--profile", str(PROFILE), "--root", str(root), *arguments]


def call(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(root, *arguments), cwd=PROJECT, capture_output=True, text=True, timeout=900)


def kill_while_training(root: Path) -> None:
    """Starts the run and kills the driver, and nothing else, when ByG has left a checkpoint."""
    log = (root.parent / "killed.log").open("w")
    driver = subprocess.Popen(command(root), cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 600
    while True:
        assert driver.poll() is None, (root.parent / "killed.log").read_text()
        assert time.monotonic() < deadline, "ByG never began"
        for file in root.glob("runs/*/progress/train_byg.json"):
            if json.loads(file.read_text())["done"] >= 3:
                os.kill(driver.pid, signal.SIGKILL)
                driver.wait()
                return
        time.sleep(0.2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("full") / "runs"
    kill_while_training(root)
    finished = call(root)
    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-3000:]
    return root


def summary_of(root: Path) -> dict:
    return json.loads((root / "runs" / "latest.json").read_text())


def test_the_summary_keeps_its_contract(root):
    summary = summary_of(root)
    assert summary["status"] == "ok"
    assert {"run_id", "profile", "seconds", "stages", "results"} <= set(summary)
    for name, stage in summary["stages"].items():
        assert stage["status"] in ("ran", "cached"), name
        assert {"why", "seconds", "fingerprint", "artifact", "rows", "mlflow_run_id", "error"} <= set(stage)
    assert summary["stages"]["caption"]["status"] == "cached"  # done before the driver was killed
    assert set(summary["results"]) == METHODS
    for method, metrics in summary["results"].items():
        assert METRICS <= set(metrics), method
        assert metrics["num_items"] == 12
    assert summary["results"]["copy"]["whole_scene_right"] == 0
    assert summary["results"]["copy"]["preservation"] > 0.5


def test_training_went_on_where_it_was_killed(root):
    from cluster.folder import Folder

    summary = summary_of(root)
    history = Folder(summary["stages"]["train_byg"]["artifact"]).read_table("history.parquet").to_pylist()
    steps = [row["step"] for row in history if row["name"] == "gradient_norm"]
    assert steps == list(range(1, 9))


def test_mlflow_has_a_run_for_the_pipeline_and_one_for_each_stage(root):
    from mlflow import MlflowClient

    summary = summary_of(root)
    client = MlflowClient(f"sqlite:///{root}/mlflow/mlflow.db")
    run = client.get_run(summary["stages"]["train_byg"]["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"]
    assert "preview_whole_scene_right" in run.data.metrics
    assert client.search_registered_models()


def test_an_unchanged_run_does_nothing_and_a_changed_setting_says_what_it_costs(root):
    began = time.monotonic()
    again = call(root)
    assert again.returncode == 0, again.stderr
    assert {stage["status"] for stage in summary_of(root)["stages"].values()} == {"cached"}
    assert time.monotonic() - began < 30
    plan = call(root, "--set", "train_byg.learning_rate=0.001", "--dry-run").stdout
    lines = [line for line in plan.splitlines() if line.strip()]
    states = {line.split()[0]: line for line in lines}
    assert "cached" in states["encode"] and "cached" in states["train_sft"]
    assert "run" in states["train_byg"] and "0.002" in states["train_byg"] and "0.001" in states["train_byg"]
    assert "cached" in call(root, "--set", "edit.batch_size=3", "--dry-run").stdout.split("edit ")[1].splitlines()[0]


def test_the_report_is_one_page_of_its_own(root):
    page = (Path(summary_of(root)["stages"]["report"]["artifact"]) / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert 'src="http' not in page and 'href="http' not in page


def test_a_training_without_a_kill_gives_the_same_bytes(root):
    """Last: it makes the killed stage anew, from its beginning."""
    artifact = Path(summary_of(root)["stages"]["train_byg"]["artifact"])
    names = ["adapter/pytorch_lora_weights.safetensors", "history.parquet"]
    resumed = [(artifact / name).read_bytes() for name in names]
    undisturbed = call(root, "--only", "train_byg", "--force", "train_byg")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert summary_of(root)["stages"]["train_byg"]["why"] == "asked for anew"
    assert [(artifact / name).read_bytes() for name in names] == resumed
