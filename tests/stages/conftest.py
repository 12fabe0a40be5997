import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One small Ray on this machine for the stages' tests that need one."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    if not ray.is_initialized():
        for attempt in range(3):
            try:
                ray.init(
                    address="local", num_cpus=4, resources={"vllm": 1, "train": 2}, include_dashboard=False,
                    object_store_memory=100_000_000, log_to_driver=False,
                )  # fmt: skip
                break
            except Exception:  # a loaded machine can miss the 30 s that the raylet is given
                ray.shutdown()
                if attempt == 2:
                    raise
    yield
    ray.shutdown()
