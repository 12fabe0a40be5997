"""The starter's AutoencoderKL: 32x32 pixels to 16 channels of 8x8, as FLUX's own (which has 8x fewer pixels a side)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from stages.starter import oracle, world


def new_autoencoder():
    """An untrained AutoencoderKL with FLUX's latent layout (16 channels, no quantisation convolutions)."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=world.IMAGE_SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def scene_pixels(num: int, generator: np.random.Generator) -> torch.Tensor:
    """Pictures of random scenes, float32 in [-1, 1], `[num, 3, 32, 32]`."""
    pictures = np.stack([world.render_float(world.sample_scene(generator)) for _ in range(num)])
    return torch.from_numpy(pictures).float().permute(0, 3, 1, 2) * 2 - 1


def train_autoencoder(
    checkpoint: Path,
    num_steps: int,
    device: str = "cpu",
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    kl_weight: float = 1e-4,
    log: Callable[[str], None] = print,
):
    """Trains it on random scenes (L1 + L2, a small KL term that keeps the latents smooth); goes on from `checkpoint`.

    The scaling factor makes the latents' standard deviation one, the shift factor their mean zero.
    """
    torch.manual_seed(0)
    model = new_autoencoder().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    pool = scene_pixels(20_000, np.random.default_rng(10))
    order = torch.Generator()
    began = time.monotonic()
    for step in range(start, num_steps):
        decay = min(1.0, (num_steps - step) / (0.4 * num_steps))
        optimizer.param_groups[0]["lr"] = learning_rate * decay * min(1.0, (step + 1) / 100)
        order.manual_seed(step)
        pixels = pool[torch.randint(len(pool), (batch_size,), generator=order)].to(device)
        posterior = model.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=order).to(device)
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
        error = decoded - pixels
        loss = error.abs().mean() + 4 * error.square().mean() + kl_weight * posterior.kl().mean() / 16
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == num_steps:
            psnr = -10 * torch.log10(error.detach().square().mean() / 4).item()
            rate = (step - start + 1) / (time.monotonic() - began)
            log(f"autoencoder step {step + 1}/{num_steps} loss {loss.item():.4f} psnr {psnr:.1f} dB, {rate:.2f}/s")
        if step % 500 == 499 or step + 1 == num_steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    with torch.no_grad():
        latents = torch.cat([model.encode(p.to(device)).latent_dist.mean for p in pool[:2000].split(250)])
    model.register_to_config(
        scaling_factor=round(1 / latents.std().item(), 6), shift_factor=round(latents.mean().item(), 6)
    )
    return model.eval()


@torch.no_grad()
def measure_autoencoder(model, num_scenes: int = 500, seed: int = 99) -> dict[str, float]:
    """PSNR in dB and the share of held-out reconstructions that the oracle reads as the scene itself."""
    generator = np.random.default_rng(seed)
    scenes = [world.sample_scene(generator) for _ in range(num_scenes)]
    pictures = np.stack([world.render_float(s) for s in scenes])
    pixels = torch.from_numpy(pictures).float().permute(0, 3, 1, 2) * 2 - 1
    device = next(model.parameters()).device
    decoded = torch.cat([model(p.to(device)).sample.cpu() for p in pixels.split(100)])
    decoded = ((decoded + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).double().numpy()
    errors = np.square(decoded - pictures).mean(axis=(1, 2, 3))
    right = [oracle.read(d) == oracle.expected_reading(s) for d, s in zip(decoded, scenes, strict=True)]
    blocks = [
        oracle.worst_block(d, p, np.ones(p.shape[:2], dtype=bool)) < oracle.MAX_BLOCK_ERROR
        for d, p in zip(decoded, pictures, strict=True)
    ]
    return {
        "psnr": float(np.mean(-10 * np.log10(errors))),
        "oracle_right": float(np.mean(right)),
        "pixels_kept": float(np.mean(blocks)),
        "num_scenes": num_scenes,
    }
