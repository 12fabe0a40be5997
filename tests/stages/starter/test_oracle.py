import dataclasses

import numpy as np

from stages.starter import oracle, world


def edits(num: int, seed: int = 0, edit_types=world.EDIT_TYPES) -> list[world.Edit]:
    generator = np.random.default_rng(seed)
    num_objects = {("add",): 1, ("remove",): 2}.get(edit_types)
    return [world.sample_edit(world.sample_scene(generator, num_objects), generator, edit_types) for _ in range(num)]


def test_it_reads_every_picture_as_its_scene_also_through_noise():
    generator = np.random.default_rng(5)
    for edit in edits(300):
        picture = world.render(edit.source)
        assert oracle.read(picture) == oracle.expected_reading(edit.source)
        noisy = np.clip(picture / 255 + generator.normal(0, 0.05, picture.shape), 0, 1)
        assert oracle.read(noisy) == oracle.expected_reading(edit.source)


def test_the_true_edit_is_right_and_the_source_is_not():
    for edit in edits(300, seed=1):
        assert oracle.score(edit, world.render(edit.target)).whole_scene_right
        copied = oracle.score(edit, world.render(edit.source))
        assert not copied.edit_success
        if edit.edit_type not in ("style",):
            assert copied.preservation


def test_two_patches_of_light_that_change_places_are_not_preservation():
    for edit in edits(100, seed=2):
        light = list(edit.target.light)
        lit, shade = light.index(1), light.index(-1)
        light[lit], light[shade] = -1, 1
        scored = oracle.score(edit, world.render(dataclasses.replace(edit.target, light=tuple(light))))
        assert scored.edit_success and not scored.preservation


def test_an_object_two_pixels_aside_is_mostly_seen_where_nothing_may_change():
    preserved = []
    for edit in edits(200, seed=3, edit_types=("remove",)):
        (left,) = edit.target.objects
        if edit.target.style == "day" and left.offset[0]:
            moved = dataclasses.replace(left, offset=(-left.offset[0], left.offset[1]))
            scored = oracle.score(edit, world.render(dataclasses.replace(edit.target, objects=(moved,))))
            assert scored.edit_success
            preserved.append(scored.preservation)
    assert np.mean(preserved) < 0.15  # the rest are dim objects on dim ground


def test_any_look_is_right_where_an_object_is_new():
    generator = np.random.default_rng(7)
    for edit in edits(200, seed=4, edit_types=("add",)):
        other = [
            dataclasses.replace(o, **world.sample_look(generator)) if o.place == edit.place else o
            for o in edit.target.objects
        ]
        resized = dataclasses.replace(edit.target, objects=tuple(other))
        assert oracle.score(edit, world.render(resized)).whole_scene_right


def test_noise_shows_nothing():
    noise = np.random.default_rng(0).random((32, 32, 3))
    assert "unclear" in oracle.read(noise).objects


def test_a_caption_is_right_under_any_light_but_not_with_more_objects():
    generator = np.random.default_rng(6)
    for _ in range(50):
        scene = world.sample_scene(generator, num_objects=1)
        assert oracle.caption_is_right(scene, world.render(scene))
        relit = dataclasses.replace(scene, light=world.sample_light(generator))
        assert oracle.caption_is_right(scene, world.render(relit))
        more = world.sample_object(generator, scene.free_places[0], scene.objects)
        crowded = dataclasses.replace(scene, objects=(*scene.objects, more))
        assert not oracle.caption_is_right(scene, world.render(crowded))
