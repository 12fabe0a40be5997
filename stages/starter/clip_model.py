"""The starter's CLIP: the real class, tiny, taught from pictures and clips of the scene world and their captions.

Nothing but CLIP's own loss teaches it (Radford et al. 2021, symmetric InfoNCE with a learned temperature). A batch has
scenes beside their edited scenes, so that captions are wrong by one word, too; no caption stands in it twice, so that
every negative is one.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from stages.starter import clip_edits, clips, text_encoders, world
from stages.starter.progress import Progress, TrainingSettings
from stages.starter.wan_encoders import EVOLUTION_WORDS

PATCH_SIZE = 4
MAX_CAPTION_LENGTH = 32  # the longest caption of a clip has 25 tokens
MAX_LOGIT_SCALE = math.log(100)  # as CLIP clips it


class ClipModelSettings(TrainingSettings):
    """Sizes of CLIP's training: the defaults take about five minutes on one core."""

    num_steps: int = 700
    learning_rate: float = 2e-3
    num_edits: int = 64  # in a batch, each with the scenes before and after it
    num_clips: int = 24  # in a batch, each by day and by night
    clip_pool: int = 400
    noise: float = 0.03  # the largest standard deviation of what is added to a batch, of the range


def new_clip_model(tokenizer):
    """An untrained CLIPModel of about 0.3 M parameters."""
    from transformers import CLIPConfig, CLIPModel

    layers = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_CAPTION_LENGTH, "num_hidden_layers": 3}
    vision = {"image_size": world.IMAGE_SIZE, "patch_size": PATCH_SIZE, "num_hidden_layers": 4}
    return CLIPModel(CLIPConfig(text_config=layers | text | special, vision_config=layers | vision, projection_dim=64))


def new_processor():
    """Its CLIPProcessor: pictures keep their 32x32 pixels, words of captions are a token each."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    size = world.IMAGE_SIZE
    return CLIPProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
        tokenizer=text_encoders.new_clip_tokenizer(EVOLUTION_WORDS.split(), MAX_CAPTION_LENGTH),
    )


class ClipPool:
    """Clips by day and by night: `captions[n][style]` and `frames[n][style]`, uint8 `[F, 32, 32, 3]`.

    No caption is there twice.
    """

    def __init__(self, num_clips: int, seed: int) -> None:
        self.captions: list[list[str]] = []
        self.frames: list[list[np.ndarray]] = []
        generator, seen = np.random.default_rng([seed, 60]), set()
        while len(self.captions) < num_clips:
            clip = clips.sample_clip(generator, clip_edits.CLIP_KINDS)
            by_style = [clip_edits.in_style(clip, style) for style in world.STYLES]
            captions = [styled.caption for styled in by_style]
            if not seen.intersection(captions):
                seen.update(captions)
                self.captions.append(captions)
                self.frames.append([np.round(clips.render_clip(c) * 255).astype(np.uint8) for c in by_style])


def draw_batch(settings: ClipModelSettings, step: int, pool: ClipPool) -> tuple[np.ndarray, list[str]]:
    """Pictures `[B, 32, 32, 3]` and their captions, all of which differ: scenes before and after edits, and a frame of
    each of some clips in both styles."""
    generator = np.random.default_rng([settings.seed, 61, step])
    pictures, captions = [], []
    seen: set[str] = set()
    while len(captions) < 2 * settings.num_edits:
        edit = world.sample_edit(world.sample_scene(generator), generator)
        if seen.isdisjoint((edit.src_caption, edit.tgt_caption)):
            seen.update((edit.src_caption, edit.tgt_caption))
            captions += [edit.src_caption, edit.tgt_caption]
            pictures += [world.render(edit.source), world.render(edit.target)]
    for number in generator.choice(len(pool.captions), settings.num_clips, replace=False):
        frame = int(generator.integers(clips.NUM_FRAMES))
        captions += pool.captions[number]
        pictures += [frames[frame] for frames in pool.frames[number]]
    return np.stack(pictures), captions


def to_inputs(processor, pictures: np.ndarray, captions: Sequence[str]) -> dict[str, torch.Tensor]:
    """What the model takes; `pictures` are uint8 or float in [0, 1], `[B, 32, 32, 3]`."""
    texts = processor.tokenizer(
        list(captions), padding=True, truncation=True, max_length=MAX_CAPTION_LENGTH, return_tensors="pt"
    )
    pixels = pictures.astype(np.float32) / (255 if pictures.dtype == np.uint8 else 1)
    images = processor.image_processor
    pixels = (pixels - np.float32(images.image_mean)) / np.float32(images.image_std)
    return {**texts, "pixel_values": torch.from_numpy(pixels).permute(0, 3, 1, 2)}


def train_clip_model(
    checkpoint: pathlib.Path, settings: ClipModelSettings | None = None, log: Callable[[str], None] = print
):
    """Trains the model; returns (model with averaged weights, processor).

    Goes on from `checkpoint`. Every draw is a function of the step, so a run in two parts equals one in one part.
    """
    settings = settings or ClipModelSettings()
    torch.manual_seed(settings.seed)
    processor = new_processor()
    model = new_clip_model(processor.tokenizer)
    progress = Progress(checkpoint, model, settings, settings.num_steps)
    pool = ClipPool(settings.clip_pool, settings.seed) if not progress.finished else None
    while not progress.finished:
        pictures, captions = draw_batch(settings, progress.num_steps, pool)
        generator = np.random.default_rng([settings.seed, 62, progress.num_steps])
        noise = generator.normal(size=pictures.shape) * generator.uniform(0, settings.noise)
        output = model(**to_inputs(processor, pictures / 255 + noise, captions), return_loss=True)
        output.loss.backward()
        progress.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        if progress.num_steps % 50 == 0 or progress.finished:
            right = (output.logits_per_image.argmax(-1) == torch.arange(len(captions))).float().mean()
            log(
                f"clip step {progress.num_steps}/{settings.num_steps} loss {output.loss.item():.3f} "
                f"({right:.2f} right), temperature 1/{model.logit_scale.exp():.0f}, {progress.spent:.0f} s"
            )
        if progress.due:
            progress.save()
    progress.use_average()
    return model.eval().requires_grad_(False), processor
