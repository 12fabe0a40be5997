"""Measures the starter's CLIP and DINOv2 on held-out scenes, through the encoders that evaluation looks with."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from stages.evaluate.perception.encoders import ClipEncoder, DinoEncoder
from stages.evaluate.perception.scores import clip_directional, cosine, normalised
from stages.evaluate.perception.settings import ClipSettings, DinoSettings
from stages.starter import clip_edits, clips, world

MEASURE_SEED = 91  # no training draws from it
NUM_CAPTIONS = 64  # among which a picture's own should be the most similar


def load_clip(folder: pathlib.Path) -> ClipEncoder:
    return ClipEncoder(ClipSettings(model=str(folder)), "cpu", batch_size=64)


def load_dinov2(folder: pathlib.Path) -> DinoEncoder:
    settings = DinoSettings(model=str(folder), size=world.IMAGE_SIZE, resize="square")
    return DinoEncoder(settings, "cpu", batch_size=64)


def pictures_of(scenes: Sequence[world.Scene]) -> list[Image.Image]:
    return [Image.fromarray(world.render(scene)) for scene in scenes]


def measure_retrieval(clip: ClipEncoder, generator: np.random.Generator, num_groups: int) -> float:
    """The share of pictures whose own caption is the most similar of 64 different ones."""
    right: list[bool] = []
    for _ in range(num_groups):
        scenes: dict[str, world.Scene] = {}
        while len(scenes) < NUM_CAPTIONS:
            scene = world.sample_scene(generator)
            scenes[world.caption(scene)] = scene
        images = np.stack([normalised(e) for e in clip.encode_squares(pictures_of(list(scenes.values())))])
        texts = np.stack([normalised(e) for e in clip.encode_texts(list(scenes))])
        right += list((images @ texts.T).argmax(-1) == np.arange(NUM_CAPTIONS))
    return float(np.mean(right))


def measure_edits(clip: ClipEncoder, generator: np.random.Generator, num_edits: int) -> dict[str, float]:
    """Of true edits, all types in turn:

    - `caption_before_edits`: the share of sources that are nearer to their own caption than to the edited scene's;
    - `directional`, `directional_other`: the mean CLIP directional, by the edit's own captions and by those of another
      edit of the same scene; `directional_first`: the share where the former is the larger.
    """
    nearer, own, others = [], [], []
    for number in range(num_edits):
        edit_type = world.EDIT_TYPES[number % len(world.EDIT_TYPES)]
        scene = world.sample_scene(generator, world.NUM_OBJECTS.get(edit_type))
        edit = other = world.sample_edit(scene, generator, (edit_type,))
        while other.tgt_caption == edit.tgt_caption:
            other = world.sample_edit(scene, generator)
        source, target = clip.encode_squares(pictures_of([edit.source, edit.target]))
        before, after, elsewhere = clip.encode_texts([edit.src_caption, edit.tgt_caption, other.tgt_caption])
        nearer.append(cosine(source, before) > cosine(source, after))
        own.append(clip_directional(source, target, before, after))
        others.append(clip_directional(source, target, before, elsewhere))
    return {
        "caption_before_edits": float(np.mean(nearer)),
        "directional": float(np.mean(own)),
        "directional_other": float(np.mean(others)),
        "directional_first": float(np.mean(np.array(own) > np.array(others))),
    }


def measure_clip_edits(clip: ClipEncoder, generator: np.random.Generator, num_clips: int) -> float:
    """The mean CLIP directional of clips that truly got the other style, meaned over their frames."""
    scores = []
    for number in range(num_clips):
        kind = clip_edits.CLIP_KINDS[number % len(clip_edits.CLIP_KINDS)]
        edit = clip_edits.sample_clip_edit(generator, kind, world.STYLES[number % len(world.STYLES)])
        frames = [np.round(clips.render_clip(side) * 255).astype(np.uint8) for side in (edit.clip, edit.target)]
        sources, targets = (clip.encode_squares([Image.fromarray(f) for f in side]) for side in frames)
        texts = clip.encode_texts([edit.clip.caption, edit.target.caption])
        scores += [clip_directional(*pair, *texts) for pair in zip(sources, targets, strict=True)]
    return float(np.mean(scores))


def measure_clip(
    folder: pathlib.Path, num_groups: int = 8, num_edits: int = 600, num_clips: int = 56
) -> dict[str, float]:
    """All of the above for the model in a folder."""
    clip, generator = load_clip(folder), np.random.default_rng([MEASURE_SEED, 0])
    figures = {"caption_right": measure_retrieval(clip, generator, num_groups)}
    figures |= measure_edits(clip, generator, num_edits)
    return figures | {"video_directional": measure_clip_edits(clip, generator, num_clips)}


def drawn_again(scene: world.Scene, generator: np.random.Generator) -> world.Scene:
    """The scene in another light, its objects with another look: all of which no text says."""
    objects = (dataclasses.replace(o, **world.sample_look(generator)) for o in scene.objects)
    return dataclasses.replace(scene, light=world.sample_light(generator), objects=tuple(objects))


def read_by_lines(encoder: DinoEncoder, generator: np.random.Generator, num_scenes: int) -> dict[str, float]:
    """What a linear readout of the class token, fitted by ridge regression to three quarters of so many scenes of one
    object, gets right of the rest: `read_shape`, `read_color`, `read_place`.
    """
    scenes = [world.sample_scene(generator, 1) for _ in range(num_scenes)]
    tokens = encoder.encode(pictures_of(scenes)).astype(np.float64)
    fitted = slice(num_scenes * 3 // 4)
    rest = slice(fitted.stop, None)
    tokens = (tokens - tokens[fitted].mean(0)) / tokens[fitted].std(0)
    tokens = np.concatenate([tokens, np.ones((num_scenes, 1))], axis=1)
    kernel = tokens[fitted].T @ tokens[fitted] + 0.1 * np.eye(tokens.shape[1])
    figures = {}
    for name in ("shape", "color", "place"):
        _, classes = np.unique([getattr(scene.objects[0], name) for scene in scenes], return_inverse=True)
        weights = np.linalg.solve(kernel, tokens[fitted].T @ np.eye(classes.max() + 1)[classes[fitted]])
        figures[f"read_{name}"] = float(np.mean((tokens[rest] @ weights).argmax(-1) == classes[rest]))
    return figures


def measure_dinov2(folder: pathlib.Path, num_scenes: int = 600) -> dict[str, float]:
    """Of scenes and their edits, all types in turn:

    - `light_first`, `look_first`: the share of pictures that are nearer to the same scene under another light, or with
      another light and its objects' sizes, shades and offsets drawn anew, than to the edited scene under its own;
    - `look_first_TYPE`: the latter, of an edit type;
    - `light`, `look`, `edit`, `other_scene`: mean similarity with these, and with another scene;
    - `found`: the share of pictures whose nearest one is their own scene, drawn anew, among those of all scenes;

    and those of `read_by_lines`.
    """
    encoder, generator, edit_types = load_dinov2(folder), np.random.default_rng([MEASURE_SEED, 1]), world.EDIT_TYPES
    sides: list[list[world.Scene]] = [[], [], [], []]
    for number in range(num_scenes):
        edit_type = edit_types[number % len(edit_types)]
        scene = world.sample_scene(generator, world.NUM_OBJECTS.get(edit_type))
        again = drawn_again(scene, generator)
        lit = dataclasses.replace(scene, light=again.light)
        target = world.sample_edit(scene, generator, (edit_type,)).target
        for side, drawn in zip(sides, (scene, lit, again, target), strict=True):
            side.append(drawn)
    tokens = [np.stack([normalised(token) for token in encoder.encode(pictures_of(side))]) for side in sides]
    light, look, edit = ((tokens[0] * other).sum(-1) for other in tokens[1:])
    everywhere = tokens[0] @ tokens[2].T
    types = np.array([edit_types[number % len(edit_types)] for number in range(num_scenes)])
    return {
        "light_first": float(np.mean(light > edit)),
        "look_first": float(np.mean(look > edit)),
        **{f"look_first_{name}": float(np.mean((look > edit)[types == name])) for name in edit_types},
        "light": float(light.mean()),
        "look": float(look.mean()),
        "edit": float(edit.mean()),
        "other_scene": float(everywhere[~np.eye(num_scenes, dtype=bool)].mean()),
        "found": float(np.mean(everywhere.argmax(-1) == np.arange(num_scenes))),
        **read_by_lines(encoder, generator, 4 * num_scenes),
    }
