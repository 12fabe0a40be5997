"""Measures the starter's Wan pipelines on held-out clips, through diffusers' own pipelines, by the oracle."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import torch

from stages.starter import clips, oracle, wan_encoders, world

NUM_INFERENCE_STEPS = 12
MEASURE_SEED = 96  # no training draws from it


def load_pipeline(folder: pathlib.Path):
    """The shipped text-to-video or image-to-video pipeline in float32."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def make_clip(
    pipeline,
    text: str,
    first: np.ndarray | None = None,
    last: np.ndarray | None = None,
    seed: int = 0,
    num_inference_steps: int = NUM_INFERENCE_STEPS,
) -> np.ndarray:
    """A clip `[5, 32, 32, 3]` in [0, 1] from a text and the end frames (uint8 `[32, 32, 3]`) that the model takes."""
    from PIL import Image

    images = {
        name: Image.fromarray(picture)
        for name, picture in (("image", first), ("last_image", last))
        if picture is not None
    }
    # the image-to-video pipeline cleans texts with a library that it doesn't require, so it gets embeddings
    prompt_embeds = wan_encoders.embed_texts(pipeline.text_encoder, pipeline.tokenizer, [text])
    return pipeline(
        **images,
        prompt_embeds=prompt_embeds,
        height=world.IMAGE_SIZE,
        width=world.IMAGE_SIZE,
        num_frames=clips.NUM_FRAMES,
        num_inference_steps=num_inference_steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).frames[0]


def _reads_as(scene: world.Scene, picture: np.ndarray) -> bool:
    return oracle.read(picture) == oracle.expected_reading(scene)


def _shows(scene: world.Scene, picture: np.ndarray) -> bool:
    """Whether the picture is the scene: read the same, and no 4x4 block far off."""
    everywhere = np.ones(picture.shape[:2], dtype=bool)
    same = oracle.worst_block(picture, world.render_float(scene), everywhere) < oracle.MAX_BLOCK_ERROR
    return same and _reads_as(scene, picture)


def progress_of(picture: np.ndarray, source: np.ndarray, target: np.ndarray) -> float:
    """How far the picture has come on the straight way from source to target, by least squares, in [0, 1]."""
    way = (target - source).ravel()
    return float(np.clip((picture - source).ravel() @ way / max(way @ way, 1e-12), 0, 1))


def is_between(picture: np.ndarray, clip: clips.Clip, num_steps: int = 20) -> bool:
    """Whether every 4x4 block of the picture is close to that of one and the same moment of the true clip."""
    everywhere = np.ones(picture.shape[:2], dtype=bool)
    return any(
        oracle.worst_block(picture, clips.render_between(clip.source, clip.target, i / num_steps), everywhere)
        < oracle.MAX_BLOCK_ERROR
        for i in range(num_steps + 1)
    )


def _draw(num: int) -> list[tuple[clips.Clip, world.Edit | None]]:
    """Held-out clips, the kinds in turn, each with the edit that it shows where it shows one."""
    generator = np.random.default_rng(MEASURE_SEED)
    drawn: list[tuple[clips.Clip, world.Edit | None]] = []
    for i in range(num):
        kind = clips.CLIP_KINDS[i % len(clips.CLIP_KINDS)]
        if kind in world.EDIT_TYPES:
            scene = world.sample_scene(generator, world.NUM_OBJECTS.get(kind))
            edit = world.sample_edit(scene, generator, (kind,))
            drawn.append((clips.clip_of(edit), edit))
        else:
            drawn.append((clips.sample_clip(generator, (kind,)), None))
    return drawn


def _is_done(clip: clips.Clip, edit: world.Edit | None, picture: np.ndarray) -> bool:
    """Whether the picture is how the clip should end: the edit done and the rest kept, or the target scene."""
    return oracle.score(edit, picture).whole_scene_right if edit else _reads_as(clip.target, picture)


def _by_kind(right: Sequence[bool]) -> dict[str, float]:
    """The share that is right of each kind of clips, as `_draw` has them in turn."""
    num_kinds = len(clips.CLIP_KINDS)
    return {kind: float(np.mean(right[i::num_kinds])) for i, kind in enumerate(clips.CLIP_KINDS)}


def measure_first_last(pipeline, num_clips: int = 160) -> dict:
    """Ends kept, middle frames that lie on the true way (and how far they have come), with evolution captions."""
    first, last, done, between, onward = [], [], [], [], []
    for i, (clip, edit) in enumerate(_draw(num_clips)):
        frames = make_clip(pipeline, clip.evolution_caption, world.render(clip.source), world.render(clip.target), i)
        first.append(_shows(clip.source, frames[0]))
        last.append(_shows(clip.target, frames[-1]))
        done.append(_is_done(clip, edit, frames[-1]))
        if edit:
            between += [is_between(frame, clip) for frame in frames[1:-1]]
            ends = world.render_float(clip.source), world.render_float(clip.target)
            onward.append(bool((np.diff([progress_of(frame, *ends) for frame in frames]) > 0).all()))
    return {
        "first_frame_kept": float(np.mean(first)),
        "last_frame_kept": float(np.mean(last)),
        "last_frame_right": _by_kind(done),
        "middle_frames_on_the_way": float(np.mean(between)),
        "edits_that_go_on_in_every_frame": float(np.mean(onward)),
        "num_clips": num_clips,
    }


def measure_image_to_video(pipeline, num_clips: int = 160) -> dict:
    """First frames kept; last frames as the evolution caption says; and, for edits, as the raw instruction says.

    The last is what an image-to-video model can do before anything taught it to edit.
    """
    kept, done, obeyed, instructed, copied = [], [], [], [], []
    for i, (clip, edit) in enumerate(_draw(num_clips)):
        frames = make_clip(pipeline, clip.evolution_caption, world.render(clip.source), seed=i)
        kept.append(_shows(clip.source, frames[0]))
        done.append(_is_done(clip, edit, frames[-1]))
        if edit:
            obeyed.append(done[-1])
            last = make_clip(pipeline, edit.instruction, world.render(clip.source), seed=i)[-1]
            instructed.append(oracle.score(edit, last).whole_scene_right)
            copied.append(_shows(clip.source, last))
    return {
        "first_frame_kept": float(np.mean(kept)),
        "last_frame_right": _by_kind(done),
        "edit_done_and_rest_kept_by_evolution_caption": float(np.mean(obeyed)),
        "edit_done_and_rest_kept_by_raw_instruction": float(np.mean(instructed)),
        "source_copied_by_raw_instruction": float(np.mean(copied)),
        "num_clips": num_clips,
    }


def measure_text_to_video(pipeline, num_clips: int = 160) -> dict:
    """The share of captions of which the first frame, the last frame, and both show all that they say."""
    first, last = [], []
    for i, (clip, _) in enumerate(_draw(num_clips)):
        frames = make_clip(pipeline, clip.caption, seed=i)
        first.append(oracle.caption_is_right(clip.source, frames[0]))
        last.append(oracle.caption_is_right(clip.target, frames[-1]))
    return {
        "first_frame_as_said": float(np.mean(first)),
        "last_frame_as_said": float(np.mean(last)),
        "last_frame_right": _by_kind(last),
        "both_as_said": float(np.mean(np.logical_and(first, last))),
        "num_clips": num_clips,
    }


MEASURES = {"i2v": measure_image_to_video, "flf2v": measure_first_last, "t2v": measure_text_to_video}
