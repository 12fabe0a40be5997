"""LPIPS against its formula in float64, in the loss, and where its weights are missing. The weights here are random."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchvision.models import vgg16

from cluster.errors import UserError
from stages.train.backbones import flux
from stages.train.perceptual import PerceptualDistance, load_lpips
from stages.train.roles import Batch
from stages.train.settings import TrainNPEditConfig
from stages.train.stage import new_trainer, train_sources

CPU = torch.device("cpu")
STARTER = "stages/starter/models/flux"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """VGG 16 as torchvision has it, but for the classifier, which LPIPS doesn't use."""
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(vgg16(weights=None).features.state_dict(prefix="features."), path)
    return str(path)


@pytest.fixture(scope="module")
def network(weights):
    return load_lpips(weights, CPU, "setting")


def formula(first: torch.Tensor, second: torch.Tensor, weights: str, network) -> torch.Tensor:
    """Zhang et al. 2018, eq. 1: squared differences of unit-length features, weighted by channel, means over places."""
    features = vgg16(weights=None).features.double().eval()
    features.load_state_dict({name.removeprefix("features."): t for name, t in load_file(weights).items()})
    mean = torch.tensor([-0.030, -0.088, -0.188]).double()[:, None, None]
    spread = torch.tensor([0.458, 0.448, 0.450]).double()[:, None, None]
    total = torch.zeros(len(first)).double()
    states = [(2 * picture.double() - 1 - mean) / spread for picture in (first, second)]
    for place, layer in enumerate(features):
        states = [layer(state) for state in states]
        if place in (3, 8, 15, 22, 29):
            a, b = (functional.normalize(state, dim=1) for state in states)
            channels = network.lins[(3, 8, 15, 22, 29).index(place)].model[-1].weight.double()
            total += ((a - b).square() * channels[0]).sum(1).mean((1, 2))
    return total


def test_equals_its_formula(weights, network):
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(3, 3, 32, 32, generator=generator) for _ in range(2))
    with torch.no_grad():
        found = network(first, second, normalize=True).flatten()
        wanted = formula(first, second, weights, network)
    assert torch.allclose(found.double(), wanted, rtol=1e-4) and found.min() > 0
    assert network(first, first, normalize=True).abs().max() == 0


def test_its_gradient_brings_an_edit_nearer_to_its_source(network):
    encoder = flux.Encoder(STARTER, max_length=16)
    generator = torch.Generator().manual_seed(2)
    source = encoder.encode_pixels(torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1)
    edited = (source + 0.3 * torch.randn(source.shape, generator=generator)).requires_grad_()
    distance, batch = PerceptualDistance(encoder, network, (32, 32)), Batch([], {"source": source}, {})
    before = distance(edited, batch)
    before.sum().backward()
    step = 0.05 * edited.grad / edited.grad.flatten(1).norm(dim=1)[:, None, None]
    assert (distance(edited.detach() - step, batch) < before).all()
    alone = distance(edited[1:].detach(), Batch([], {"source": source[1:]}, {}))
    assert torch.allclose(alone, before[1:].detach(), rtol=1e-4)


def test_np_edit_adds_it_to_the_students_loss(np_edit_config, labelled_data, weights):
    settings = np_edit_config.np_edit.model_copy(update={"lambda_lpips": 0.5})
    config = np_edit_config.model_copy(update={"np_edit": settings, "lpips_weights": weights})
    trainer, plain = new_trainer(config, labelled_data, CPU), new_trainer(np_edit_config, labelled_data, CPU)
    steps = [(trainer.train_step(), plain.train_step()) for _ in range(2)]
    assert steps[0][0] == steps[0][1]  # the warm-up
    assert steps[1][0].pop("loss_lpips") > 0
    assert steps[1][0].pop("gradient_norm") != steps[1][1].pop("gradient_norm")
    assert steps[1][0] == steps[1][1]
    assert weights in train_sources(config)


def test_missing_weights_are_named(tmp_path):
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for path, reason in (("nowhere.safetensors", "nowhere"), (str(tmp_path / "other.safetensors"), "features.0.bias")):
        with pytest.raises(UserError, match=f"train_np_edit.lpips_weights: LPIPS needs .* VGG 16.*{reason}"):
            load_lpips(path, CPU, f"{TrainNPEditConfig().stage}.lpips_weights")
