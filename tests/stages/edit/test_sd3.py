"""The sampler on Stable Diffusion 3, against its own pipeline."""

import numpy as np
import pytest
import torch

from stages.edit.sampler import Sampler
from stages.train.backbones.image_encoder import pack, unpack

TEXTS = ["red circle top left on gray background", "blue square top right on teal background at night"]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_text_to_image_is_the_pipelines_own_with_and_without_guidance(tiny_sd3, guidance_scale):
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
    pipeline.set_progress_bar_config(disable=True)
    sampler = Sampler(tiny_sd3, num_inference_steps=4, guidance_scale=guidance_scale)
    noise = sampler.noise(["a", "b"], 0, 16, 32)
    assert noise.shape == (2, 8, 64)
    given = {"prompt": TEXTS, "height": 16, "width": 32, "guidance_scale": guidance_scale, "max_sequence_length": 16}
    given |= {"latents": unpack(noise, (2, 4)), "sigmas": np.linspace(1, 0.25, 4)}  # as FLUX's pipelines space them
    theirs = pack(pipeline(**given, output_type="latent").images)
    ours = sampler.sample(TEXTS, noise, 16, 32)
    assert (ours - theirs).abs().max() < 1e-5
    pictures = pipeline(**given).images
    for picture, expected in zip(sampler.pictures(ours, 16, 32), pictures, strict=True):
        assert np.abs(np.asarray(picture, dtype=int) - np.asarray(expected)).max() <= 1


def test_guidance_with_a_reference_leaves_out_the_text_alone(tiny_sd3):
    """One step of the guided sampler is the two velocities' line, both of them with the reference."""
    sampler = Sampler(tiny_sd3, num_inference_steps=1, guidance_scale=3.0)
    noise, reference = sampler.noise(["a"], 0, 16, 16), sampler.noise(["b"], 0, 16, 16)
    guided = sampler.sample(TEXTS[:1], noise, 16, 16, reference=reference)
    plain = Sampler(tiny_sd3, num_inference_steps=1, guidance_scale=1.0)
    with_text, without = (plain.sample([text], noise, 16, 16, reference=reference) for text in (TEXTS[0], ""))
    assert torch.allclose(guided, without + 3.0 * (with_text - without), atol=1e-5)
    assert (with_text - without).abs().max() > 1e-4
