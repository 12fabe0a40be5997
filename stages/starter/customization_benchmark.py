"""Held-out scenes of one object that should be shown in another setting (NP-Edit's customization)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal

import pyarrow as pa
from pydantic import Field, field_validator

from cluster.artifacts import Artifact
from cluster.config import StageConfig
from cluster.dag import Context
from stages.starter import customization, world
from stages.starter.stages import BENCHMARK_SCHEMA, item_generator, png
from stages.starter.vlm_questions import object_questions


class CustomizationBenchmarkConfig(StageConfig):
    """Held-out scenes, each with a setting for its object."""

    split: Literal["customization_benchmark", "customization_validation"] = "customization_benchmark"
    num_items: int = Field(60, ge=1)
    seed: int = Field(0, ge=0)
    instruction_template: str = Field("{setting}", description="As `customize` has it, of {setting}.")

    @field_validator("instruction_template")
    @classmethod
    def _has_its_place(cls, value: str) -> str:
        if "{setting}" not in value:
            raise ValueError("it has no {setting}")
        return value


class CustomizationValidationConfig(CustomizationBenchmarkConfig):
    """The same with scenes of their own."""

    split: Literal["customization_benchmark", "customization_validation"] = "customization_validation"
    num_items: int = Field(24, ge=1)


def make_customization_benchmark(
    inputs: Mapping[str, Artifact], config: CustomizationBenchmarkConfig, context: Context
) -> None:
    """Writes `benchmark.parquet`; the setting differs from the source's in place and background.

    `metadata` has the object's name and the setting, from which the oracle scores, and the `questions` whether the
    object is in the picture.
    """
    rows = []
    for index in range(config.num_items):
        generator = item_generator(config.split, config.seed, index)
        scene = world.sample_scene(generator, 1)
        seen = scene.objects[0]
        setting = customization.sample_setting(generator)
        while setting.place == seen.place or setting.background == scene.background:
            setting = customization.sample_setting(generator)
        pixels = world.render(scene)
        metadata = {"object": seen.name, "setting": setting.text, "questions": object_questions([seen.name])}
        rows.append(
            {
                "item_id": f"{config.split}-{config.seed}-{index:05d}",
                "source_id": hashlib.sha256(pixels.tobytes()).hexdigest()[:16],
                "image": png(pixels),
                "edit_type": "customization",
                "instruction": config.instruction_template.replace("{setting}", setting.text),
                "reverse_instruction": "",
                "src_caption": world.caption(scene),
                "tgt_caption": f"{seen.name} {setting.text}",
                "metadata": json.dumps(metadata, sort_keys=True),
            }
        )
    context.out.write_table("benchmark.parquet", pa.Table.from_pylist(rows, BENCHMARK_SCHEMA))
