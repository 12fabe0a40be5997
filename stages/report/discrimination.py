"""What each metric knows of what the oracle knows: how often a right edit has a better score than a wrong one."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from stages.report import words
from stages.report.charts import escape, interval_mark
from stages.report.data import ReportData

Row = Mapping[str, Any]
POOLED, WITHIN_ITEMS = "pooled", "within_items"
SEES = {  # what a metric looks at; a judge that isn't here sees source, edit and instruction
    "judge_naturalness": "the edit alone",
    "judge_artifacts": "the edit alone",
    "psnr_unedited": "source and edit, in those places",
    "l1": "source and edit",
    "psnr": "source and edit",
    "ssim": "source and edit",
    "flicker_added": "source and edit",
    "temporal_flickering": "the edit alone",
    "motion_fidelity": "movement in source and edit",
    "motion_fidelity_official": "movement in source and edit",
    "dynamic_degree": "the edit alone",
    "aesthetic": "the edit alone",
    "clip_directional": "source, edit and both captions",
    "clip_score": "the edit and its caption",
    "dino": "source and edit",
    "dinov2": "source and edit",
    "dinov2_masked": "the object in source and edit",
    "tifa": "the edit, asked about its caption",
    "geometric_score": "the object in both, and the caption",
}


def discrimination(data: ReportData) -> str:
    """A panel for each answer of the oracle: a dot by metric, the best first; all numbers in a table below."""
    found: dict[tuple[str, str], dict[str, Row]] = collections.defaultdict(dict)
    for row in data.discrimination:
        found[row["oracle_metric"], row["metric"]][row["scope"]] = row
    if not found:
        return ""
    answers = list(dict.fromkeys(answer for answer, _ in found))
    metrics = list(dict.fromkeys(metric for _, metric in found))
    metrics.sort(key=lambda metric: -_primary(found.get((answers[0], metric), {})))
    panels = "".join(_panel(data, answer, {m: found.get((answer, m), {}) for m in metrics}) for answer in answers)
    first = escape(words.METRICS[answers[0]].label.lower())
    blue = ", the judge’s in blue" if any(metric.startswith("judge_") for metric in metrics) else ""
    return (
        f'<section id="{data.anchor("metrics")}"><h2>What does each metric know?</h2><p class="lead">Of two methods’ '
        "results for the same item, one right and one wrong by the oracle: how often does the metric give the right "
        "one the better score? 100 is always, 50 a coin; below 50 it prefers what is wrong. They stand in the order of "
        f'“{first}”{blue}.</p><div class="panels first-wide metrics" style="--rest:{len(answers) - 1}">{panels}</div>'
        f'<p class="note">The dot is that share, ties counting half, the bar its {data.confidence:.0%} confidence '
        "interval (a bootstrap over source images). The line beside it is the same for any two results, of whatever "
        f"items: the area under the ROC curve.</p>{_table(found, answers, metrics)}</section>"
    )


def _primary(rows: Mapping[str, Row]) -> float:
    """What metrics are ranked by; all pairs where no item has a right and a wrong edit."""
    row = rows.get(WITHIN_ITEMS) or rows.get(POOLED)
    return row["auc"] if row else -1.0


def _label(metric: str) -> tuple[str, str]:
    """A metric's name, and what it looks at."""
    known = words.METRICS.get(metric)
    sees = SEES.get(metric, "source, edit and instruction" if metric.startswith("judge_") else "")
    if known is not None and not known.higher_is_better:
        sees = f"{sees}; less is better" if sees else "less is better"
    return known.label.removesuffix(", dB") if known else metric, sees


def _panel(data: ReportData, answer: str, metrics: Mapping[str, Mapping[str, Row]]) -> str:
    rows = "".join(_dots(metric, scopes) for metric, scopes in metrics.items())
    scale = '<div class="scale"><span>0</span><span>50</span><span>100</span></div>'
    return f'<div class="panel"><h3>{escape(words.METRICS[answer].label)}</h3>{scale}{rows}</div>'


def _dots(metric: str, scopes: Mapping[str, Row]) -> str:
    label, sees = _label(metric)
    css_class = "ours" if metric.startswith("judge_") else "base"
    who = f'<div class="who"><b>{escape(label)}</b><small>{escape(sees)}</small></div>'
    row = scopes.get(WITHIN_ITEMS)
    if row is None:
        return f'<div class="dots {css_class}">{who}<span></span><span class="value">–</span></div>'
    pooled = scopes.get(POOLED)
    mark = interval_mark(row["auc"], row["low"], row["high"], 1.0, css_class, beside=pooled["auc"] if pooled else None)
    return (
        f'<div class="dots {css_class}" title="{escape(f"{label}: {_share(row)}")}">{who}{mark}'
        f'<span class="value">{100 * row["auc"]:.0f}</span></div>'
    )


def _share(row: Row | None) -> str:
    if row is None:
        return "–"
    if row["low"] is None:
        return f"{100 * row['auc']:.1f}"
    return f"{100 * row['auc']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _table(found: Mapping[tuple[str, str], Mapping[str, Row]], answers: list[str], metrics: list[str]) -> str:
    body = ""
    for answer in answers:
        for metric in metrics:
            scopes = found.get((answer, metric), {})
            if not (row := scopes.get(POOLED)):
                continue
            within = scopes.get(WITHIN_ITEMS)
            numbers = (
                _share(within), f"{within['num_pairs']:,}" if within else "–", _share(row), f"{row['num_right']:,}",
                f"{row['num_wrong']:,}", f"{row['num_unscored']:,}",
            )  # fmt: skip
            cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
            body += (
                f"<tr><td>{escape(words.METRICS[answer].label)}</td><td>{escape(_label(metric)[0])}</td>{cells}</tr>"
            )
    heads = ("Of the same item", "Pairs", "Of any two", "Right", "Wrong", "Without a score")
    head = "".join(f'<th class="number">{text}</th>' for text in heads)
    return (
        "<details><summary>All numbers</summary>"
        f'<div class="scroll"><table><thead><tr><th>Oracle</th><th>Metric</th>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div></details>"
    )
