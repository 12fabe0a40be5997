"""What each rater is shown, in which order, and which method stands where: all of it from the seed and the rater's
number, by hashes, so that it is the same after a restart, on every machine and with every library version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

from stages.evaluate.study.definition import Check, Item, Study

RIGHT, WRONG = "right", "wrong"  # stand for methods in a check
SIDES = ("A", "B")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One pair as a rater sees it. `shown` says whose edit stands at A and at B, `files` what is seen there."""

    key: str
    is_check: bool
    instruction: str
    shown: dict[str, str]
    files: dict[str, str]  # by "reference", "A", "B"


def draw(*names: str | int) -> int:
    """64 bits that depend on all the names and look like chance."""
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8], "big")


def plan(study: Study, rater: int) -> list[Trial]:
    """The trials of the rater of this number, counted from 0.

    The items lie in one drawn circle; each rater takes the next `num_per_rater` of it. So every item gets as many
    raters as any other, give or take one. Rounds of the circle come in twos: the second shows each item with sides
    exchanged; and in a round neighbours are shown either way round, so that for each rater either method stands about
    as often at A. The checks, too, are mirrored from rater to rater, and spread evenly among the items.
    """
    items = [_trial(study, place) for place in range(rater * study.num_per_rater, (rater + 1) * study.num_per_rater)]
    items.sort(key=lambda trial: draw(study.seed, "order", rater, trial.key))
    checks = sorted(study.checks, key=lambda check: draw(study.seed, "check order", rater, check.check_id))
    trials = list(items)
    for number in reversed(range(len(checks))):
        start = number * len(items) // len(checks)
        length = (number + 1) * len(items) // len(checks) - start
        place = start + 1 + draw(study.seed, "check place", rater, number) % length
        trials.insert(place, _check(study, checks[number], rater))
    return trials


def _trial(study: Study, place: int) -> Trial:
    circle = sorted(study.items, key=lambda item: draw(study.seed, "circle", item.item_id))
    turn, index = divmod(place, len(circle))
    item: Item = circle[index]
    exchanged = (draw(study.seed, "side", turn // 2, index // 2) ^ index ^ turn) & 1
    return _shown(item.item_id, False, item.instruction, item.reference, item.outputs, study.methods, bool(exchanged))


def _check(study: Study, check: Check, rater: int) -> Trial:
    number = study.checks.index(check)
    exchanged = (draw(study.seed, "check side", rater // 2, number // 2) ^ number ^ rater) & 1
    files = {RIGHT: check.right, WRONG: check.wrong}
    return _shown(check.check_id, True, check.instruction, check.reference, files, (RIGHT, WRONG), bool(exchanged))


def _shown(
    key: str,
    is_check: bool,
    instruction: str,
    reference: str,
    files: dict[str, str],
    names: tuple[str, str],
    exchanged: bool,
) -> Trial:
    shown = dict(zip(SIDES, names[::-1] if exchanged else names, strict=True))
    by_part = {"reference": reference} | {side: files[name] for side, name in shown.items()}
    return Trial(key, is_check, instruction, shown, by_part)
