"""Captions of a folder with bad pictures, disturbed in the middle of shards: SIGKILL of the raylet, the engine, the
stage's worker and the driver, another driver on the same root. In the end the files are those of a run in peace. The
tests go on with each other's work, in their order. The engine is held still whenever a test has something to do, so
that no machine is too fast for it.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from cluster.tracking import EXPERIMENT
from stages.starter.stages import ScenesConfig, make_scenes
from tests.e2e.disturbed import (
    Driver,
    HeldRay,
    ended,
    gone,
    held_after_next_shard,
    manifest,
    num_incidents,
    shards,
    wait_until,
)
from tests.stages.ingest.context import make_context

NUM_SCENES = 79
SHARD_SIZE = 4
NUM_SHARDS = 20
BAD = {
    "corrupt.png": "corrupt: ",
    "bomb.png": "too large: 10000x6000 pixels",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def profile(folder: Path) -> Path:
    """Captions of scenes, of half a picture, of one that decodes to 60 megapixels, and of one that no model takes."""
    context = make_context(folder, "scenes")
    make_scenes({}, ScenesConfig(num_scenes=NUM_SCENES), context)
    pictures = Path(context.out.path("images"))
    scene = next(pictures.glob("*.png")).read_bytes()
    (pictures / "corrupt.png").write_bytes(scene[: len(scene) // 2])
    Image.new("L", (10_000, 6_000)).save(pictures / "bomb.png")
    noise = np.random.default_rng(0).integers(0, 255, (2, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pictures / "strip.png")
    path = folder / "profile.yaml"
    engine = {"model": "stages/starter/models/qwen3vl", "max_model_len": 512, "num_in_flight": 8, "max_num_seqs": 4}
    values = {
        "_targets": ["caption"],
        "ingest": {"source": str(pictures), "shard_size": 64},
        "caption": {"engine": engine, "max_tokens": 120, "shard_size": SHARD_SIZE, "temperatures": [0.0]},
    }
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def held_ray() -> Iterator[HeldRay]:
    held = HeldRay()
    yield held
    held.close()


@pytest.fixture(scope="module")
def store(folder: Path) -> dict[str, str]:
    """One MLflow store for the drivers that come and go."""
    uri = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(uri).create_experiment(EXPERIMENT, artifact_location=(folder / "mlflow").as_uri())
    return {"MLFLOW_TRACKING_URI": uri}


@pytest.fixture(scope="module")
def undisturbed(folder: Path, profile: Path, held_ray: HeldRay, store: dict[str, str]) -> Path:
    root = folder / "undisturbed"
    driver = Driver(root, profile, folder / "undisturbed.log", held_ray.address, **store)
    with ended(driver):
        code, output = driver.end()
    assert code == 0, output
    return root


def test_bad_pictures_fail_alone_and_every_row_is_there_once(undisturbed: Path):
    def rows(pattern: str) -> list[dict]:
        return [row for file in sorted(undisturbed.glob(pattern)) for row in pq.read_table(file).to_pylist()]

    letters = {row["source"]: row["reason"] for row in rows("ingest/*/dead_letters/*.parquet")}
    assert set(letters) == set(BAD) and all(letters[name].startswith(reason) for name, reason in BAD.items())
    samples = rows("ingest/*/samples/*.parquet")
    tuples, dead = rows("caption/*/tuples/*.parquet"), rows("caption/*/dead_letters/*.parquet")
    asked = [row["sample_id"] for row in tuples + dead]
    assert sorted(asked) == sorted(row["sample_id"] for row in samples) and len(set(asked)) == NUM_SCENES + 1
    refused = [row for row in dead if row["finish_reason"] is None or row["finish_reason"] == ""]
    (strip,) = [row["sample_id"] for row in samples if row["source"] == "strip.png"]
    assert [row["sample_id"] for row in refused] == [strip]
    assert refused[0]["outcome"] == "failed" and "aspect ratio" in refused[0]["reason"]
    assert len(tuples) > 0.8 * NUM_SCENES and len(shards(undisturbed)) == NUM_SHARDS


def test_a_dead_raylet_ends_the_driver_and_all_that_ray_ran(folder: Path, profile: Path, undisturbed: Path):
    root = folder / "root"
    shutil.copytree(undisturbed / "ingest", root / "ingest")
    driver = Driver(root, profile, folder / "raylet.log", RAY_health_check_period_ms="1000")
    with ended(driver):
        engine = driver.family.wait_for("EngineActor", driver)
        held_after_next_shard(root, engine, driver)
        family = driver.family.all()
        driver.family.kill("raylet")
        code, output = driver.end()
        # Two agents of Ray try for a minute to tell the dead cluster of it, then end too.
        assert gone([process for process in family if not process.is_running() or "Agent" not in process.name()])
    assert code == 1, output
    assert "Ray's raylet on " in output and "Call the same command again" in output and "Traceback" not in output
    assert 0 < len(shards(root)) < NUM_SHARDS and not list(root.glob("caption/*/manifest.json"))


def test_every_process_may_be_killed_and_two_drivers_end_with_the_same_files(
    folder: Path, profile: Path, undisturbed: Path, held_ray: HeldRay, store: dict[str, str]
):
    """The engine outlives a killed driver of a cluster, and the next driver of the run finds it."""
    root, family = folder / "root", held_ray.family  # that of the dead raylet
    arguments = (root, profile)
    wait_until(lambda: not family.find("EngineActor"))  # that of the run in peace
    first = Driver(*arguments, folder / "first.log", held_ray.address, **store)
    with ended(first):
        killed = family.wait_for("EngineActor", first)
        held_after_next_shard(root, killed, first)
        killed.kill()
        wait_until(lambda: num_incidents(root, "engine died") == 1, first)
        assert gone([killed])
        engine = family.wait_for("EngineActor", first)
        held_after_next_shard(root, engine, first)
        family.kill("stage:caption")
        wait_until(lambda: num_incidents(root, "Tried again after: WorkerCrashed") == 1, first)
        held_after_next_shard(root, engine, first)
        worker = family.find("stage:caption")
        first.process.kill()
        assert gone([worker])
    assert len(shards(root)) < NUM_SHARDS and not list(root.glob("caption/*/manifest.json"))

    second = Driver(*arguments, folder / "second.log", held_ray.address, **store)
    with ended(second):
        worker = family.wait_for("stage:caption", second)
        held_after_next_shard(root, engine, second)
        third = Driver(*arguments, folder / "third.log", held_ray.address, **store)
        with ended(third):
            wait_until(lambda: "is making it now" in third.output(), third)
            assert len(shards(root)) < NUM_SHARDS and worker.is_running()
            engine.resume()
            ends = [driver.end() for driver in (second, third)]
    assert [code for code, _ in ends] == [0, 0], ends
    assert "Going on with run" in ends[0][1] and "made meanwhile by run" in ends[1][1]
    for stage in ("ingest", "caption"):
        assert manifest(root, stage)["files"] == manifest(undisturbed, stage)["files"]
    assert not list(root.glob("*/*/**/.tmp-*"))
