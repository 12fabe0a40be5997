"""Fixtures of these tests."""

from pathlib import Path

import pytest

from cluster.artifacts import Artifact
from tests.stages.caption.replay import make_samples


@pytest.fixture
def ingest(tmp_path: Path) -> Artifact:
    return make_samples(tmp_path)
