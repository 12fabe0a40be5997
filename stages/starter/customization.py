"""Customization in the scene world: a scene's one object, drawn anew in a setting that a text names.

A setting is all of a caption but the object's name: "bottom left on teal background at night". The object is the
same by shape and colour; its offset, size and shade are free, as is the light.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stages.starter import oracle
from stages.starter.world import (
    BACKGROUNDS,
    PLACES,
    STYLES,
    Scene,
    SceneObject,
    sample_light,
    sample_look,
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where an object stands (`place` indexes PLACES), before what, and in which style."""

    place: int
    background: str
    style: str

    @property
    def text(self) -> str:
        """What follows the object's name in the caption of a scene in this setting."""
        at_night = " at night" if self.style == "night" else ""
        return f"{PLACES[self.place]} on {self.background} background{at_night}"


@dataclasses.dataclass(frozen=True)
class CustomizationScore:
    """`setting_right`: one thing, whatever it is, stands at the setting's place and nothing elsewhere, before its
    background and in its style. `same_object`: the object's shape and colour are in the picture, anywhere."""

    setting_right: bool
    same_object: bool

    @property
    def customized(self) -> bool:
        return self.setting_right and self.same_object


def parse_setting(text: str) -> Setting:
    """The setting that a text names. Raises ValueError for any other text."""
    for place in range(len(PLACES)):
        for background in BACKGROUNDS:
            for style in STYLES:
                if text == (setting := Setting(place, background, style)).text:
                    return setting
    raise ValueError(f"no setting of the scene world: {text!r}; one is {Setting(0, 'gray', 'night').text!r}")


def sample_setting(generator: np.random.Generator) -> Setting:
    """Any setting, by night as often as scenes are."""
    return Setting(
        place=int(generator.integers(len(PLACES))),
        background=list(BACKGROUNDS)[int(generator.integers(len(BACKGROUNDS)))],
        style="night" if generator.random() < 0.25 else "day",
    )


def put_into(scene_object: SceneObject, setting: Setting, generator: np.random.Generator) -> Scene:
    """A scene that shows the object in the setting, with another look and light."""
    seen = dataclasses.replace(scene_object, place=setting.place, **sample_look(generator))
    return Scene(setting.background, (seen,), sample_light(generator), setting.style)


def score_customization(object: str, setting: str, image: np.ndarray) -> CustomizationScore:
    """Scores a picture (uint8 or float in [0, 1], `[32, 32, 3]`) that should show the object in the setting.

    `object` is an object's name, as "red circle". Raises ValueError if the setting is none of the scene world's.
    """
    wanted, seen = parse_setting(setting), oracle.read(image)
    color, shape = object.split(" ", 1)
    taken = [place for place, found in enumerate(seen.objects) if found is not None]
    in_setting = (seen.background, seen.style) == (wanted.background, wanted.style)
    return CustomizationScore(
        setting_right=taken == [wanted.place] and in_setting, same_object=(shape, color) in seen.objects
    )
