"""Which types of edits each picture is asked about."""

import collections
import json

import numpy as np

from stages.caption.offers import PHOTOREALISTIC, offer_evenly, offer_types
from tests.stages.caption.proposals.examples import TYPES


def test_types_are_asked_for_evenly_and_removals_as_often_as_is_wished():
    for shares, removals in (({}, 200), ({"remove": 0.25}, 300)):
        offers = offer_evenly(300, TYPES, 4, shares, seed=5)
        assert offers == offer_evenly(300, TYPES, 4, shares, seed=5) != offer_evenly(300, TYPES, 4, shares, seed=6)
        counts = collections.Counter(name for offer in offers for name in offer)
        others = (1200 - removals) / 5
        assert all(abs(counts[name] - (removals if name == "remove" else others)) <= 1 for name in TYPES)
        assert {len(set(offer)) for offer in offers} == {4} and len({offer[0] for offer in offers}) == 6
    pairs = collections.Counter(frozenset(pair) for o in offers for pair in ((a, b) for a in o for b in o if a < b))
    assert min(pairs.values()) > 60 and len(pairs) == 15  # no two types keep away from each other


def test_offers_are_even_and_follow_the_priorities():
    types = ("color", "replace", "background", "remove", "add", "style")
    offers = offer_types(["{}"] * 600, types, 3, 0.5, seed=1)
    assert offers == offer_types(["{}"] * 600, types, 3, 0.5, seed=1)
    assert offers != offer_types(["{}"] * 600, types, 3, 0.5, seed=2)
    assert all(len(set(names)) == 3 and target is None for names, target in offers)
    counts = collections.Counter(name for names, _ in offers for name in names)
    plain = [counts[name] for name in ("color", "background", "add", "style")]
    favoured = [counts[name] for name in ("remove", "replace")]
    assert max(plain) - min(plain) < 25 and max(favoured) - min(favoured) < 25
    assert 1.2 < np.mean(favoured) / np.mean(plain) < 1.7
    assert offer_types(["{}"], ("color",), 3, 0.5, seed=1) == [(("color",), None)]


def test_pictures_that_are_no_photographs_are_to_become_some():
    types, drawing = ("color", "style"), json.dumps({"photorealistic": False})
    offers = offer_types([drawing, "{}", "not json", None] * 100, types, 1, 0.5, seed=1)
    forced = [target == PHOTOREALISTIC for _, target in offers]
    assert not any(forced[1::4] + forced[2::4] + forced[3::4])
    assert all(names == ("style",) for names, target in offers if target)
    assert not any(target for _, target in offer_types([drawing] * 20, ("color",), 1, 1.0, seed=1))
    for probability in (0.0, 0.2, 0.5, 1.0):
        offers = offer_types([drawing] * 400, types, 1, probability, seed=2)
        share = np.mean([target is not None for _, target in offers])
        assert abs(share - probability) <= 3 * np.sqrt(probability * (1 - probability) / 400)
