"""Customization in the scene world: settings as texts, and the score of a picture."""

import dataclasses
import itertools

import numpy as np
import pytest

from stages.starter import customization as custom
from stages.starter import world

SETTINGS = [
    custom.Setting(*named) for named in itertools.product(range(len(world.PLACES)), world.BACKGROUNDS, world.STYLES)
]


@pytest.fixture
def generator():
    return np.random.default_rng(4)


def draw_object(generator, place=0):
    return world.sample_object(generator, place)


def score(scene_object, setting, scene):
    return custom.score_customization(scene_object.name, setting.text, world.render(scene))


def test_a_setting_is_the_rest_of_the_caption(generator):
    for setting in SETTINGS:
        scene = custom.put_into(draw_object(generator), setting, generator)
        assert world.caption(scene) == f"{scene.objects[0].name} {setting.text}"
        assert custom.parse_setting(setting.text) == setting


@pytest.mark.parametrize(
    "text", ["", "top left on blue background", "red circle top left on gray background", "Top left"]
)
def test_other_texts_are_no_settings(text):
    with pytest.raises(ValueError, match="no setting"):
        custom.parse_setting(text)


def test_the_object_drawn_anew_in_its_setting_is_right(generator):
    for setting in SETTINGS:
        shown = draw_object(generator)
        assert score(shown, setting, custom.put_into(shown, setting, generator)).customized


def test_another_setting_is_wrong_and_the_object_the_same(generator):
    for setting, shown_in in itertools.islice(itertools.permutations(SETTINGS, 2), 0, None, 31):
        shown = draw_object(generator)
        verdict = score(shown, setting, custom.put_into(shown, shown_in, generator))
        assert (verdict.setting_right, verdict.same_object) == (False, True)


@pytest.mark.parametrize("field", ["shape", "color"])
def test_another_object_is_not_the_same_and_the_setting_right(field, generator):
    options = {"shape": world.SHAPES, "color": tuple(world.COLORS)}[field]
    for setting in SETTINGS[::3]:
        shown = draw_object(generator)
        other = next(option for option in options if option != getattr(shown, field))
        scene = custom.put_into(dataclasses.replace(shown, **{field: other}), setting, generator)
        verdict = score(shown, setting, scene)
        assert (verdict.setting_right, verdict.same_object) == (True, False)
        assert not verdict.customized


def test_beside_another_object_it_is_the_same_but_not_alone(generator):
    for setting in SETTINGS[::3]:
        shown = draw_object(generator)
        scene = custom.put_into(shown, setting, generator)
        other = world.sample_object(generator, scene.free_places[0], scene.objects)
        verdict = score(shown, setting, dataclasses.replace(scene, objects=(*scene.objects, other)))
        assert (verdict.setting_right, verdict.same_object) == (False, True)
