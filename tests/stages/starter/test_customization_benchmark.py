import io
import json

import numpy as np
import pytest
from PIL import Image

from stages.starter import customization, world
from stages.starter.customization_benchmark import (
    CustomizationBenchmarkConfig,
    CustomizationValidationConfig,
    make_customization_benchmark,
)
from stages.starter.scoring import score_item
from tests.stages.ingest.context import make_context


def items(tmp_path, config) -> list[dict]:
    context = make_context(tmp_path, config.split)
    make_customization_benchmark({}, config, context)
    return context.out.read_table("benchmark.parquet").to_pylist()


def test_every_object_is_wanted_in_another_place_and_before_another_background(tmp_path):
    rows = items(tmp_path, CustomizationBenchmarkConfig(num_items=20, instruction_template="show it {setting}"))
    assert len({row["item_id"] for row in rows}) == 20 and {row["edit_type"] for row in rows} == {"customization"}
    for row in rows:
        wanted = json.loads(row["metadata"])
        setting = customization.parse_setting(wanted["setting"])
        assert row["src_caption"].startswith(wanted["object"])
        assert world.PLACES[setting.place] not in row["src_caption"] and setting.background not in row["src_caption"]
        assert row["instruction"] == f"show it {wanted['setting']}"
        assert row["tgt_caption"] == f"{wanted['object']} {wanted['setting']}"
        question = f"Does the image have a {wanted['object']}? Answer Yes or No."
        assert wanted["questions"] == [{"question": question, "answer": "Yes"}]


def test_the_items_are_scored_by_setting_and_object(tmp_path):
    for row in items(tmp_path, CustomizationValidationConfig(num_items=6)):
        wanted = json.loads(row["metadata"])
        color, shape = wanted["object"].split(" ")
        generator = np.random.default_rng(0)
        seen = world.SceneObject(shape, color, 0, **world.sample_look(generator))
        right = customization.put_into(seen, customization.parse_setting(wanted["setting"]), generator)
        assert score_item(row["metadata"], world.render(right)).whole_scene_right
        source = score_item(row["metadata"], np.asarray(Image.open(io.BytesIO(row["image"]))))
        assert (source.edit_success, source.preservation) == (False, True)


def test_a_template_without_the_setting_is_refused():
    with pytest.raises(ValueError, match="no {setting}"):
        CustomizationBenchmarkConfig(instruction_template="show it")
