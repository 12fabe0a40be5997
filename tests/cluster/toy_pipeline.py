"""The toy pipeline as a script, without MLflow, for tests that run and kill whole drivers."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cluster.run import RunSettings
from pipelines.cli import main
from tests.cluster.toys import STAGES

if __name__ == "__main__":
    settings = RunSettings(lease_seconds=float(os.environ.get("TOY_LEASE_SECONDS", "30")), grace_seconds=3)
    sys.exit(main(STAGES, tracked=False, settings=settings))
