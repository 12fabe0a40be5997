import math

import numpy as np
import pytest

from stages.evaluate.votes import (
    binomial_p_value,
    category_counts,
    fleiss_kappa,
    sign_test,
    spearman,
    spearman_between_raters,
    win_rate,
)


@pytest.mark.parametrize(("wins", "votes", "p_value"), [(179, 238, 3.0704e-15), (77, 94, 2.7046e-10)])
def test_p_values_of_the_published_study(wins, votes, p_value):
    """ByG, section 5.1.1: 238 votes at 75.3 % (179), and 77 of 94 majorities; both against an even chance.

    Two-sided at p = 1/2: twice the share of the 2^n sequences with that many wins or more, in whole numbers.
    """
    exact = 2 * sum(math.comb(votes, k) for k in range(wins, votes + 1)) / 2**votes
    assert exact == pytest.approx(p_value, rel=1e-4)
    assert binomial_p_value(wins, votes) == pytest.approx(exact, rel=1e-9)


def test_the_published_counts_as_votes():
    """The same counts by way of single votes: 8 raters, 238 votes; 94 items with a majority and 2 without."""
    votes = np.array([1.0] * 179 + [0.0] * 59)
    result = win_rate(votes, np.arange(238) % 8)
    assert (result.num_wins, result.num_votes, result.num_raters) == (179, 238, 8)
    assert round(100 * result.rate, 1) == 75.2 and result.p_value < 1e-14
    by_item = [(1, 1, 0)] * 77 + [(0, 0, 1)] * 17 + [(0, 1)] * 2
    items = [index for index, of_item in enumerate(by_item) for _ in of_item]
    majority = sign_test(np.concatenate([np.array(v, dtype=float) for v in by_item]), np.array(items))
    assert (majority.num_wins, majority.num_items, majority.num_tied) == (77, 94, 2)
    assert majority.p_value == pytest.approx(2.7046e-10, rel=1e-4)


def test_win_rate_by_hand():
    # rater a wins 3 of 4, b 1 of 2, c 1 of 1: shares 3/4, 1/2, 1; their mean 3/4, deviations 0, -1/4, 1/4,
    # sample variance (1/16 + 1/16) / 2 = 1/16, so the SEM is (1/4) / sqrt(3)
    votes = np.array([1, 1, 1, 0, 1, 0, 1, np.nan])
    result = win_rate(votes, np.array(list("aaaabbcc")))
    assert result.rate == pytest.approx(5 / 7)
    assert result.mean_over_raters == pytest.approx(3 / 4)
    assert result.sem == pytest.approx(0.25 / math.sqrt(3))
    # 5 of 7: 2 * (C(7,5) + C(7,6) + C(7,7)) / 128 = 58/128
    assert result.p_value == pytest.approx(58 / 128)


def test_one_rater_has_no_standard_error_and_no_votes_no_rate():
    assert math.isnan(win_rate(np.array([1.0, 0.0]), np.array(["a", "a"])).sem)
    nothing = win_rate(np.array([np.nan]), np.array(["a"]))
    assert math.isnan(nothing.rate) and nothing.num_votes == 0
    assert sign_test(np.array([1.0, 0.0]), np.array(["x", "x"])).num_tied == 1


def test_a_vote_is_won_lost_or_missing():
    with pytest.raises(ValueError, match="1 .won., 0 .lost. or NaN"):
        win_rate(np.array([0.5]), np.array(["a"]))


def test_fleiss_kappa_of_a_published_example():
    """The worked example of the encyclopaedia's article on Fleiss' kappa: 14 raters, 10 subjects, 5 categories.

    Mean agreement 0.378, by chance 0.213, kappa 0.210.
    """
    counts = np.array([
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ])  # fmt: skip
    assert round(fleiss_kappa(counts), 3) == 0.210


def test_fleiss_kappa_by_hand():
    # two raters, three items: yes yes, no no, yes no. Observed (1 + 1 + 0) / 3; both answers have half of the
    # ratings, so chance gives 1/2; (2/3 - 1/2) / (1/2) = 1/3
    ratings = np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert fleiss_kappa(category_counts(ratings)) == pytest.approx(1 / 3)
    with_a_gap = np.array([[1.0, 0.0, 1.0, np.nan], [1.0, 0.0, 0.0, 1.0]])
    assert fleiss_kappa(category_counts(with_a_gap)) == pytest.approx(1 / 3)


def test_fleiss_kappa_without_variety_or_raters():
    assert math.isnan(fleiss_kappa(category_counts(np.ones((3, 4)))))
    assert math.isnan(fleiss_kappa(category_counts(np.full((2, 1), np.nan))))
    with pytest.raises(ValueError, match="same number of ratings"):
        fleiss_kappa(np.array([[2, 0], [1, 0]]))


def test_values_equal_but_for_rounding_are_one_category_and_one_rank():
    first = np.array([[0.1 + 0.2, 1.0], [0.3, 1.0]])
    assert first[0, 0] != first[1, 0]
    assert category_counts(first).shape == (2, 2)
    values = np.array([0.1 + 0.2, 0.3, 0.1, 0.9])
    assert spearman(values, np.array([5.0, 5.0, 1.0, 9.0])) == pytest.approx(1.0)


def test_spearman_by_hand():
    # ranks 1 2 3 4 and 2 1 4 3: differences 1 1 1 1, rho = 1 - 6 * 4 / (4 * 15) = 0.6
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([20.0, 10, 40, 30])) == pytest.approx(0.6)
    assert math.isnan(spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])))
    # each of two raters is held against the other one
    between = spearman_between_raters(np.array([[1.0, 2, 3, 4], [20.0, 10, 40, 30]]))
    assert between == pytest.approx([0.6, 0.6])
