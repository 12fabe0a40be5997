import dataclasses

import numpy as np
import pytest

from stages.starter import world


def scenes(num: int, seed: int = 0) -> list[world.Scene]:
    generator = np.random.default_rng(seed)
    return [world.sample_scene(generator) for _ in range(num)]


def test_a_seed_gives_the_same_pictures():
    assert all(np.array_equal(world.render(a), world.render(b)) for a, b in zip(scenes(20), scenes(20), strict=True))


def test_scenes_and_edits_survive_json():
    generator = np.random.default_rng(1)
    for scene in scenes(50):
        assert world.Scene.from_json(scene.to_json()) == scene
        edit = world.sample_edit(scene, generator)
        assert world.Edit.from_json(edit.to_json()) == edit


def test_no_text_tells_what_only_eyes_can_see():
    generator = np.random.default_rng(2)
    for scene in scenes(300):
        objects = tuple(dataclasses.replace(o, **world.sample_look(generator)) for o in scene.objects)
        other = dataclasses.replace(scene, objects=objects, light=world.sample_light(generator))
        assert not np.array_equal(world.render(other), world.render(scene))
        edit, redrawn = (world.sample_edit(s, np.random.default_rng(4)) for s in (scene, other))
        for text in ("src_caption", "tgt_caption", "instruction", "reverse_instruction"):
            assert getattr(edit, text) == getattr(redrawn, text)


def test_objects_stand_in_quadrants_of_their_own():
    for scene in scenes(500):
        places = [o.place for o in scene.objects]
        assert len(set(places)) == len(places)
        for scene_object in scene.objects:
            row, column = divmod(scene_object.place, 2)
            mask = world.mask_of(scene_object).copy()
            mask[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 0
            assert not mask.any()


def test_half_of_the_patches_are_lit():
    for scene in scenes(50):
        light = world.light_map(scene.light)
        assert abs(light.mean()) < 1e-12 and np.allclose(np.abs(light), world.LIGHT)


@pytest.mark.parametrize("edit_type", world.EDIT_TYPES)
def test_an_edit_changes_what_it_says_and_nothing_else(edit_type):
    generator = np.random.default_rng(3)
    seen = 0
    for scene in scenes(120):
        if edit_type not in world.possible_edit_types(scene):
            continue
        edit = world.sample_edit(scene, generator, (edit_type,))
        seen += 1
        assert edit.target.light == scene.light
        assert edit.src_caption != edit.tgt_caption and edit.instruction != edit.reverse_instruction
        changed = np.abs(world.render_float(edit.source) - world.render_float(edit.target)).sum(-1) > 0
        assert changed.any()
        if edit.place is not None:
            row, column = divmod(edit.place, 2)
            changed[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = False
            assert not changed.any()
    assert seen > 20


def test_an_edit_that_a_scene_does_not_admit_is_refused():
    scene = world.sample_scene(np.random.default_rng(0), num_objects=2)
    with pytest.raises(ValueError, match="2 objects admits none of add"):
        world.sample_edit(scene, np.random.default_rng(0), ("add",))
