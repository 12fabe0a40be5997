import collections

import pytest

from stages.evaluate.study.order import RIGHT, SIDES, plan
from tests.stages.evaluate.study.example_study import METHODS, made_up

PLAN = [  # of a study that was planned once
    ("item-002", "byg"), ("check-1", "wrong"), ("item-004", "sft"), ("item-003", "sft"), ("item-005", "byg"),
    ("check-0", "right"), ("item-001", "sft"), ("item-000", "byg"),
]  # fmt: skip


def plans(num_raters, **fields):
    study = made_up(**fields)
    return [plan(study, rater) for rater in range(num_raters)]


@pytest.mark.parametrize("num_items", [1, 2, 7, 24])
def test_every_rater_sees_every_item_and_check_once(num_items):
    num_checks = min(3, num_items)
    for trials in plans(5, num_items=num_items, num_checks=num_checks):
        assert len({trial.key for trial in trials}) == len(trials) == num_items + num_checks
        assert sum(trial.is_check for trial in trials) == num_checks


def test_sides_are_even_for_every_item_and_nearly_for_every_rater():
    shown = plans(8, num_items=25, num_checks=4)
    at_a = collections.Counter(
        trial.key for trials in shown for trial in trials if trial.shown["A"] in (METHODS[0], RIGHT)
    )
    assert set(at_a.values()) == {4} and len(at_a) == 29  # of eight raters four see it there
    for trials in shown:
        assert abs(sum(1 if trial.shown["A"] == METHODS[0] else -1 for trial in trials if not trial.is_check)) <= 3
        assert sum(trial.shown["A"] == RIGHT for trial in trials) == 2


def test_with_fewer_items_for_each_rater_all_items_get_as_many_raters():
    shown = plans(6, num_items=20, num_per_rater=7)
    counts = collections.Counter(trial.key for trials in shown for trial in trials)
    assert all(len({trial.key for trial in trials}) == 7 for trials in shown)
    assert set(counts.values()) <= {2, 3} and len(counts) == 20
    for trials in shown:
        assert abs(sum(1 if trial.shown["A"] == METHODS[0] else -1 for trial in trials)) <= 3
    first, second = (
        {trial.key: trial.shown["A"] for trials in shown for trial in trials} for shown in (shown[:3], shown[3:])
    )
    assert set(first.values()) == set(second.values()) == set(METHODS)


def test_order_and_sides_differ_between_raters_and_seeds_but_never_for_one():
    one, two = plans(2, num_items=24, num_checks=3)
    assert [trial.key for trial in one] != [trial.key for trial in two]
    assert one == plans(1, num_items=24, num_checks=3)[0]
    other = plans(1, num_items=24, num_checks=3, seed=6)[0]
    assert [(t.key, t.shown["A"]) for t in one] != [(t.key, t.shown["A"]) for t in other]


def test_the_plan_is_what_it_was():
    """A study goes on after an upgrade: what each rater is shown at each place must never move."""
    trials = plan(made_up(6, 2), 1)
    assert [(trial.key, trial.shown["A"]) for trial in trials] == PLAN


def test_checks_stand_apart_and_never_first():
    for trials in plans(10, num_items=24, num_checks=3):
        places = [place for place, trial in enumerate(trials) if trial.is_check]
        assert places[0] > 0
        blocks = [(place - number - 1) // 8 for number, place in enumerate(places)]  # one among every eight items
        assert blocks == [0, 1, 2]


def test_files_belong_to_what_is_shown():
    study = made_up(4, 1)
    items = {item.item_id: item for item in study.items}
    for trial in plan(study, 0):
        assert set(trial.shown) == set(SIDES)
        if trial.is_check:
            check = study.checks[0]
            expected = {RIGHT: check.right, "wrong": check.wrong}
            assert trial.files["reference"] == check.reference == check.right
        else:
            expected = items[trial.key].outputs
            assert trial.files["reference"] == items[trial.key].reference
        assert {name: trial.files[side] for side, name in trial.shown.items()} == expected
