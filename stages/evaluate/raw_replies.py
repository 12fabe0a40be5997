"""Whether a run's scores are what the raw replies beside them say: the judge's, and the answers to TIFA's questions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from stages.evaluate.figures import Problem
from stages.evaluate.judge_replies import columns_of, grouped
from stages.evaluate.judges.judge import Judge
from stages.evaluate.judges.viescore.prompt import Scores, overall, parse
from stages.evaluate.perception.scores import geometric_score
from stages.evaluate.perception.tifa import tifa_of_replies

SCORES = "scores.parquet"
JUDGED = {  # the columns that each raw reply gives
    "judge_sc_text": ("judge_success", "judge_over_editing"),
    "judge_pq_text": ("judge_naturalness", "judge_artifacts"),
}


def check_columns(task: str, scores: pa.Table, judge: Judge, replies: pa.Table) -> Iterable[Problem]:
    """Rows in which a judge's column is not what the table of its raw replies says."""
    found = {key: columns_of(judge, said) for key, said in grouped(replies).items()}
    names = [*judge.columns, *judge.text_columns.values()]
    for row in scores.select(["method", "item_id", *names]).to_pylist():
        said = found.get((row["method"], row["item_id"]), {})
        for name in names:
            if not same_value(said.get(name), row[name]):
                why = f" ({said['unscored']})" if said.get("unscored") else ""
                reason = f"has {row[name]}, the judge's raw replies say {said.get(name)}{why}."
                yield Problem(f"{task}/{SCORES}", f"{row['method']} {row['item_id']} {name}", reason)


def check_texts(task: str, scores: pa.Table) -> Iterable[Problem]:
    """Rows whose judge's scores are not what its raw replies say."""
    names = [name for text, columns in JUDGED.items() for name in (text, *columns)]
    for row in scores.select(["method", "item_id", "judge_overall", *names]).to_pylist():
        if row["judge_sc_text"] is None and row["judge_pq_text"] is None:
            continue
        read = {text: parse(row[text] or "") for text in JUDGED}
        said: dict[str, float | None] = {}
        for text, columns in JUDGED.items():
            scored = read[text]
            pair = (scored.first, scored.second) if isinstance(scored, Scores) else (None, None)
            said |= dict(zip(columns, pair, strict=True))
        both = list(read.values())
        said["judge_overall"] = overall(*both) if all(isinstance(s, Scores) for s in both) else None
        for name, value in said.items():
            if not same_value(value, row[name]):
                reason = f"has {row[name]}, the judge's raw reply says {value}."
                yield Problem(f"{task}/{SCORES}", f"{row['method']} {row['item_id']} {name}", reason)


def check_tifa(task: str, scores: pa.Table) -> Iterable[Problem]:
    """Rows whose TIFA or geometric score is not what the replies and the masked similarity say."""
    for row in scores.select(
        ["method", "item_id", "tifa", "tifa_answers", "dinov2_masked", "geometric_score"]
    ).to_pylist():
        if row["tifa_answers"] is None:
            continue
        said = {"tifa": tifa_of_replies(row["tifa_answers"]), "geometric_score": None}
        if said["tifa"] is not None and row["dinov2_masked"] is not None:
            said["geometric_score"] = geometric_score(said["tifa"], row["dinov2_masked"])
        for name, value in said.items():
            if not same_value(value, row[name]):
                reason = f"has {row[name]}, the model's raw replies give {value}."
                yield Problem(f"{task}/{SCORES}", f"{row['method']} {row['item_id']} {name}", reason)


def same_value(first: Any, second: Any) -> bool:
    numbers = (int, float)
    if isinstance(first, numbers) and isinstance(second, numbers):
        return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)
    return first == second
