import math

import pytest

from stages.evaluate.study.analysis import RULE, analyse, in_print
from stages.evaluate.study.definition import read_study
from stages.evaluate.study.order import RIGHT, WRONG
from stages.evaluate.study.raters import add_raters
from stages.evaluate.study.vote_log import VoteLog
from tests.stages.evaluate.study.example_study import METHODS, made_up, vote, write_made_up

WON = {"anna": "1110", "ben": "1100", "cleo": "1111", "dave": "0000", "eve": "0000"}  # item by item
CHECKS = {"anna": "1111", "ben": "1111", "cleo": "111", "dave": "1101", "eve": ""}  # dave: 75 %


def study_with_votes(folder, won=WON, checks=CHECKS, **changes):
    write_made_up(folder, made_up(4, 4, **changes))
    add_raters(folder, list(won))
    study_id = read_study(folder)[1]
    log = VoteLog.open(folder, study_id)
    for rater, letters in won.items():
        for place, letter in enumerate(letters):
            choice = {"1": "A", "0": "B", "=": "tie"}[letter]
            log.add(vote(rater, place, choice, study_id, milliseconds=1000 * (place + 1)))
    for rater, letters in checks.items():
        for place, letter in enumerate(letters):
            shown = {"A": RIGHT, "B": WRONG}
            choice = {"1": "A", "0": "B", "=": "tie"}[letter]
            fields = {"key": f"check-{place}", "is_check": True, "chosen": shown.get(choice)} | shown
            log.add(vote(rater, 10 + place, choice, study_id, **fields))
    log.close()
    return analyse(folder)


def test_figures_of_a_small_table_worked_by_hand(tmp_path):
    analysis = study_with_votes(tmp_path / "study")
    (question,) = analysis["questions"]
    rate, sign, fleiss = question["win_rate"], question["sign_test"], question["fleiss"]
    # of anna, ben and cleo: shares 3/4, 2/4, 4/4; their mean 3/4, deviation 1/4
    assert rate["mean_over_raters"] == pytest.approx(0.75) and rate["sem"] == pytest.approx(0.25 / math.sqrt(3))
    assert (rate["num_wins"], rate["num_votes"], rate["num_raters"]) == (9, 12, 3)
    assert rate["p_value"] == pytest.approx(2 * (220 + 66 + 12 + 1) / 2**12)  # 9 or more of 12, both ways
    # won by 3, 3, 2 and 1 of 3
    assert (sign["num_wins"], sign["num_items"], sign["num_tied"]) == (3, 4, 0)
    assert sign["p_value"] == pytest.approx(2 * (4 + 1) / 2**4)
    # pairs that agree: 1, 1, 1/3, 1/3; by chance (9/12)^2 + (3/12)^2 = 5/8
    assert fleiss == {"kappa": pytest.approx((2 / 3 - 5 / 8) / (3 / 8)), "num_items": 4, "votes_per_item": 3}
    # items 0 and 2 are "add": 5 of 6; items 1 and 3 "style": 4 of 6
    types = question["by_edit_type"]
    assert {name: (t["num_wins"], t["num_votes"]) for name, t in types.items()} == {"add": (5, 6), "style": (4, 6)}
    assert types["add"]["p_value"] == pytest.approx(2 * 7 / 64)
    assert types["add"]["p_value_holm"] == pytest.approx(4 * 7 / 64)


def test_only_raters_who_pass_the_checks_count_and_the_rule_is_named(tmp_path):
    analysis = study_with_votes(tmp_path / "study")
    assert {rater["name"]: rater["counts"] for rater in analysis["raters"]} == {
        "anna": True, "ben": True, "cleo": True, "dave": False, "eve": False,
    }  # fmt: skip
    assert (analysis["num_votes"], analysis["num_votes_excluded"], analysis["num_votes_expected"]) == (12, 8, 20)
    assert analysis["rule"]["name"] == RULE and "80%" in analysis["rule"]["text"]
    dave = next(rater for rater in analysis["raters"] if rater["name"] == "dave")
    assert (dave["num_checks_right"], dave["num_checks"], dave["win_rate"]) == (3, 4, 0.0)
    assert dave["median_seconds"] == 2.5
    assert f"3 of 4  doesn't count: {RULE}" in in_print(analysis)


def test_a_study_without_checks_counts_every_vote(tmp_path):
    write_made_up(tmp_path / "plain", made_up(4))
    study_id = read_study(tmp_path / "plain")[1]
    log = VoteLog.open(tmp_path / "plain", study_id)
    log.add(vote("anna", 0, "B", study_id))
    log.close()
    analysis = analyse(tmp_path / "plain")
    assert analysis["num_votes"] == 1 and analysis["questions"][0]["win_rate"]["mean_over_raters"] == 0.0
    assert analysis["questions"][0]["fleiss"]["kappa"] is None


def test_ties_are_counted_and_neither_won_nor_lost_and_a_tie_on_a_check_is_wrong(tmp_path):
    won = {"anna": "1=0=", "ben": "1==0", "cleo": "1111"}
    analysis = study_with_votes(tmp_path / "study", won, {"anna": "1111", "ben": "1111", "cleo": "11=1"}, ties=True)
    (question,) = analysis["questions"]
    assert (question["num_ties"], question["win_rate"]["num_wins"], question["win_rate"]["num_votes"]) == (4, 2, 4)
    assert not analysis["raters"][2]["counts"]
    # two raters on four items: alike on the first two, the answers 1, 1, =, =, 0, =, =, 0
    chance = (2 / 8) ** 2 + (4 / 8) ** 2 + (2 / 8) ** 2
    assert question["fleiss"]["kappa"] == pytest.approx((0.5 - chance) / (1 - chance))
    assert "4 ties left out" in in_print(analysis)


def test_kappa_is_taken_where_items_have_equally_many_votes(tmp_path):
    analysis = study_with_votes(tmp_path / "study", {"anna": "1111", "ben": "110", "cleo": "11"}, CHECKS)
    fleiss = analysis["questions"][0]["fleiss"]
    assert (fleiss["num_items"], fleiss["votes_per_item"]) == (2, 3)
    assert analysis["questions"][0]["win_rate"]["num_votes"] == 9


def test_without_votes_there_is_no_figure_and_no_fault(tmp_path):
    analysis = study_with_votes(tmp_path / "study", {"anna": ""}, {})
    (question,) = analysis["questions"]
    assert question["win_rate"]["mean_over_raters"] is None and question["sign_test"]["p_value"] is None
    assert "–" in in_print(analysis) and METHODS[0] in in_print(analysis)
