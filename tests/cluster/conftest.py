import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.folder import Folder

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder on each kind of store."""
    if request.param == "local":
        return Folder(tmp_path / "folder")
    if request.param == "memory":
        return Folder(f"memory://test-{uuid.uuid4().hex}/folder")
    request.getfixturevalue("s3_endpoint")
    bucket = f"test-{uuid.uuid4().hex}"
    Folder(f"s3://{bucket}").fs.mkdir(bucket)
    return Folder(f"s3://{bucket}/folder")


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint: str) -> Iterator[str]:
    """One small Ray on this machine for all tests that need one. Gives its address."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for attempt in range(3):
        try:
            info = ray.init(
                address="local", num_cpus=4, resources={"vllm": 2, "train": 2}, include_dashboard=True,
                dashboard_host="127.0.0.1", object_store_memory=100_000_000, log_to_driver=False,
            )  # fmt: skip
            break
        except Exception:  # a loaded machine can miss the 30 s that the raylet is given
            ray.shutdown()
            if attempt == 2:
                raise
    yield info.address_info["gcs_address"]
    ray.shutdown()
