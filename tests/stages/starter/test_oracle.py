import dataclasses

import numpy as np

from stages.starter import oracle, world


def edits(num: int, seed: int = 0, edit_types=world.EDIT_TYPES) -> list[world.Edit]:
    generator = np.random.default_rng(seed)
    num_objects = 1 if edit_types == ("add",) else None
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


def test_a_lost_bystander_is_not_preservation():
    for edit in edits(100, seed=2):
        if edit.target.bystander:
            lost = world.render(dataclasses.replace(edit.target, bystander=None))
            scored = oracle.score(edit, lost)
            assert scored.edit_success and not scored.preservation


def test_another_light_is_seen_where_nothing_may_change():
    (edit,) = edits(1, seed=3, edit_types=("style",))
    relit = dataclasses.replace(edit.target, light=(0.0, 0.0), style="day", background="gray")
    kept = np.ones((32, 32), dtype=bool)
    truth = world.render_float(dataclasses.replace(relit, light=(0.1, 0.0)))
    assert oracle.worst_block(world.render(relit), truth, kept) > 0.08


def test_a_free_size_is_allowed_where_an_object_is_new():
    for edit in edits(200, seed=4, edit_types=("add",)):
        other = [dataclasses.replace(o, size=13 - o.size) if o.place == edit.place else o for o in edit.target.objects]
        resized = dataclasses.replace(edit.target, objects=tuple(other))
        assert oracle.score(edit, world.render(resized)).whole_scene_right


def test_noise_shows_nothing():
    noise = np.random.default_rng(0).random((32, 32, 3))
    assert "unclear" in oracle.read(noise).objects


def test_a_caption_is_right_with_or_without_a_bystander_but_not_with_more_named_objects():
    generator = np.random.default_rng(6)
    for _ in range(50):
        scene = world.sample_scene(generator, num_objects=1)
        assert oracle.caption_is_right(scene, world.render(scene))
        assert oracle.caption_is_right(scene, world.render(dataclasses.replace(scene, bystander=None)))
        more = world.sample_object(generator, scene.free_places[0], scene.objects)
        crowded = dataclasses.replace(scene, objects=(*scene.objects, more))
        assert not oracle.caption_is_right(scene, world.render(crowded))
