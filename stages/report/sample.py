"""One edit on its own: all of its scores, the judge's raw replies, and how far judge and oracle are apart."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.report import words
from stages.report.charts import escape

MAX_REPLY = 4000  # characters
TEXT_COLUMNS = {
    "judge_sc_text": "semantic consistency (SC)",
    "judge_pq_text": "perceptual quality (PQ)",
    "tifa_answers": "TIFA's answers",
}
QUESTIONS = (  # the judge's score and its maximum, and the oracle's answer to the same question
    ("judge_success", 10, "edit_success"),
    ("judge_over_editing", 10, "preservation"),
    ("judge_p_done", 1, "edit_success"),
    ("judge_p_kept", 1, "preservation"),
    ("judge_prompt_following", 10, "edit_success"),
    ("judge_identity", 10, "preservation"),
)
OF_CUSTOMIZATION = {"judge_p_done": "whole_scene_right"}  # it is asked for the very object in its new setting
ALIGNMENT = ("clip_directional", "tifa", "clip_score")  # what the judge is held against where there is no oracle


class Disagreement:
    """How far the judge is from the oracle, or where there is none from a metric, by the ranks of all edits."""

    def __init__(self, scores: Sequence[Mapping[str, Any]]):
        self.has_oracle = any(row.get("edit_success") is not None for row in scores)
        both = ([r for r in scores if _both(r, name)] for name in ALIGNMENT)
        self.metric, rows = next(((n, r) for n, r in zip(ALIGNMENT, both, strict=True) if len(r) > 1), ("", []))
        self._judged = sorted(_judged(row) for row in rows)
        self._measured = sorted(row[self.metric] for row in rows)

    def __call__(self, row: Mapping[str, Any]) -> tuple[float, bool] | None:
        """The gap (0 to 1), and whether they contradict each other; None where either is silent.

        Oracle: the largest |judge / maximum - oracle| of the questions; they contradict each other where one says
        yes and the other no, the judge from half of its scale on. Metric: the difference of the edit's two rank shares,
        from 0.5 on.
        """
        if self.has_oracle:
            other = OF_CUSTOMIZATION if row.get("edit_type") == "customization" else {}
            answers = [(row.get(name), maximum, row.get(other.get(name, truth))) for name, maximum, truth in QUESTIONS]
            pairs = [(j / maximum, o) for j, maximum, o in answers if j is not None and o is not None]
            if not pairs:
                return None
            return max(abs(j - o) for j, o in pairs), any((j >= 0.5) != (o > 0.5) for j, o in pairs)
        if not self.metric or not _both(row, self.metric):
            return None
        gap = abs(_rank(self._judged, _judged(row)) - _rank(self._measured, row[self.metric]))
        return gap, gap >= 0.5


def _both(row: Mapping[str, Any], metric: str) -> bool:
    return _judged(row) is not None and row.get(metric) is not None


def _judged(row: Mapping[str, Any]) -> float | None:
    return next((row[name] for name in words.JUDGED if row.get(name) is not None), None)


def _rank(values: Sequence[float], value: float) -> float:
    """The share of values below, equal ones by half."""
    return (bisect.bisect_left(values, value) + bisect.bisect_right(values, value)) / 2 / len(values)


def details(row: Mapping[str, Any]) -> str:
    """Scores and raw replies as HTML. What a model wrote is text and stays text."""
    scores = "".join(
        f"<div><dt>{escape(kind.label)}</dt><dd>{words.value(name, row[name])}</dd></div>"
        for name, kind in words.METRICS.items()
        if row.get(name) is not None
    )
    if row.get("unscored"):
        scores += f"<div><dt>Unscored</dt><dd>{escape(row['unscored'])}</dd></div>"
    given = row.get("replies") or [(title, row.get(name)) for name, title in TEXT_COLUMNS.items()]
    replies = "".join(
        f"<h4>{escape(title)}</h4><pre>{escape(shortened(text))}</pre>" for title, text in given if text is not None
    )
    heading = "<h3>What the judge wrote</h3>" if replies else ""
    return f'<dl class="scores">{scores}</dl>{heading}{replies}'


def shortened(text: str) -> str:
    cut = len(text) - MAX_REPLY
    return text if cut <= 0 else f"{text[:MAX_REPLY]}… ({cut} more characters in the table of scores)"


def finite(value: float | None) -> str:
    """A number for a `data-` attribute; empty where there is none."""
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"
