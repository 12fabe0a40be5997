"""Clips end exactly where they should, run one way, and leave alone what does not change."""

import collections
import dataclasses

import numpy as np
import pytest

from stages.starter import clips, oracle, world


def drawn(num: int, seed: int = 0, kinds=clips.CLIP_KINDS) -> list[clips.Clip]:
    generator = np.random.default_rng(seed)
    return [clips.sample_clip(generator, kinds) for _ in range(num)]


def test_a_seed_gives_the_same_clips_and_every_kind_comes():
    assert drawn(50) == drawn(50) != drawn(50, seed=1)
    counts = collections.Counter(clip.kind for clip in drawn(800))
    assert set(counts) == set(clips.CLIP_KINDS) and min(counts.values()) > 60


@pytest.mark.parametrize("kind", clips.CLIP_KINDS)
def test_the_ends_are_the_scenes_to_the_bit_and_the_oracle_reads_them(kind):
    for clip in drawn(25, kinds=(kind,)):
        frames = clips.render_clip(clip)
        assert frames.shape == (5, 32, 32, 3) and frames.min() >= 0 and frames.max() <= 1
        assert np.array_equal(frames[0], world.render_float(clip.source))
        assert np.array_equal(frames[-1], world.render_float(clip.target))
        assert oracle.read(frames[0]) == oracle.expected_reading(clip.source)
        assert oracle.read(frames[-1]) == oracle.expected_reading(clip.target)


@pytest.mark.parametrize("kind", world.EDIT_TYPES)
def test_every_frame_goes_from_the_source_towards_the_target_and_never_back(kind):
    for clip in drawn(15, seed=2, kinds=(kind,)):
        frames = clips.render_clip(clip, num_frames=9)
        from_source, to_target = (np.abs(frames - end).mean(axis=(1, 2, 3)) for end in (frames[0], frames[-1]))
        assert (np.diff(from_source) > 1e-5).all() and (np.diff(to_target) < -1e-5).all()
        steps = np.diff(frames, axis=0)
        runs_one_way = (steps >= -1e-12).all(axis=0) | (steps <= 1e-12).all(axis=0)
        # only where an outline travels may a pixel at the rim win on one side before it loses on the other
        assert runs_one_way.mean() > 0.97 if kind == "replace" else runs_one_way.all()


@pytest.mark.parametrize("kind", ["color", "replace", "remove", "add", "move"])
def test_nothing_changes_outside_of_the_quadrants_of_the_edited_object(kind):
    for clip in drawn(15, seed=3, kinds=(kind,)):
        changed = np.ptp(clips.render_clip(clip), axis=0).max(axis=-1) > 1e-12
        for changing in filter(None, clips.changed_object(clip.source, clip.target)):
            row, column = divmod(changing.place, 2)
            changed[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = False
        assert not changed.any()


def test_a_moving_object_travels_evenly_and_keeps_its_size():
    for clip in drawn(15, seed=4, kinds=("move",)):
        before, after = clips.changed_object(clip.source, clip.target)
        way = np.subtract(world.center(after.place), world.center(before.place))
        assert sorted(np.abs(way)) == [0, 16]
        background = world.render_float(dataclasses.replace(clip.source, objects=()))
        alone = [dataclasses.replace(clip.source, objects=(thing,)) for thing in (before, after)]
        frames = clips.render_clip(clips.Clip("move", *alone, ""))
        weights = np.abs(frames - background).sum(axis=-1)
        axis = np.arange(32) + 0.5
        middles = np.stack([(weights.sum(axis=1) * axis).sum(-1), (weights.sum(axis=2) * axis).sum(-1)], axis=-1)
        middles /= weights.sum(axis=(1, 2))[:, None]
        np.testing.assert_allclose(np.diff(middles, axis=0), np.broadcast_to(way / 4, (4, 2)), atol=0.02)
        np.testing.assert_allclose(weights.sum(axis=(1, 2)), weights[0].sum(), rtol=0.01)


def test_still_clips_stand_still():
    for clip in drawn(5, kinds=("still",)):
        frames = clips.render_clip(clip)
        assert all(np.array_equal(frames[0], frame) for frame in frames)
        assert clip.evolution_caption == clips.STILL_CAPTION


def test_captions_say_what_happens_and_instructions_are_not_among_them():
    expected = {
        "color": lambda b, a: f"the {b.name} turns {a.color}",
        "replace": lambda b, a: f"the {b.name} morphs into a {a.shape}",
        "remove": lambda b, a: f"the {b.name} fades out",
        "add": lambda b, a: f"a {a.name} fades in {world.PLACES[a.place]}",
        "move": lambda b, a: f"the {b.name} moves to the {world.PLACES[a.place]}",
    }
    commands = {"make", "replace", "remove", "add", "turn"}
    for clip in drawn(200, seed=5):
        ends = clips.changed_object(clip.source, clip.target)
        if clip.kind in expected:
            assert clip.evolution_caption == expected[clip.kind](*ends)
        elif clip.kind == "background":
            assert clip.evolution_caption.endswith(f"{clip.source.background} to {clip.target.background}")
        elif clip.kind == "style":
            assert clip.evolution_caption == {"night": "night falls", "day": "day breaks"}[clip.target.style]
        assert clip.caption.startswith(clip.content) and clip.content.endswith(clip.evolution_caption)
        assert clip.caption.endswith(" at night") == (clip.source.style == "night")
        assert (clip.first_caption == clip.last_caption) == (clip.kind == "still")
        assert not commands & set(clip.caption.split())


def test_what_is_no_clip_is_refused():
    clip = drawn(1)[0]
    for num_frames in (1, 4, 6):
        with pytest.raises(ValueError, match="4k \\+ 1"):
            clips.render_clip(clip, num_frames)
    one, other = (world.sample_scene(np.random.default_rng(seed), num_objects=2) for seed in (1, 2))
    with pytest.raises(ValueError, match="one object at most"):
        clips.render_between(one, other, 0.5)
