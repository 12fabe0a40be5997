"""The starter's generator: a FLUX transformer with its text encoders, trained from noise on captioned scenes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from stages.starter import oracle, text_encoders, world

GUIDANCE_SCALE = 3.5  # FLUX.1-dev's default; the tiny model sees no other
TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": text_encoders.HIDDEN_SIZE,
    "pooled_projection_dim": text_encoders.HIDDEN_SIZE,
    "guidance_embeds": True,
    "axes_dims_rope": (8, 12, 12),
}


def pack(latents: torch.Tensor) -> torch.Tensor:
    """`[B, C, H, W]` to tokens `[B, H/2 * W/2, 4C]`, as FluxPipeline packs."""
    batch, channels, height, width = latents.shape
    latents = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return latents.reshape(batch, height // 2 * (width // 2), channels * 4)


def image_ids(height: int, width: int) -> torch.Tensor:
    """Positions `[H * W, 3]` of the packed latents, as FluxPipeline numbers them."""
    ids = torch.zeros(height, width, 3)
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)[None, :]
    return ids.reshape(-1, 3)


class Generator(torch.nn.Module):
    """Transformer and text encoders in one module: they are trained together."""

    def __init__(self) -> None:
        from diffusers import FluxTransformer2DModel

        super().__init__()
        self.t5_tokenizer = text_encoders.new_t5_tokenizer()
        self.clip_tokenizer = text_encoders.new_clip_tokenizer()
        self.t5, self.clip = text_encoders.new_text_encoders(self.t5_tokenizer, self.clip_tokenizer)
        self.transformer = FluxTransformer2DModel(**TRANSFORMER)

    def velocity(self, noisy: torch.Tensor, t: torch.Tensor, t5_ids: torch.Tensor, clip_ids: torch.Tensor):
        """The velocity `[B, 16, 64]` at noisy tokens of time `t` `[B]`."""
        prompt_embeds = self.t5(t5_ids).last_hidden_state
        side = world.IMAGE_SIZE // 8
        return self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=prompt_embeds,
            pooled_projections=self.clip(clip_ids).pooler_output,
            timestep=t,
            img_ids=image_ids(side, side),
            txt_ids=torch.zeros(t5_ids.shape[1], 3),
            guidance=torch.full_like(t, GUIDANCE_SCALE),
            return_dict=False,
        )[0]

    def masked_word_loss(self, t5_ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Words hidden from the T5 encoder must be guessed from the rest: it learns instructions like captions."""
        special = (t5_ids == self.t5_tokenizer.pad_token_id) | (t5_ids == self.t5_tokenizer.eos_token_id)
        hidden = (torch.rand(t5_ids.shape, generator=generator) < 0.25) & ~special
        mask_id = self.t5_tokenizer.convert_tokens_to_ids("<extra_id_0>")
        states = self.t5(t5_ids.masked_fill(hidden, mask_id)).last_hidden_state[hidden]
        logits = states @ self.t5.get_input_embeddings().weight.T * self.t5.config.d_model**-0.5
        return functional.cross_entropy(logits, t5_ids[hidden])


@torch.no_grad()
def scene_latents(autoencoder, num: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Packed, scaled latents `[num, 16, 64]` of random scenes, and their captions."""
    generator = np.random.default_rng(seed)
    scenes = [world.sample_scene(generator) for _ in range(num)]
    pictures = np.stack([world.render_float(s) for s in scenes])
    pixels = torch.from_numpy(pictures).float().permute(0, 3, 1, 2) * 2 - 1
    latents = torch.cat([autoencoder.encode(p).latent_dist.mean for p in pixels.split(250)])
    latents = (latents - autoencoder.config.shift_factor) * autoencoder.config.scaling_factor
    return pack(latents), [world.caption(s) for s in scenes]


def train_generator(
    autoencoder,
    checkpoint: Path,
    num_steps: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    pool_size: int = 24_000,
    log: Callable[[str], None] = print,
) -> Generator:
    """Flow matching on captioned scenes, AdamW, the rate decayed over the last 40 %; returns the EMA weights.

    Goes on from `checkpoint`. Every draw is a function of the step, so a run in two parts equals one in one part.
    """
    torch.manual_seed(0)
    model = Generator()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    average = copy.deepcopy(model).requires_grad_(False)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    latents, captions = scene_latents(autoencoder, pool_size, seed=20)
    t5_ids = text_encoders.tokenize(model.t5_tokenizer, captions)
    clip_ids = text_encoders.tokenize(model.clip_tokenizer, captions)
    texts = text_encoders.sample_texts(pool_size, np.random.default_rng(21))
    text_ids = text_encoders.tokenize(model.t5_tokenizer, texts)
    draw = torch.Generator()
    began = time.monotonic()
    losses: list[float] = []
    for step in range(start, num_steps):
        decay = min(1.0, (num_steps - step) / (0.4 * num_steps))
        optimizer.param_groups[0]["lr"] = learning_rate * decay * min(1.0, (step + 1) / 200)
        draw.manual_seed(step)
        rows = torch.randint(len(latents), (batch_size,), generator=draw)
        clean = latents[rows]
        t = torch.randn(batch_size, generator=draw).sigmoid()
        noise = torch.randn(clean.shape, generator=draw)
        noisy = (1 - t[:, None, None]) * clean + t[:, None, None] * noise
        velocity = model.velocity(noisy, t, t5_ids[rows], clip_ids[rows])
        loss = (velocity - (noise - clean)).square().mean()
        word_loss = model.masked_word_loss(text_ids[torch.randint(len(texts), (32,), generator=draw)], draw)
        optimizer.zero_grad()
        (loss + 0.05 * word_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            keep = min(0.999, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        losses.append(loss.item())
        if step % 200 == 199 or step + 1 == num_steps:
            rate = (step - start + 1) / (time.monotonic() - began)
            recent = np.mean(losses[-200:])
            log(f"generator step {step + 1}/{num_steps} loss {recent:.4f} words {word_loss.item():.3f}, {rate:.2f}/s")
        if step % 500 == 499 or step + 1 == num_steps:
            state = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    return average.eval()


def as_pipeline(model: Generator, autoencoder):
    """The diffusers FluxPipeline of all parts."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=autoencoder,
        text_encoder=model.clip,
        tokenizer=model.clip_tokenizer,
        text_encoder_2=model.t5,
        tokenizer_2=model.t5_tokenizer,
        transformer=model.transformer,
    )


@torch.no_grad()
def measure_generator(pipeline, num_scenes: int = 200, seed: int = 98, num_inference_steps: int = 12) -> dict:
    """The share of held-out captions of which the picture shows all that they say, by the oracle."""
    generator = np.random.default_rng(seed)
    scenes = [world.sample_scene(generator) for _ in range(num_scenes)]
    pipeline.set_progress_bar_config(disable=True)
    right: list[bool] = []
    for first in range(0, num_scenes, 50):
        batch = scenes[first : first + 50]
        pictures = pipeline(
            prompt=[world.caption(s) for s in batch],
            height=world.IMAGE_SIZE,
            width=world.IMAGE_SIZE,
            num_inference_steps=num_inference_steps,
            guidance_scale=GUIDANCE_SCALE,
            max_sequence_length=text_encoders.MAX_SEQUENCE_LENGTH,
            generator=torch.Generator().manual_seed(first),
            output_type="np",
        ).images
        right += [oracle.caption_is_right(s, p) for s, p in zip(batch, pictures, strict=True)]
    return {"all_said_right": float(np.mean(right)), "num_scenes": num_scenes}
