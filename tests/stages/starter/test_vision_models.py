"""The shipped CLIP and DINOv2, as evaluation loads them, on held-out scenes; and the words of their texts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from stages.evaluate.perception.measures import EditToSee, Perception
from stages.evaluate.perception.settings import PerceptionSettings
from stages.starter import world
from stages.starter.text_encoders import new_clip_tokenizer, world_words
from stages.starter.vision_measure import drawn_again, measure_clip, measure_dinov2, pictures_of
from stages.starter.wan_encoders import EVOLUTION_WORDS

MODELS = Path(__file__).parents[3] / "stages" / "starter" / "models"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_clip_finds_captions_and_directions():
    figures = measure_clip(MODELS / "clip", num_groups=2, num_edits=60, num_clips=7)
    assert figures["caption_right"] > 0.95 and figures["caption_before_edits"] > 0.95
    assert figures["directional"] > 0.7 and figures["directional_other"] < 0.3
    assert figures["directional_first"] > 0.95 and figures["video_directional"] > 0.6


def test_dinov2_tells_a_scene_from_its_edit_and_from_others():
    figures = measure_dinov2(MODELS / "dinov2", num_scenes=120)
    assert figures["light_first"] > 0.85 and figures["look_first"] > 0.65
    assert figures["light"] > figures["look"] > figures["edit"] + 0.15 > figures["other_scene"] + 0.3
    assert figures["read_color"] > 0.9 and figures["read_shape"] > 0.5


def test_metrics_of_a_right_edit_and_of_others():
    """Through the settings of the profile, a right edit has the metrics that it should."""
    settings = PerceptionSettings(
        clip={"model": "stages/starter/models/clip"},
        dinov2={"model": "stages/starter/models/dinov2", "size": 32, "resize": "square"},
    )
    generator = np.random.default_rng(5)
    edits, others = [], []
    for _ in range(12):
        edit = world.sample_edit(world.sample_scene(generator), generator)
        source, target, other = pictures_of([edit.source, edit.target, world.sample_scene(generator)])
        edits.append(EditToSee([source], [target], edit.src_caption, edit.tgt_caption))
        others.append(EditToSee([source], [other], edit.src_caption, edit.tgt_caption))
    right, wrong = (Perception(settings).measure(given) for given in (edits, others))
    for name in ("clip_directional", "clip_score", "dinov2"):
        assert np.mean([row[name] for row in right]) > np.mean([row[name] for row in wrong]) + 0.2, name


@pytest.mark.parametrize("name, limit", [("clip", 400_000), ("dinov2", 400_000)])
def test_they_are_small_and_say_nothing_of_where_they_were_made(name, limit):
    with safe_open(MODELS / name / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]
    assert sum(int(np.prod(shape)) for shape in shapes) < limit
    assert sum(path.stat().st_size for path in (MODELS / name).iterdir()) < 1e6
    for path in (MODELS / name).glob("*.json"):
        assert "_name_or_path" not in json.loads(path.read_text())


def test_a_scene_drawn_again_has_the_same_caption():
    generator = np.random.default_rng(0)
    scene = world.sample_scene(generator, 2)
    again = drawn_again(scene, generator)
    assert world.caption(again) == world.caption(scene) and again.light != scene.light
    assert not np.array_equal(world.render(again), world.render(scene))


def test_every_word_is_a_token_and_tokens_are_the_same_in_every_process():
    words = [*world_words(), *EVOLUTION_WORDS.split()]
    tokenizer = new_clip_tokenizer(EVOLUTION_WORDS.split(), 32)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(tokenizer.tokenize("a zebra, 12 % & <ü>"))
    shipped = type(tokenizer).from_pretrained(MODELS / "clip")
    assert shipped.get_vocab() == tokenizer.get_vocab()
    text = "red circle top left on gray background then the red circle morphs into a square at night"
    assert shipped(text).input_ids == tokenizer(text).input_ids
