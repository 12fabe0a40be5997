"""A FLUX pipeline of the starter's shape with random weights, as a model folder."""

from __future__ import annotations

from pathlib import Path

import pytest


def save_tiny_flux(path: Path) -> Path:
    """Saves it and returns `path`. The latents' scale is not 1, so that a forgotten scaling shows."""
    import torch

    from stages.starter.autoencoder import new_autoencoder
    from stages.starter.generator import Generator, as_pipeline

    torch.manual_seed(0)
    autoencoder = new_autoencoder()
    autoencoder.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    as_pipeline(Generator(), autoencoder).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random tiny FLUX."""
    return save_tiny_flux(tmp_path_factory.mktemp("flux") / "model")
