"""By kind of edit, with published figures of the same kinds; and how far the judge agrees with the oracle."""

from __future__ import annotations

from stages.report import words
from stages.report.charts import escape
from stages.report.data import ALL, ReportData
from stages.report.leaderboard import footnotes, published_cell, published_types
from stages.report.results import ordered_methods, primary_metric, star_method


def by_edit_type(data: ReportData) -> str:
    """A heat map: methods by kinds of edit, in the primary metric, with intervals in small print."""
    metric = primary_metric(data)
    if metric is None or len(data.edit_types) < 2:
        return ""
    maximum = words.METRICS[metric].maximum or 1.0
    star = star_method(data)
    totals = {
        edit_type: max(
            (row["num_expected"] for (_, t, m), row in data.summary.items() if (t, m) == (edit_type, metric)),
            default=0,
        )
        for edit_type in data.edit_types
    }
    head = "".join(f'<th class="column">{escape(t)}<br>n = {totals[t]}</th>' for t in data.edit_types)
    body = ""
    for name in ordered_methods(data):
        cells = ""
        for edit_type in data.edit_types:
            row = data.summary.get((name, edit_type, metric))
            if row is None:
                cells += '<td class="cell empty">–</td>'
                continue
            share = row["mean"] / maximum
            spread = words.interval(metric, row["low"], row["high"])
            cells += (
                f'<td class="cell{" strong" if share > 0.7 else ""}" style="--v:{share:.3f}" '
                f'title="{escape(spread)}, n = {row["num_items"]}">{words.value(metric, row["mean"])}'
                f"<small>{escape(spread)}</small></td>"
            )
        css_class = ' class="ours"' if name == star else ""
        body += f"<tr{css_class}><td>{escape(words.method(name).label)}</td>{cells}</tr>"
    errata: list[str] = []
    for (method, source, judge_name), figures in published_types(data, metric).items():
        cells = "".join(published_cell(figures.get(edit_type), errata, 2) for edit_type in data.edit_types)
        label = f"<td>{escape(method)}<small>{escape(source)}; judge: {escape(judge_name)}</small></td>"
        body += f'<tr class="published">{label}{cells}</tr>'
    return (
        f'<section id="{data.anchor("types")}"><h2>By kind of edit</h2><p class="lead">'
        f"{escape(words.METRICS[metric].label)}, for each kind on its own, with its {data.confidence:.0%} interval.</p>"
        f'<div class="scroll"><table class="heat"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{footnotes(errata)}</section>"
    )


QUESTIONS = {
    "judge_success": "Is the edit done?",
    "judge_over_editing": "Is the rest kept?",
    "judge_p_done": "Is the edit done? (probability)",
    "judge_p_kept": "Is the rest kept? (probability)",
    "judge_p_right": "Is it exactly right? (probability)",
    "judge_prompt_following": "Does it follow the prompt?",
    "judge_identity": "Is it the same object?",
}
OF_SETTINGS = {
    "judge_p_done": "Is the object in its new setting? (probability)",
    "judge_p_kept": "Is it the same object? (probability)",
}
KAPPAS = ((0.8, "almost perfect"), (0.6, "substantial"), (0.4, "moderate"), (0.2, "fair"), (0.0, "slight"))


def judge(data: ReportData) -> str:
    """How often the judge says what the oracle says, over all methods and for each."""
    rows = [row for row in data.agreement if row["method"] == ALL]
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{escape(_question(row['judge_metric'], data.items))}</td>"
        f'<td class="number"><b>{100 * row["agreement"]:.0f}%</b></td>'
        f'<td class="number">{_kappa(row["kappa"])}</td><td class="number">{row["num_items"]}</td>'
        f'<td class="number">{row["both_yes"]}</td><td class="number">{row["only_first"]}</td>'
        f'<td class="number">{row["only_second"]}</td><td class="number">{row["both_no"]}</td></tr>'
        for row in rows
    )
    thresholds = " or ".join(dict.fromkeys(f"{row['threshold']:g}" for row in rows))
    return (
        f'<section id="{data.anchor("judge")}"><h2>Can the judge be trusted?</h2><p class="lead">The judge is a '
        f"vision-language model and can err; the oracle computes the truth. A score of {thresholds} or more counts as "
        f"yes. {' '.join(_meaning(row, data.items) for row in rows)}</p>"
        '<div class="scroll"><table><thead><tr><th>Question</th><th class="number">They agree</th>'
        '<th class="number">Kappa</th><th class="number">n</th><th class="number">Both yes</th>'
        '<th class="number">Judge alone yes</th><th class="number">Oracle alone yes</th>'
        '<th class="number">Both no</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>{_by_method(data, [row['judge_metric'] for row in rows])}</section>"
    )


def _question(metric: str, items: str) -> str:
    return (QUESTIONS | OF_SETTINGS if items == "settings" else QUESTIONS).get(metric, metric)


def _kappa(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "\u2212")


def _meaning(row: dict, items: str) -> str:
    """One sentence on one question; kappa in the words of Landis and Koch (1977)."""
    question = _question(row["judge_metric"], items)
    text = f"To “{question}” they give the same answer for {100 * row['agreement']:.0f}% of the edits"
    if row["kappa"] is not None:
        word = next((word for least, word in KAPPAS if row["kappa"] > least), "no")
        text += f", {word} agreement beyond chance"
    lenient, strict = row["only_first"], row["only_second"]
    if lenient != strict:
        text += f"; where they don’t, the judge is more often too {'lenient' if lenient > strict else 'strict'}"
    return escape(text) + "."


def _by_method(data: ReportData, metrics: list[str]) -> str:
    """What each says of each method, side by side: the shares of yes of the oracle and of the judge, and agreement."""
    found = {(row["method"], row["judge_metric"]): row for row in data.agreement}
    head = "".join(
        f'<th class="number">{escape(_question(m, data.items))} Oracle</th><th class="number">Judge</th>'
        '<th class="number">They agree</th><th class="number">Kappa</th>'
        for m in metrics
    )
    body = ""
    for name in ordered_methods(data):
        cells = ""
        for metric in metrics:
            row = found.get((name, metric))
            if row is None:
                cells += '<td class="number">–</td>' * 4
                continue
            shares = [(row["both_yes"] + row[k]) / row["num_items"] for k in ("only_second", "only_first")]
            cells += "".join(f'<td class="number">{100 * v:.0f}%</td>' for v in (*shares, row["agreement"]))
            cells += f'<td class="number">{_kappa(row["kappa"])}</td>'
        body += f"<tr><td>{escape(words.method(name).label)}</td>{cells}</tr>"
    return (
        "<details><summary>Each method: how often the oracle says yes, how often the judge does</summary>"
        f'<div class="scroll"><table><thead><tr><th>Method</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        "</details>"
    )
