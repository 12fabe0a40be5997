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


def test_no_text_names_what_only_eyes_can_see():
    generator = np.random.default_rng(2)
    hidden = set(world.BYSTANDER_SHAPES) | set(world.BYSTANDER_COLORS)
    for scene in scenes(300):
        edit = world.sample_edit(scene, generator)
        texts = (edit.src_caption, edit.tgt_caption, edit.instruction, edit.reverse_instruction)
        assert not hidden & set(" ".join(texts).split())
        plain = dataclasses.replace(scene, bystander=None, light=(0.0, 0.0))
        assert world.caption(plain) == world.caption(scene)


def test_three_scenes_of_four_have_a_bystander_in_a_quadrant_of_its_own():
    drawn = scenes(2000)
    assert np.mean([scene.bystander is not None for scene in drawn]) == pytest.approx(0.75, abs=0.03)
    for scene in drawn:
        places = [o.place for o in scene.all_objects]
        assert len(set(places)) == len(places)


def test_the_light_is_zero_on_average_and_bounded():
    for scene in scenes(50):
        ramp = world.light_ramp(scene.light)
        assert abs(ramp.mean()) < 1e-12 and np.abs(ramp).max() <= world.MAX_LIGHT


@pytest.mark.parametrize("edit_type", world.EDIT_TYPES)
def test_an_edit_changes_what_it_says_and_nothing_else(edit_type):
    generator = np.random.default_rng(3)
    seen = 0
    for scene in scenes(120):
        if edit_type not in world.possible_edit_types(scene):
            continue
        edit = world.sample_edit(scene, generator, (edit_type,))
        seen += 1
        assert edit.target.bystander == scene.bystander and edit.target.light == scene.light
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
    with pytest.raises(ValueError, match="2 named objects admits none of add"):
        world.sample_edit(scene, np.random.default_rng(0), ("add",))
