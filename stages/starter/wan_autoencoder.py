"""The starter's AutoencoderKLWan: 5 frames of 32x32 pixels to 16 channels of 2 x 8 x 8, causal in time, as Wan's own
(which has 8x8 pixels to a latent where this one has 4x4)."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import safetensors.torch
import torch

from stages.starter import clips, oracle
from stages.starter.progress import Progress, TrainingSettings

NUM_CHANNELS = 16
LATENT_SHAPE = (NUM_CHANNELS, 2, 8, 8)


class AutoencoderSettings(TrainingSettings):
    """Sizes of the autoencoder's training: the defaults take about a quarter of an hour on one core."""

    num_picture_steps: int = 500  # first it learns single pictures,
    num_clip_steps: int = 1100  # then clips
    num_pictures: int = 16  # per step
    num_clips: int = 4  # per step
    pool_size: int = 5000  # clips
    kl_weight: float = 1e-3  # a number of the latents
    learning_rate: float = 5e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 20
    ema_decay: float = 0.98
    muon_for_kernels: bool = True


def _begin_as_picture_autoencoder(model: torch.nn.Module) -> None:
    """Weights at which each frame passes alone, its signal neither growing nor fading, and time is sampled.

    Of the kernels that look back only the present frame's slice is drawn, the past's are zero; what halves time
    keeps the later frame and what doubles it shows it twice, so that pictures once learned make a start for clips.
    """
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            continue
        torch.nn.init.normal_(module.bias, std=0.02)  # not zero: a gray picture would have no norm to divide by
        weight = module.weight.data
        if name.endswith("time_conv"):
            weight.zero_()
            weight[:, :, -1, 0, 0] = torch.eye(weight.shape[1]).repeat(weight.shape[0] // weight.shape[1], 1)
        elif weight.ndim == 5:
            weight.zero_()
            torch.nn.init.kaiming_normal_(weight[:, :, -1], nonlinearity="linear")
        else:
            torch.nn.init.kaiming_normal_(weight, nonlinearity="linear")
    model.quant_conv.weight.data[NUM_CHANNELS:] *= 0.1
    model.quant_conv.bias.data[NUM_CHANNELS:] = -6  # the logarithm of the variance: little noise at first


def new_wan_autoencoder():
    """An untrained AutoencoderKLWan, four times smaller in time and in each direction of space."""
    from diffusers import AutoencoderKLWan

    model = AutoencoderKLWan(
        base_dim=16,
        z_dim=NUM_CHANNELS,
        dim_mult=[1, 2, 3],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * NUM_CHANNELS,
        latents_std=[1.0] * NUM_CHANNELS,
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )
    _begin_as_picture_autoencoder(model)
    return model


def clip_pool(num: int, seed: int, kinds: Sequence[str] = clips.CLIP_KINDS) -> tuple[list[clips.Clip], torch.Tensor]:
    """Random clips and their frames in 8 bits, uint8 `[num, 3, 5, 32, 32]`."""
    generator = np.random.default_rng(seed)
    drawn = [clips.sample_clip(generator, kinds) for _ in range(num)]
    frames = np.stack([np.round(clips.render_clip(clip) * 255).astype(np.uint8) for clip in drawn])
    return drawn, torch.from_numpy(frames).permute(0, 4, 1, 2, 3).contiguous()


def to_range(frames: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [-1, 1]."""
    return frames.float() / 127.5 - 1


def first_frame_condition(pixels: torch.Tensor) -> torch.Tensor:
    """The clip `[B, 3, F, H, W]` with gray in all frames but the first, as WanImageToVideoPipeline encodes it."""
    condition = torch.zeros_like(pixels)
    condition[:, :, 0] = pixels[:, :, 0]
    return condition


def both_ends_condition(pixels: torch.Tensor) -> torch.Tensor:
    """The clip with gray in all frames but the first and the last."""
    condition = first_frame_condition(pixels)
    condition[:, :, -1] = pixels[:, :, -1]
    return condition


def cut(pixels: torch.Tensor) -> torch.Tensor:
    """The first frame, then the last one in all the others: what an edit is without its evolution."""
    return torch.cat([pixels[:, :, :1], pixels[:, :, -1:].expand(-1, -1, pixels.shape[2] - 1, -1, -1)], dim=2)


def encode(model, pixels: torch.Tensor, batch_size: int = 50) -> torch.Tensor:
    """Latents `[N, 16, 2, 8, 8]` of pixels in [-1, 1], zero on average and of unit deviation in every channel."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (model.config.latents_mean, model.config.latents_std))
    with torch.no_grad():
        parts = [model.encode(part).latent_dist.mode() for part in pixels.split(batch_size)]
    return (torch.cat(parts) - mean) / std


def encode_once(path: pathlib.Path, model, pixels: torch.Tensor) -> torch.Tensor:
    """`encode`, kept in `path`: the latents of the same pixels, wherever a training begins again."""
    if path.exists():
        latents = safetensors.torch.load_file(path)["latents"]
        if len(latents) == len(pixels):
            return latents
    latents = encode(model, pixels)
    part = path.with_suffix(".part")
    safetensors.torch.save_file({"latents": latents}, part)
    part.replace(path)
    return latents


def _training_batch(pool: torch.Tensor, settings: AutoencoderSettings, step: int, draw: torch.Generator):
    """Pixels `[B, 3, F, 32, 32]`: single pictures first; then clips, and what else will be encoded in one of four.

    Conditions (gray but for the given frames) and cuts are no clips, but the models will have them encoded.
    """
    if step < settings.num_picture_steps:
        rows = torch.randint(len(pool), (settings.num_pictures,), generator=draw)
        times = torch.randint(pool.shape[2], (settings.num_pictures,), generator=draw)
        return to_range(pool[rows, :, times].unsqueeze(2))
    rows = torch.randint(len(pool), (settings.num_clips,), generator=draw)
    pixels = to_range(pool[rows])
    others = (first_frame_condition, both_ends_condition, cut)
    num = max(1, settings.num_clips // 4)
    return torch.cat([others[step % len(others)](pixels[:num]), pixels[num:]])


def train_wan_autoencoder(
    checkpoint: pathlib.Path, settings: AutoencoderSettings | None = None, log: Callable[[str], None] = print
):
    """Trains it on clips (L1 + L2, a small KL term that keeps the latents smooth); returns the averaged weights.

    Goes on from `checkpoint`. Every draw is a function of the step, so a run in two parts equals one in one part.
    `latents_mean` and `latents_std` in its settings are those of the clips' latents, channel by channel.
    """
    settings = settings or AutoencoderSettings()
    torch.manual_seed(settings.seed)
    model = new_wan_autoencoder()
    num_steps = settings.num_picture_steps + settings.num_clip_steps
    progress = Progress(checkpoint, model, settings, num_steps)
    pool = None if progress.finished else clip_pool(settings.pool_size, seed=30)[1]
    draw = torch.Generator()
    chunks: list[torch.Tensor] = []  # as decoded: `decode` clamps, and where it does no gradient passes
    hook = model.decoder.register_forward_hook(lambda module, inputs, output: chunks.append(output))
    while not progress.finished:
        draw.manual_seed(progress.num_steps)
        pixels = _training_batch(pool, settings, progress.num_steps, draw)
        posterior = model.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=draw)
        chunks.clear()
        model.decode(posterior.mean + posterior.std * noise)
        error = torch.cat(chunks, dim=2) - pixels
        kl = posterior.kl().sum() / posterior.mean.numel()
        loss = error.abs().mean() + 4 * error.square().mean() + settings.kl_weight * kl
        loss.backward()
        progress.step()
        if progress.num_steps % 50 == 0 or progress.finished:
            psnr = -10 * torch.log10(error.detach().square().mean() / 4).item()
            log(
                f"wan autoencoder step {progress.num_steps}/{num_steps} loss {loss.item():.4f} "
                f"psnr {psnr:.1f} dB, {progress.spent:.0f} s"
            )
        if progress.due:
            progress.save()
    hook.remove()
    progress.use_average()
    model.eval()
    latents = encode(model, to_range(clip_pool(min(500, settings.pool_size), seed=31)[1]))
    mean, std = (getattr(latents, measure)(dim=(0, 2, 3, 4)) for measure in ("mean", "std"))
    model.register_to_config(
        latents_mean=[round(v, 5) for v in mean.tolist()], latents_std=[round(v, 5) for v in std.tolist()]
    )
    return model


@torch.no_grad()
def measure_wan_autoencoder(model, num_clips: int = 200, seed: int = 97) -> dict:
    """PSNR in dB by frame, and the share of ends that the oracle reads as they are, on held-out clips.

    `tiled_target` is the PSNR of the last frame where the source is followed by the target alone, without evolution.
    """
    drawn, frames = clip_pool(num_clips, seed)
    pixels = to_range(frames)
    decoded = torch.cat([model(part).sample for part in pixels.split(50)])
    mse = (decoded - pixels).square().mean(dim=(1, 3, 4)) / 4
    jumped = torch.cat([model(part).sample for part in cut(pixels).split(50)])
    jump_mse = (jumped[:, :, -1] - pixels[:, :, -1]).square().mean(dim=(1, 2, 3)) / 4
    pictures = ((decoded + 1) / 2).permute(0, 2, 3, 4, 1).double().numpy()
    right = [
        oracle.read(picture[index]) == oracle.expected_reading(scene)
        for clip, picture in zip(drawn, pictures, strict=True)
        for index, scene in ((0, clip.source), (-1, clip.target))
    ]
    return {
        "psnr_by_frame": [round(v, 2) for v in (-10 * mse.log10()).mean(dim=0).tolist()],
        "tiled_target": round((-10 * jump_mse.log10()).mean().item(), 2),
        "oracle_right": float(np.mean(right)),
        "num_clips": num_clips,
    }
