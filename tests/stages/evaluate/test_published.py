"""The file of published figures, and the published aggregates that our code gives from published raw data.

The raw data are not ours to ship. `git clone` TIGER-AI-Lab/VIEScore and set PAIRLESS_VIESCORE to the checkout to run
the tests that need them.
"""

import json
import math
import os
import pathlib

import pytest

from stages.evaluate.published import BENCHMARKS, read_published
from stages.evaluate.rescore import main

CHECKOUT = os.environ.get("PAIRLESS_VIESCORE")
needs_checkout = pytest.mark.skipif(not CHECKOUT, reason="PAIRLESS_VIESCORE names no checkout of TIGER-AI-Lab/VIEScore")


def figures(**wanted):
    return [f for f in read_published() if all(getattr(f, name) == value for name, value in wanted.items())]


def test_every_benchmark_has_figures_and_no_figure_stands_twice():
    keys = [(f.benchmark, f.source, f.task, f.method, f.name) for f in read_published()]
    assert len(keys) == len(set(keys)) and {key[0] for key in keys} == set(BENCHMARKS)


def test_macro_means_of_imgedit_are_flagged_where_they_do_not_follow():
    """A published overall is the mean of its row's nine types to 0.01, unless an erratum says otherwise.

    By hand, Video4Edit: 4.35 + 3.70 + 1.95 + 4.60 + 3.85 + 4.30 + 4.85 + 3.95 + 3.70 = 35.25, / 9 = 3.92, not 4.02.
    """
    checked, flagged = 0, 0
    for overall in figures(benchmark="imgedit-bench", name="imgedit_mean", task="all"):
        row = [f for f in figures(source=overall.source, method=overall.method) if f.task != "all"]
        if not row:  # UniPic 2.0 has an overall alone
            continue
        assert len(row) == 9
        mean = sum(f.value for f in row) / 9
        checked, flagged = checked + 1, flagged + bool(overall.erratum)
        assert (abs(mean - overall.value) > 0.0101) == bool(overall.erratum), (overall, mean)
        assert not overall.erratum or f"give {mean:.2f}," in overall.erratum
    assert (checked, flagged) == (18, 10)


def test_geometric_means_of_the_long_tail_table():
    """ByG's overalls are sqrt(SC * PQ) of the means to 0.01, but for two that are swapped in print and one more."""
    for overall in figures(benchmark="byg-long-tail-style", name="overall_geometric_mean_of_means"):
        sc, pq = (figures(task=overall.task, method=overall.method, name=f"{p}_mean")[0].value for p in ("sc", "pq"))
        follows = abs(math.sqrt(sc * pq) - overall.value) < 0.011
        assert follows == (not overall.erratum), (overall, math.sqrt(sc * pq))
        if overall.erratum:
            assert f"{math.sqrt(sc * pq):.2f}" in overall.erratum


def rescored(capsys, *arguments):
    code = main([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)["figures"]
    return code, {(f["task"].removeprefix("ImagenHub_"), f["method"], f["name"]): f["value"] for f in found}


@needs_checkout
def test_published_raw_answers_give_the_published_means(capsys):
    """Gemini's raw answers on eight editors: VIEScore's notebook prints these means (0 to 1, four decimals)."""
    answers = pathlib.Path(CHECKOUT) / "paper_implementation/_answers/results_gemini_0shot"
    _, ours = rescored(capsys, "--viescore", str(answers), "--failures", "official")
    published = figures(benchmark="viescore-gemini")
    assert len(published) == 24
    for f in published:
        assert ours[f.task.removeprefix("ImagenHub_"), f.method, f.name] == pytest.approx(f.value, abs=0.00051), f


@needs_checkout
def test_published_ratings_give_the_published_means_spread_and_kappa(capsys):
    """Three people's ratings of nine editors: ImagenHub prints these (two decimals), with Fleiss' kappa."""
    folder = pathlib.Path(CHECKOUT) / "paper_implementation/_human_annotations/ImagenHub_human_eval_results"
    code, ours = rescored(capsys, "--ratings", str(folder))
    assert code == 0
    published = figures(benchmark="imagenhub-ratings")
    assert len(published) == 79
    for f in published:
        assert ours[f.task, f.method, f.name] == pytest.approx(f.value, abs=0.00501), f
