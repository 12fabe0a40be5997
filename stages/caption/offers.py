"""Which edit types and styles each image is offered: random, but spread evenly, and the same however the work is
scheduled.
"""

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.chat import request_seed

PRIORITY = {"remove": 1.5, "replace": 1.5}  # the paper over-samples these two slightly; the others have 1
PHOTOREALISTIC = ("photorealistic",)


def offer_types(
    metadata: Sequence[str | None],
    edit_types: Sequence[str],
    num_offered: int,
    to_photo_probability: float,
    seed: int,
    priorities: Mapping[str, float] = PRIORITY,
) -> list[tuple[tuple[str, ...], tuple[str, ...] | None]]:
    """The (edit types, target styles) for the images of one logical shard, in order.

    A type's weight is its priority, divided by one more than how often it was offered in this shard so far
    beyond the least offered one. An image whose metadata says `"photorealistic": false` is with
    `to_photo_probability` offered the style change to a photograph alone. Target styles are None where the
    prompt's own list holds.
    """
    generator = np.random.default_rng(seed)
    counts: collections.Counter[str] = collections.Counter(dict.fromkeys(edit_types, 0))
    offers: list[tuple[tuple[str, ...], tuple[str, ...] | None]] = []
    for text in metadata:
        drawn = generator.random()  # one draw for each image, so that one image's metadata doesn't move the others
        if "style" in edit_types and _is_drawing(text) and drawn < to_photo_probability:
            counts["style"] += 1
            offers.append((("style",), PHOTOREALISTIC))
            continue
        # relative to priority: a type of weight 1.5 is to be offered 1.5 times as often
        used = {name: counts[name] / priorities.get(name, 1.0) for name in edit_types}
        least = min(used.values())
        weights = np.array([priorities.get(name, 1.0) / (1.0 + used[name] - least) for name in edit_types])
        size = min(num_offered, len(edit_types))
        chosen = generator.choice(len(edit_types), size=size, replace=False, p=weights / weights.sum())
        names = tuple(edit_types[index] for index in chosen)
        counts.update(names)
        offers.append((names, None))
    return offers


def offer_evenly(
    num_images: int, edit_types: Sequence[str], num_offered: int, shares: Mapping[str, float], seed: int
) -> list[tuple[str, ...]]:
    """The edit types for each image of one logical shard, `num_offered` different ones in random order.

    Each image gets the types that are furthest behind their share of all that was offered before, drawn where several
    are equally far. `shares` of some types, 1 / num_offered at most; the others have equal parts of the rest.
    """
    generator = np.random.default_rng(seed)
    rest = (1 - sum(shares.values())) / max(1, len(edit_types) - len(shares))
    wanted = num_offered * np.array([shares.get(name, rest) for name in edit_types])
    counts = np.zeros(len(edit_types))
    offers = []
    for number in range(1, num_images + 1):
        behind = np.round(wanted * number - counts, 6)  # rounded: what is equal up to float error is drawn
        order = sorted(generator.permutation(len(edit_types)), key=lambda index: -behind[index])
        chosen = generator.permutation(order[:num_offered])
        counts[chosen] += 1
        offers.append(tuple(edit_types[index] for index in chosen))
    return offers


def offer_styles(num: int, styles: Sequence[str], num_styles: int, seed: int) -> list[tuple[str, ...]]:
    """The styles that `num` images of one logical shard may choose from, in order: the least offered ones first, of
    equals by lot, so that none is offered more than once oftener than another.
    """
    generator = np.random.default_rng(seed)
    counts = np.zeros(len(styles), dtype=np.int64)
    offers = []
    for _ in range(num):
        chosen = np.lexsort((generator.random(len(styles)), counts))[:num_styles]
        counts[chosen] += 1
        offers.append(tuple(styles[index] for index in sorted(chosen)))
    return offers


def shard_seed(seed: int, sample_ids: Sequence[str]) -> int:
    """The seed of a logical shard, from the configuration's seed and the shard's content."""
    return request_seed(seed, *sample_ids)


def _is_drawing(metadata: str | None) -> bool:
    try:
        values: Any = json.loads(metadata or "{}")
    except ValueError:
        return False
    return isinstance(values, Mapping) and values.get("photorealistic") is False
