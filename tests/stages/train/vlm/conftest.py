from pathlib import Path

import pytest
import torch

from stages.train.vlm.verifier import Verifier, load_verifier
from tests.tiny_vlms import onevision_model, onevision_processor, qwen2_5_model, qwen2_5_processor

MODELS = Path(__file__).parents[4] / "stages/starter/models"


@pytest.fixture(scope="session")
def starter() -> Verifier:
    return load_verifier(str(MODELS / "qwen3vl"), "cpu", torch.float32)


@pytest.fixture(scope="session")
def qwen2_5() -> Verifier:
    return Verifier(qwen2_5_model(), qwen2_5_processor())


@pytest.fixture(scope="session")
def onevision() -> Verifier:
    return Verifier(onevision_model(), onevision_processor())


@pytest.fixture(params=["starter", "qwen2_5", "onevision"])
def verifier(request) -> Verifier:
    return request.getfixturevalue(request.param)
