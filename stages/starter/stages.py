"""The starter's stages with made-up data: training pictures, true pairs, videos' captions, held-out benchmarks.

Every item has its own generator, seeded by (split, seed, index): splits share no draws, whatever their seeds,
and a longer split begins with a shorter one's items.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field, field_validator

from cluster.artifacts import Artifact
from cluster.config import StageConfig
from cluster.dag import Context
from stages.starter import clip_edits, world
from stages.starter.clips import NUM_FRAMES, evolution_caption, render_clip, sample_clip
from stages.starter.vlm_questions import object_questions
from stages.train.backbones.clip_files import write_clip

Split = Literal[
    "scenes", "pairs", "benchmark", "validation", "video_captions", "video_benchmark", "video_validation",
    "customization_benchmark", "customization_validation",
]  # fmt: skip
SPLITS: tuple[Split, ...] = get_args(Split)

PAIRS_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("edit_type", pa.string()),
        ("instruction", pa.string()),
        ("evolution_caption", pa.string()),
        ("source_image", pa.binary()),
        ("target_image", pa.binary()),
    ]
)
BENCHMARK_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("source_id", pa.string()),
        ("image", pa.binary()),
        ("edit_type", pa.string()),
        ("instruction", pa.string()),
        ("reverse_instruction", pa.string()),
        ("src_caption", pa.string()),
        ("tgt_caption", pa.string()),
        ("metadata", pa.string()),
    ]
)


VIDEO_BENCHMARK_SCHEMA = pa.schema([*BENCHMARK_SCHEMA, ("clip", pa.binary())])


class ScenesConfig(StageConfig):
    """Training pictures, without any truth about them."""

    num_scenes: int = Field(2000, ge=1)
    seed: int = Field(0, ge=0)


class PairsConfig(StageConfig):
    """True pairs, for the supervised bound alone."""

    num_pairs: int = Field(2000, ge=1)
    seed: int = Field(0, ge=0)


class BenchmarkConfig(StageConfig):
    """Held-out pictures with the edits asked of them."""

    split: Literal["benchmark", "validation"] = "benchmark"
    num_items: int = Field(120, ge=1)
    seed: int = Field(0, ge=0)


class ValidationConfig(BenchmarkConfig):
    """A benchmark of its own pictures, by which settings may be chosen."""

    split: Literal["benchmark", "validation"] = "validation"
    num_items: int = Field(48, ge=1)


class VideoBenchmarkConfig(StageConfig):
    """Held-out clips, each of which should get the other style."""

    split: Literal["video_benchmark", "video_validation"] = "video_benchmark"
    num_items: int = Field(120, ge=1)
    num_frames: int = Field(5, ge=5, description="Of a clip, 1 + 4 k.")
    seed: int = Field(0, ge=0)

    @field_validator("num_frames")
    @classmethod
    def _is_a_length(cls, num_frames: int) -> int:
        if num_frames % 4 != 1:
            raise ValueError("a clip has 1 + 4 k frames: 5, 9, 13, ...")
        return num_frames


class VideoValidationConfig(VideoBenchmarkConfig):
    """A benchmark of its own clips, by which settings may be chosen."""

    split: Literal["video_benchmark", "video_validation"] = "video_validation"
    num_items: int = Field(24, ge=1)


class VideoCaptionsConfig(StageConfig):
    """Detailed captions of clips, without the clips."""

    num_captions: int = Field(256, ge=1)
    seed: int = Field(0, ge=0)


def item_generator(split: Split, seed: int, index: int) -> np.random.Generator:
    """The generator of one item; no two (split, seed, index) share their draws."""
    return np.random.default_rng([SPLITS.index(split), seed, index])


def sample_edits(split: Split, num: int, seed: int) -> list[world.Edit]:
    """Edits of scenes of their own; the edit types take turns, so their counts differ by one at most."""
    edits = []
    for index in range(num):
        generator = item_generator(split, seed, index)
        edit_type = world.EDIT_TYPES[index % len(world.EDIT_TYPES)]
        scene = world.sample_scene(generator, world.NUM_OBJECTS.get(edit_type))
        edits.append(world.sample_edit(scene, generator, (edit_type,)))
    return edits


def make_scenes(inputs: Mapping[str, Artifact], config: ScenesConfig, context: Context) -> None:
    """Writes `images/NNNNN.png`, 32x32 RGB, and nothing else: what can be seen is all that training gets."""
    done = set(context.out.sub("images").list(".png"))
    for index in range(config.num_scenes):
        context.check()
        name = f"{index:05d}.png"
        if name not in done:
            scene = world.sample_scene(item_generator("scenes", config.seed, index))
            context.out.write_bytes(f"images/{name}", png(world.render(scene)))
        context.progress(index + 1, config.num_scenes, "images")
    context.set_rows(config.num_scenes)


def make_pairs(inputs: Mapping[str, Artifact], config: PairsConfig, context: Context) -> None:
    """Writes `pairs.parquet`: source and target picture, the instruction between them, and its way."""
    rows = [
        {
            "pair_id": f"pair-{config.seed}-{index:05d}",
            "edit_type": edit.edit_type,
            "instruction": edit.instruction,
            "evolution_caption": evolution_caption(edit),
            "source_image": png(world.render(edit.source)),
            "target_image": png(world.render(edit.target)),
        }
        for index, edit in enumerate(sample_edits("pairs", config.num_pairs, config.seed))
    ]
    context.out.write_table("pairs.parquet", pa.Table.from_pylist(rows, PAIRS_SCHEMA))


def make_benchmark(inputs: Mapping[str, Artifact], config: BenchmarkConfig, context: Context) -> None:
    """Writes `benchmark.parquet`; `metadata` is the edit as JSON, from which the oracle scores, and `questions` about
    the edited picture.
    """
    rows = []
    for index, edit in enumerate(sample_edits(config.split, config.num_items, config.seed)):
        pixels = world.render(edit.source)
        rows.append(
            {
                "item_id": f"{config.split}-{config.seed}-{index:05d}",
                "source_id": hashlib.sha256(pixels.tobytes()).hexdigest()[:16],
                "image": png(pixels),
                "edit_type": edit.edit_type,
                "instruction": edit.instruction,
                "reverse_instruction": edit.reverse_instruction,
                "src_caption": edit.src_caption,
                "tgt_caption": edit.tgt_caption,
                "metadata": json.dumps(json.loads(edit.to_json()) | {"questions": edit_questions(edit)}),
            }
        )
    context.out.write_table("benchmark.parquet", pa.Table.from_pylist(rows, BENCHMARK_SCHEMA))


def edit_questions(edit: world.Edit) -> list[dict[str, str]]:
    """Yes or No about every object of the edited scene, and about one that the edit takes away or makes another."""
    shown, before = ([o.name for o in scene.objects] for scene in (edit.target, edit.source))
    return object_questions(shown, [name for name in before if name not in shown])


def sample_clip_edits(split: Split, num: int, seed: int, num_frames: int = NUM_FRAMES) -> list[clip_edits.ClipEdit]:
    """Edits of clips of their own, day and night in turn, the kinds of clips in turn within each."""
    kinds, edits = clip_edits.CLIP_KINDS, []
    for index in range(num):
        kind, style = kinds[index // len(world.STYLES) % len(kinds)], world.STYLES[index % len(world.STYLES)]
        edits.append(clip_edits.sample_clip_edit(item_generator(split, seed, index), kind, style, num_frames))
    return edits


def make_video_benchmark(inputs: Mapping[str, Artifact], config: VideoBenchmarkConfig, context: Context) -> None:
    """Writes `benchmark.parquet` with whole clips; `image` is a clip's first frame, `metadata` is for the oracle."""
    rows = []
    edits = sample_clip_edits(config.split, config.num_items, config.seed, config.num_frames)
    for index, edit in enumerate(edits):
        frames = np.round(render_clip(edit.clip, config.num_frames) * 255).astype(np.uint8)
        rows.append(
            {
                "item_id": f"{config.split}-{config.seed}-{index:05d}",
                "source_id": hashlib.sha256(frames.tobytes()).hexdigest()[:16],
                "clip": write_clip([Image.fromarray(frame) for frame in frames]),
                "image": png(frames[0]),
                "edit_type": "style",
                "instruction": edit.instruction,
                "reverse_instruction": edit.reverse_instruction,
                "src_caption": edit.clip.caption,
                "tgt_caption": edit.target.caption,
                "metadata": edit.to_json(),
            }
        )
    context.out.write_table("benchmark.parquet", pa.Table.from_pylist(rows, VIDEO_BENCHMARK_SCHEMA))


def make_video_captions(inputs: Mapping[str, Artifact], config: VideoCaptionsConfig, context: Context) -> None:
    """Writes `captions.parquet`: all that clips of one style would show, and that style, in words."""
    ids = [f"caption-{config.seed}-{index:05d}" for index in range(config.num_captions)]
    generators = (item_generator("video_captions", config.seed, index) for index in range(config.num_captions))
    captions = [sample_clip(generator, clip_edits.CLIP_KINDS).caption for generator in generators]
    context.out.write_table("captions.parquet", pa.table({"caption_id": ids, "caption": captions}))


def png(pixels: np.ndarray) -> bytes:
    """A picture, uint8 `[H, W, 3]`, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
