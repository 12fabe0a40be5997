"""The shipped video models load by diffusers' own means and do what their card says, in part at least."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.starter import clips, wan_measure, world

WAN = Path(__file__).parents[3] / "stages" / "starter" / "models" / "wan"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["i2v", "flf2v", "t2v"])
def test_the_shipped_pipelines_make_clips(kind):
    pipeline = wan_measure.load_pipeline(WAN / kind)
    assert type(pipeline).__name__ == ("WanPipeline" if kind == "t2v" else "WanImageToVideoPipeline")
    clip = clips.sample_clip(np.random.default_rng(7), ("background",))
    first, last = world.render(clip.source), world.render(clip.target)
    given = {"t2v": (), "i2v": (first,), "flf2v": (first, last)}[kind]
    text = clip.caption if kind == "t2v" else clip.evolution_caption
    made = wan_measure.make_clip(pipeline, text, *given, num_inference_steps=4)
    assert made.shape == (clips.NUM_FRAMES, 32, 32, 3) and np.isfinite(made).all()
    assert all(param.dtype == torch.float32 for param in pipeline.transformer.parameters())


def test_they_are_small():
    files = {path.resolve() for path in WAN.rglob("*") if path.is_file()}
    assert sum(path.stat().st_size for path in files) < 8e6
