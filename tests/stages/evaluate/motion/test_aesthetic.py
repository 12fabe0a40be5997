import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from cluster.errors import UserError
from stages.evaluate.motion.aesthetic import AestheticModel
from tests.stages.evaluate.motion.models import SIDE, noise, write_clip_model, write_head


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aesthetic")
    return write_clip_model(folder), write_head(folder)


def by_library(files, pixels):
    """VBench's sum by torch's own layers; `pixels` `[T, 3, SIDE, SIDE]`, 0 to 255."""
    clip, tensors = CLIPVisionModelWithProjection.from_pretrained(files[0]), load_file(files[1])
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    with torch.no_grad():
        embeds = clip(pixel_values=(pixels / 255 - mean) / std).image_embeds
        embeds = torch.nn.functional.normalize(embeds, dim=-1)
        return (torch.nn.functional.linear(embeds, tensors["weight"], tensors["bias"]) / 10).mean().item()


def test_frames_of_the_models_size(files):
    frames = noise(20, SIDE, SIDE)  # more than a batch
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    assert AestheticModel(*files, "cpu").score(frames) == pytest.approx(by_library(files, pixels), abs=1e-6)


def test_larger_frames_are_brought_to_it_as_vbench_does(files):
    frames = noise(2, 40, 60)
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(pixels, (SIDE, 24), mode="bicubic").clamp(0, 255).round()  # no antialias
    wanted = by_library(files, small[..., 4:20])
    assert AestheticModel(*files, "cpu").score(frames) == pytest.approx(wanted, abs=1e-6)


def test_models_that_dont_fit(files, tmp_path):
    with pytest.raises(UserError, match=r"is no linear head for .*wanted are weight \[1, 12\] and bias \[1\]"):
        AestheticModel(files[0], write_head(tmp_path, 5), "cpu")
    with pytest.raises(UserError, match="sa_0_4_vit_l_14_linear.pth is no .safetensors file.*Convert"):
        AestheticModel(files[0], "sa_0_4_vit_l_14_linear.pth", "cpu")
    with pytest.raises(UserError, match="can't be loaded as a CLIP model.*evaluate_video.motion.aesthetic.clip"):
        AestheticModel(str(tmp_path), files[1], "cpu")
