"""LPIPS between an edit and its source: NP-Edit's answer where fine details of the source get lost (appendix C)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from urllib.error import URLError

import torch
from lpips import LPIPS
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision.models import VGG16_Weights

from cluster.errors import UserError
from stages.train.backbones.backbone import BackboneEncoder, loading
from stages.train.backbones.models import resolved_model
from stages.train.roles import Batch
from stages.train.settings import UnrolledConfig


@dataclasses.dataclass(frozen=True)
class PerceptualDistance:
    """How far an edit looks from its source, by LPIPS with VGG 16."""

    encoder: BackboneEncoder
    network: LPIPS
    size: tuple[int, int]  # height and width of the pictures

    @classmethod
    def load(cls, config: UnrolledConfig, grid: tuple[int, ...], device: torch.device) -> PerceptualDistance:
        """With the autoencoder of `config.model`, for pictures of `grid` tokens. Raises UserError as `load_lpips`."""
        dtype = getattr(torch, config.dtype)
        with loading(config.model, f"{config.stage}.model") as backbone:
            encoder = backbone.Encoder(resolved_model(config.model), str(device), dtype)
        rows, columns = grid
        size = rows * encoder.token_size, columns * encoder.token_size
        return cls(encoder, load_lpips(config.lpips_weights, device, f"{config.stage}.lpips_weights"), size)

    def __call__(self, edited: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Each row's distance, `[B]`; `edited`: tokens `[B, N, C]`, which the gradient reaches."""
        with torch.no_grad():
            sources = self.encoder.decode(batch.latents["source"], *self.size)
        return self.network(self.encoder.decode(edited, *self.size), sources, normalize=True).flatten()


def load_lpips(weights: str, device: torch.device, setting: str) -> LPIPS:
    """LPIPS 0.1, frozen. Its own layers come with the library, VGG 16 from the safetensors file `weights`.

    Without a file torchvision fetches VGG 16 once. Raises UserError, which names the `setting`, if there is none.
    """
    try:
        tensors = load_file(weights) if weights else VGG16_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
        network = LPIPS(net="vgg", pnet_rand=True, verbose=False)
        network.net.load_state_dict(
            {
                f"{slice_name}.{place}.{part}": tensors[f"features.{place}.{part}"]
                for slice_name, layers in network.net.named_children()
                for place, layer in layers.named_children()
                for part, _ in layer.named_parameters()
            }
        )
    except (OSError, URLError, SafetensorError, KeyError, RuntimeError) as error:
        where = f"in {Path(weights)}" if weights else "from torchvision's server"
        raise UserError(
            f"{setting}: LPIPS needs the weights of VGG 16, which can't be had {where} ({error}). Give a safetensors "
            "file with the state of torchvision's vgg16, or leave lambda_lpips at 0."
        ) from None
    return network.to(device).requires_grad_(False)
