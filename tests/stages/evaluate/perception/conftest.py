from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny_perception


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random tiny model of each kind."""
    root = tmp_path_factory.mktemp("perception")
    kinds = ("clip", "dino", "dinov2", "detector", "sam2")
    return {kind: getattr(tiny_perception, f"save_{kind}")(root / kind) for kind in kinds}


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Smooth pictures of several sizes, larger and smaller than what the models see."""
    generator = np.random.default_rng(0)
    sizes = [(60, 40), (50, 50), (37, 91), (20, 24), (60, 40)]
    coarse = [generator.integers(0, 256, (6, 5, 3), dtype=np.uint8) for _ in sizes]
    return [
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        for pixels, size in zip(coarse, sizes, strict=True)
    ]
