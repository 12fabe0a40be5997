"""What the votes say: win rates, tests, agreement of raters; only from raters who pass the attention checks."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluate.statistics import holm
from stages.evaluate.study.definition import Question, Study, read_study
from stages.evaluate.study.order import RIGHT
from stages.evaluate.study.raters import read_raters
from stages.evaluate.study.vote_log import Vote, read_notes, read_votes
from stages.evaluate.votes import fleiss_kappa, sign_test, win_rate

RULE = "attention_checks"


@dataclasses.dataclass(frozen=True)
class RaterFigures:
    """One rater: whether their votes count, and how they voted. `share_at_a`: how often they took what stood at A."""

    name: str
    counts: bool
    num_votes: int
    num_checks_right: int
    num_checks: int
    win_rate: float | None
    share_at_a: float | None
    median_seconds: float | None


def analyse(folder: Path) -> dict[str, Any]:
    """All figures of a study, from its files alone; what there is no figure for is None.

    Raises:
        UserError: a file of the study can't be used.
    """
    study, study_id = read_study(folder)
    raters = read_raters(folder)
    votes, _, torn = read_votes(folder, study_id)
    by_rater: dict[str, list[Vote]] = {rater.name: [] for rater in raters}
    for vote in votes:
        by_rater.setdefault(vote.rater, []).append(vote)
    figures = [rater_figures(name, given, study) for name, given in by_rater.items()]
    counted = {rater.name for rater in figures if rater.counts}
    kept = [vote for vote in votes if vote.rater in counted and not vote.is_check]
    notes = read_notes(folder)
    if torn:
        notes.append("The last line of votes is torn; the server cuts it when it starts again, or is just writing it.")
    return _without_nan(
        {
            "title": study.title,
            "study": study_id,
            "methods": list(study.methods),
            "num_items": len(study.items),
            "num_items_expected": study.num_expected,
            "num_items_missing": study.num_missing,
            "num_items_identical": study.num_identical,
            "num_raters": len(figures),
            "num_raters_counted": len(counted),
            "num_votes": len(kept),
            "num_votes_excluded": sum(not vote.is_check for vote in votes) - len(kept),
            "num_votes_expected": len(raters) * study.num_per_rater * len(study.questions),
            "rule": {"name": RULE, "min_checks_right": study.min_checks_right, "text": rule_text(study)},
            "questions": [
                question_figures(question, [vote for vote in kept if vote.question == question.key], study)
                for question in study.questions
            ],
            "raters": [dataclasses.asdict(rater) for rater in figures],
            "notes": notes,
        }
    )


def rule_text(study: Study) -> str:
    if not study.checks:
        return "the study has no attention checks: every vote counts"
    return (
        f"a rater's votes count if {study.min_checks_right:.0%} or more of the attention checks that they answered, "
        "and at least one, are right"
    )


def rater_figures(name: str, votes: Sequence[Vote], study: Study) -> RaterFigures:
    checks = [vote for vote in votes if vote.is_check]
    own = [vote for vote in votes if not vote.is_check]
    right = sum(vote.chosen == RIGHT for vote in checks)
    decided = [vote for vote in own if vote.chosen is not None]
    return RaterFigures(
        name=name,
        counts=not study.checks or bool(checks) and right >= study.min_checks_right * len(checks) - 1e-9,
        num_votes=len(own),
        num_checks_right=right,
        num_checks=len(checks),
        win_rate=_share([vote.chosen == study.methods[0] for vote in decided]),
        share_at_a=_share([vote.choice == "A" for vote in decided]),
        median_seconds=float(np.median([vote.milliseconds for vote in own])) / 1000 if own else None,
    )


def question_figures(question: Question, votes: Sequence[Vote], study: Study) -> dict[str, Any]:
    """The figures of one question. A tie is no win and no loss: it is counted, and left out of rates and tests; for
    the raters' agreement it is an answer of its own.
    """
    wins = np.array([math.nan if vote.chosen is None else vote.chosen == study.methods[0] for vote in votes], float)
    raters = np.array([vote.rater for vote in votes], dtype=object).astype(str)
    items = np.array([vote.key for vote in votes], dtype=object).astype(str)
    type_of = {item.item_id: item.edit_type for item in study.items}
    types = np.array([type_of[vote.key] for vote in votes], dtype=object).astype(str)
    by_type = {name: win_rate(wins[types == name], raters[types == name]) for name in sorted(set(type_of.values()))}
    corrected = holm([rate.p_value for rate in by_type.values()])
    return {
        "question": question.key,
        "text": question.text,
        "win_rate": dataclasses.asdict(win_rate(wins, raters)),
        "num_ties": int(np.isnan(wins).sum()),
        "sign_test": dataclasses.asdict(sign_test(wins, items)),
        "fleiss": fleiss(votes),
        "share_at_a": _share([vote.choice == "A" for vote in votes if vote.chosen is not None]),
        "by_edit_type": {
            name: dataclasses.asdict(rate) | {"p_value_holm": p}
            for (name, rate), p in zip(by_type.items(), corrected, strict=True)
        },
    }


def fleiss(votes: Sequence[Vote]) -> dict[str, Any]:
    """Fleiss' kappa needs equal numbers of votes: on the items with that number, two or more, that most have."""
    by_item: dict[str, collections.Counter[str | None]] = {}
    for vote in votes:
        by_item.setdefault(vote.key, collections.Counter())[vote.chosen] += 1
    sizes = collections.Counter(counts.total() for counts in by_item.values() if counts.total() > 1)
    if not sizes:
        return {"kappa": None, "num_items": 0, "votes_per_item": None}
    size = max(sizes, key=lambda size: (sizes[size], size))
    answers = sorted({vote.chosen for vote in votes}, key=str)
    table = [[counts[a] for a in answers] for counts in by_item.values() if counts.total() == size]
    return {"kappa": fleiss_kappa(np.array(table)), "num_items": len(table), "votes_per_item": size}


def _share(answers: Sequence[bool]) -> float | None:
    return sum(answers) / len(answers) if answers else None


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def in_print(analysis: dict[str, Any]) -> str:
    """The figures as lines of text."""
    first, second = analysis["methods"]
    a = analysis
    lines = [
        f"{first} against {second}: {a['num_votes']} votes that count, {a['num_votes_excluded']} that don't, of "
        f"{a['num_votes_expected']} expected, by {a['num_raters_counted']} of {a['num_raters']} raters",
        f"items: {a['num_items']} of the benchmark's {a['num_items_expected']} ({a['num_items_missing']} without both "
        f"edits, {a['num_items_identical']} with equal ones)",
        f"rule {a['rule']['name']}: {a['rule']['text']}",
    ]
    for question in analysis["questions"]:
        lines += ["", question["text"], *_question_lines(question, first)]
    lines += ["", f"{'rater':16} {'votes':>6} {first + ' wins':>14} {'took A':>7} {'median':>8}  checks"]
    for rater in analysis["raters"]:
        seconds = "–" if rater["median_seconds"] is None else f"{rater['median_seconds']:.1f} s"
        why = (
            f"doesn't count: {a['rule']['name']}" if rater["num_checks"] else "doesn't count before a check is answered"
        )
        excluded = "" if rater["counts"] else f"  {why}"
        lines.append(
            f"{rater['name']:16} {rater['num_votes']:>6} {_percent(rater['win_rate']):>14} "
            f"{_percent(rater['share_at_a']):>7} {seconds:>8}  {rater['num_checks_right']} of {rater['num_checks']}"
            f"{excluded}"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in analysis["notes"])])


def _question_lines(question: dict[str, Any], first: str) -> list[str]:
    rate, sign, fleiss_ = question["win_rate"], question["sign_test"], question["fleiss"]
    ties = f", {question['num_ties']} ties left out" if question["num_ties"] else ""
    lines = [
        f"  {first} wins   {_rate(rate)}; {rate['num_wins']} of {rate['num_votes']} votes{ties}, "
        f"binomial test {_p(rate['p_value'])}",
        f"  majorities   {sign['num_wins']} of {sign['num_items']} items, sign test {_p(sign['p_value'])}; "
        f"{sign['num_tied']} items have no majority",
    ]
    if fleiss_["num_items"]:
        kappa = "–" if fleiss_["kappa"] is None else f"{fleiss_['kappa']:.3f}"
        lines.append(f"  Fleiss' kappa {kappa}, on {fleiss_['num_items']} items with {fleiss_['votes_per_item']} votes")
    lines.append(f"  at A stood what was taken in {_percent(question['share_at_a'])} of votes")
    for edit_type, of_type in question["by_edit_type"].items():
        lines.append(
            f"    {edit_type:20} {_rate(of_type)}; {of_type['num_wins']} of {of_type['num_votes']}, "
            f"{_p(of_type['p_value_holm'])} (Holm)"
        )
    return lines


def _rate(rate: dict[str, Any]) -> str:
    sem = "" if rate["sem"] is None else f" ± {100 * rate['sem']:.1f} (SEM)"
    return f"{_percent(rate['mean_over_raters'])}{sem}, mean over {rate['num_raters']} raters"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _p(value: float | None) -> str:
    return "p –" if value is None else f"p {value:.2g}"
