"""The figures in words, dots and tables: the headline, methods side by side, kinds of edit, judge against
oracle.
"""

from __future__ import annotations

from typing import Any

from stages.report import words
from stages.report.charts import escape, interval_mark
from stages.report.data import ALL, ReportData

PANEL_METRICS = ("whole_scene_right", "edit_success", "preservation", "judge_overall")


def primary_metric(data: ReportData) -> str | None:
    """What methods are ranked by: the oracle's whole scene right, else the judge's overall."""
    measured = {metric for _, edit_type, metric in data.summary if edit_type == ALL}
    return next((metric for metric in ("whole_scene_right", "judge_overall") if metric in measured), None)


def _mean(data: ReportData, method: str, metric: str | None) -> float | None:
    return data.summary.get((method, ALL, metric or ""), {}).get("mean")


def ordered_methods(data: ReportData, *, by_value: bool = True) -> list[str]:
    """Methods by their primary value, best first; or (for columns) by role: ours, bound, base, in a fixed
    order.
    """
    metric = primary_metric(data)
    known = list(words.METHODS)

    def by_role(name: str) -> tuple[int, str]:
        return (known.index(name) if name in known else len(known), name)

    methods = sorted(data.methods, key=by_role)
    if by_value:
        methods.sort(key=lambda name: -(_mean(data, name, metric) or 0.0))
    return methods


def star_method(data: ReportData) -> str | None:
    """The method that the page is about: the best that was trained here without pairs, or else from few, or at all."""
    methods = ordered_methods(data)
    ours = [name for role in ("ours", "few") for name in methods if words.method(name).role == role]
    return next(iter(ours or ordered_methods(data)), None)


def _best(data: ReportData, role: str, star: str) -> str | None:
    return next((n for n in ordered_methods(data) if n != star and words.method(n).role == role), None)


def headline(data: ReportData) -> str:
    """The result in one sentence (HTML)."""
    star, metric = star_method(data), primary_metric(data)
    value = _mean(data, star, metric) if star else None
    if star is None or metric is None or value is None:
        return "This run has no scores yet."
    label, number = escape(words.method(star).label), f"<em>{words.value(metric, value)}</em>"
    who = "An editor that never saw an edited example" if words.method(star).role == "ours" else label
    if metric == "whole_scene_right":
        return f"{who} gets {number} of unseen {data.items} exactly right."
    return f"{who} scores {number} of 10 with the judge."


def lead(data: ReportData) -> str:
    """Two or three sentences below the headline: what it is held against, and what the measure means
    (HTML).
    """
    star, metric = star_method(data), primary_metric(data)
    if star is None or metric is None:
        return (
            f"It shows what ran and what was made so far{f', on {escape(data.benchmark)}' if data.benchmark else ''}."
        )
    sentences = []
    if words.method(star).role == "ours":
        sentences.append(f"{escape(words.method(star).label)} learned from {words.LEARNED_FROM[data.items]}.")
    elif words.method(star).role == "few":
        sentences.append(
            f"{escape(words.method(star).label)} learned from true pairs and a video model that knows how "
            "things change."
        )
    others = [name for name in ordered_methods(data) if name != star and words.method(name).role in ("ours", "few")]
    if others:
        first, *rest = [
            (escape(words.method(name).label), words.value(metric, _mean(data, name, metric))) for name in others
        ]
        each = [" gets ".join(first), *map(" ".join, rest)]
        sentences.append(f"Of the others that were trained here, {' and '.join(each)}.")
    if baseline := _best(data, "base", star):
        difference = _difference(data, star, baseline, metric)
        given = words.method(baseline).description
        text = (
            f"{escape(words.method(baseline).label)}{f' ({escape(given)})' if given else ''}, the best of the methods "
            "without such training, gets "
            f"{words.value(metric, _mean(data, baseline, metric))}"
        )
        if difference and difference["low"] is not None and difference["low"] <= 0 <= difference["high"]:
            text += "; on so few items the two can’t be told apart"
        sentences.append(text + ".")
    if bound := _best(data, "bound", star):
        sentences.append(
            f"Trained on the true pairs instead, the same model reaches "
            f"{words.value(metric, _mean(data, bound, metric))}."
        )
    measured = f"Measured on {data.num_expected:,} held-out {data.items}"
    if metric == "whole_scene_right":
        sentences.append(f"{measured}: exactly right means that {words.EXACTLY_RIGHT[data.items]}.")
    else:
        sentences.append(f"{measured}{f' ({escape(data.benchmark)})' if data.benchmark else ''}.")
    return " ".join(sentences)


def _difference(data: ReportData, first: str, second: str, metric: str) -> dict[str, Any] | None:
    """first - second over all items, whichever way round the table has it."""
    for row in data.comparisons:
        if row["edit_type"] == ALL and row["metric"] == metric:
            if (row["first"], row["second"]) == (first, second):
                return row
            if (row["first"], row["second"]) == (second, first):
                low, high = row["low"], row["high"]
                return row | {
                    "difference": -row["difference"],
                    "low": None if high is None else -high,
                    "high": None if low is None else -low,
                }
    return None


def comparison(data: ReportData) -> str:
    """Dots with intervals for the main metrics, and the whole table below."""
    metrics = [m for m in PANEL_METRICS if any(_mean(data, name, m) is not None for name in data.methods)]
    if not metrics:
        return ""
    methods = ordered_methods(data)
    panels = "".join(_panel(data, metric, methods) for metric in metrics)
    name = data.anchor("results")
    layout = f'class="panels first-wide" style="--rest:{len(metrics) - 1}"'
    return (
        f'<section id="{name}"><h2>Against the alternatives</h2>'
        f'<p class="lead">The dot is the mean over the same held-out {data.items}, the bar its '
        f"{data.confidence:.0%} confidence interval.</p>"
        f"<div {layout}>{panels}</div>{_table(data, methods)}{_comparisons(data)}</section>"
    )


def _panel(data: ReportData, metric: str, methods: list[str]) -> str:
    kind = words.METRICS[metric]
    rows = "".join(_dots(data, metric, name) for name in methods)
    ends = ("0%", "100%") if kind.is_share else ("0", f"{kind.maximum:.0f}")
    scale = f'<div class="scale"><span>{ends[0]}</span><span>{ends[1]}</span></div>'
    return f'<div class="panel"><h3>{escape(kind.label)}</h3>{scale}{rows}</div>'


def _dots(data: ReportData, metric: str, name: str) -> str:
    kind, method = words.METRICS[metric], words.method(name)
    css_class = "ours" if name == star_method(data) else method.role.replace("ours", "base")
    row = data.summary.get((name, ALL, metric))
    who = f'<div class="who"><b>{escape(method.label)}</b><small>{escape(method.description)}</small></div>'
    if row is None:
        return f'<div class="dots {css_class}">{who}<span></span><span class="value">–</span></div>'
    mark = interval_mark(row["mean"], row["low"], row["high"], kind.maximum, css_class)
    spread = words.interval(metric, row["low"], row["high"])
    title = f"{method.label}: {words.value(metric, row['mean'])} ({spread})"
    return (
        f'<div class="dots {css_class}" title="{escape(title)}">{who}{mark}'
        f'<span class="value">{words.value(metric, row["mean"])}</span></div>'
    )


def _table(data: ReportData, methods: list[str]) -> str:
    metrics = [m for m in words.METRICS if any(_mean(data, name, m) is not None for name in methods)]
    head = "".join(f'<th class="number">{escape(words.METRICS[metric].label)}</th>' for metric in metrics)
    best = {}
    for metric in metrics:
        found = [v for name in methods if (v := _mean(data, name, metric)) is not None]
        best[metric] = max(found) if words.METRICS[metric].higher_is_better else min(found)
    body = ""
    for name in methods:
        cells = ""
        for metric in metrics:
            row = data.summary.get((name, ALL, metric))
            if row is None:
                cells += '<td class="number">–</td>'
                continue
            css_class = "number best" if row["mean"] == best[metric] else "number"
            count = "" if row["num_items"] == data.num_expected else f"<small>n = {row['num_items']}</small>"
            cells += (
                f'<td class="{css_class}">{words.value(metric, row["mean"])}'
                f"<small>{words.interval(metric, row['low'], row['high'])}</small>{count}</td>"
            )
        css_class = ' class="ours"' if name == star_method(data) else ""
        body += f"<tr{css_class}><td>{escape(words.method(name).label)}</td>{cells}</tr>"
    return (
        f"<details><summary>All metrics with their intervals (n = {data.num_expected} unless "
        f'stated)</summary><div class="scroll"><table><thead><tr><th>Method</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        "</details>"
    )


def _comparisons(data: ReportData) -> str:
    star, metric = star_method(data), primary_metric(data)
    others = [name for name in ordered_methods(data) if name != star]
    found = [(name, row) for name in others if (row := _difference(data, star, name, metric))]
    if not found:
        return ""
    scale, unit = (100, " points") if words.METRICS[metric].is_share else (1, "")
    body = "".join(
        f"<tr><td>{escape(words.method(star).label)} against {escape(words.method(name).label)}</td>"
        f'<td class="number">{words.signed(scale * row["difference"], 0 if scale == 100 else 1)}{unit}</td>'
        f'<td class="number">{words.interval(metric, row["low"], row["high"])}</td>'
        f'<td class="number">{words.p_value(row["p_value"])}</td><td class="number">{row["num_items"]}</td>'
        "</tr>"
        for name, row in found
    )
    return (
        "<details><summary>Differences on the same items, in "
        f"{escape(words.METRICS[metric].label.lower())}</summary>"
        '<div class="scroll"><table><thead><tr><th>Pair</th><th class="number">Difference</th><th '
        'class="number">Interval</th><th class="number">p</th><th class="number">n</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def by_edit_type(data: ReportData) -> str:
    """A heat map: methods by kinds of edit, in the primary metric."""
    metric = primary_metric(data)
    if metric is None or len(data.edit_types) < 2:
        return ""
    maximum = words.METRICS[metric].maximum
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
                f'title="{escape(spread)}, n = {row["num_items"]}">{words.value(metric, row["mean"])}</td>'
            )
        css_class = ' class="ours"' if name == star else ""
        body += f"<tr{css_class}><td>{escape(words.method(name).label)}</td>{cells}</tr>"
    return (
        f'<section id="types"><h2>By kind of edit</h2><p class="lead">{escape(words.METRICS[metric].label)}, '
        'for each kind on its own.</p><div class="scroll"><table class="heat"><thead><tr><th>'
        f"</th>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def judge(data: ReportData) -> str:
    """How often the judge says what the oracle says."""
    rows = [row for row in data.agreement if row["method"] == ALL]
    if not rows:
        return ""
    questions = {"judge_success": "Is the edit done?", "judge_over_editing": "Is the rest kept?"}
    body = "".join(
        f"<tr><td>{escape(questions.get(row['judge_metric'], row['judge_metric']))}</td>"
        f'<td class="number"><b>{100 * row["agreement"]:.0f}%</b></td>'
        f'<td class="number">{"–" if row["kappa"] is None else format(row["kappa"], ".2f")}</td>'
        f'<td class="number">{row["both_yes"]}</td><td class="number">{row["only_first"]}</td>'
        f'<td class="number">{row["only_second"]}</td><td class="number">{row["both_no"]}</td></tr>'
        for row in rows
    )
    return (
        '<section id="judge"><h2>Can the judge be trusted?</h2><p class="lead">The judge is a '
        "vision-language model and can err; the oracle computes the truth. A score of "
        f"{rows[0]['threshold']:.0f} or more counts as "
        'yes.</p><div class="scroll"><table><thead><tr><th>Question</th><th class="number">They agree</th>'
        '<th class="number">Kappa</th><th class="number">Both yes</th><th class="number">Judge alone yes</th>'
        '<th class="number">Oracle alone yes</th><th class="number">Both no</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )
