"""The figures in words, dots and tables: the headline, and methods side by side."""

from __future__ import annotations

from typing import Any

from stages.report import words
from stages.report.charts import escape, interval_mark
from stages.report.data import ALL, MACRO, ReportData
from stages.report.leaderboard import leaderboards

PANEL_METRICS = (*words.PRIMARY[:1], "edit_success", "preservation", *words.JUDGED)


def primary_metric(data: ReportData) -> str | None:
    """What methods are ranked by: the oracle's whole scene right, else what the judge says in all."""
    measured = {metric for _, edit_type, metric in data.summary if edit_type == ALL}
    return next((metric for metric in words.PRIMARY if metric in measured), None)


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
    if words.METRICS[metric].is_share:
        return f"{who} is right with a probability of {number}, says the judge."
    return f"{who} scores {number} of {words.METRICS[metric].maximum:.0f} with the judge."


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
                    "difference": 0.0 - row["difference"],
                    "low": None if high is None else 0.0 - high,
                    "high": None if low is None else 0.0 - low,
                }
    return None


def comparison(data: ReportData) -> str:
    """Dots with intervals for the main metrics, the whole table below, and published figures where there are any."""
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
        f"<div {layout}>{panels}</div>{_legend(data)}{_table(data, methods)}{_comparisons(data)}</section>"
        f"{leaderboards(data, methods, star_method(data))}"
    )


MARKS = {  # what a method is, held against the headline's: the mark, and its words
    "above": ("▲", "better than {}"),
    "below": ("▼", "worse than {}"),
    "same": ("≈", "can’t be told apart from {}"),
    "few": ("?", "too few source images to tell from {}, however large the difference"),
}


def standing(data: ReportData, name: str, metric: str) -> str:
    """`above`, `below` or `same`: how a method stands to the headline's, p corrected after Holm; "" where untested.

    `few` is where not even the smallest p-value that so many sources can give would do.
    """
    star = star_method(data)
    row = None if star in (None, name) else _difference(data, name, star, metric)
    if row is None or row.get("p_holm") is None:
        return ""
    if row["p_holm"] >= 1 - data.confidence:
        return "few" if _too_few(data, row) else "same"
    return "above" if (row["difference"] > 0) == words.METRICS[metric].higher_is_better else "below"


def _num_tests(data: ReportData, metric: str) -> int:
    """How many pairs are corrected together."""
    return sum(row["edit_type"] == ALL and row["metric"] == metric for row in data.comparisons)


def _too_few(data: ReportData, row: dict[str, Any]) -> bool:
    return _num_tests(data, row["metric"]) * (row.get("p_floor") or 0) >= 1 - data.confidence


def _mark(data: ReportData, name: str, metric: str) -> str:
    if not (kind := standing(data, name, metric)):
        return '<i class="sign" aria-hidden="true"></i>'
    sign, text = MARKS[kind]
    text = text.format(words.method(star_method(data) or "").label)
    return f'<i class="sign {kind}" role="img" aria-label="{escape(text)}" title="{escape(text)}">{sign}</i>'


def _legend(data: ReportData) -> str:
    star, metric = star_method(data), primary_metric(data)
    used = {standing(data, name, metric) for name in data.methods} if metric else set()
    if not used & set(MARKS):
        return ""
    label = escape(words.method(star or "").label)
    shown = [mark for kind, mark in MARKS.items() if kind != "few" or kind in used]
    marks = ", ".join(f"{sign} {text.format(label)}" for sign, text in shown)
    return (
        f'<p class="note">{marks}: a permutation test that flips the signs of whole source images on the items that '
        f"both have, p &lt; {1 - data.confidence:.2g} after Holm’s correction for all pairs in that metric.</p>"
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
    mark = interval_mark(row["mean"], row["low"], row["high"], kind.maximum or 1.0, css_class)
    spread = words.interval(metric, row["low"], row["high"])
    title = f"{method.label}: {words.value(metric, row['mean'])} ({spread})"
    return (
        f'<div class="dots {css_class}" title="{escape(title)}">{who}{mark}'
        f'<span class="value">{words.value(metric, row["mean"])}{_mark(data, name, metric)}</span></div>'
    )


def _table(data: ReportData, methods: list[str]) -> str:
    columns = [(m, ALL) for m in words.METRICS if any((name, ALL, m) in data.summary for name in methods)]
    if len(data.edit_types) > 1:  # beside the judge's mean over items that over kinds of edit
        macro = [m for m in words.JUDGED if any((name, MACRO, m) in data.summary for name in methods)]
        for metric in macro:
            columns.insert(columns.index((metric, ALL)) + 1, (metric, MACRO))
    heads = [words.METRICS[m].label + (", macro" if kind == MACRO else "") for m, kind in columns]
    head = "".join(f'<th class="number">{escape(text)}</th>' for text in heads)
    best = {}
    for metric, kind in columns:
        found = [row["mean"] for name in methods if (row := data.summary.get((name, kind, metric)))]
        best[metric, kind] = max(found) if words.METRICS[metric].higher_is_better else min(found)
    body = ""
    for name in methods:
        cells = ""
        for metric, kind in columns:
            row = data.summary.get((name, kind, metric))
            if row is None:
                cells += '<td class="number">–</td>'
                continue
            css_class = "number best" if row["mean"] == best[metric, kind] else "number"
            count = "" if row["num_items"] == data.num_expected else f"<small>n = {row['num_items']}</small>"
            mark = _mark(data, name, metric) if kind == ALL else ""
            cells += (
                f'<td class="{css_class}">{words.value(metric, row["mean"])}{mark}'
                f"<small>{words.interval(metric, row['low'], row['high'])}</small>{count}</td>"
            )
        css_class = ' class="ours"' if name == star_method(data) else ""
        body += f"<tr{css_class}><td>{escape(words.method(name).label)}</td>{cells}</tr>"
    return (
        f"<details><summary>All metrics with their intervals (n = {data.num_expected} unless "
        f'stated)</summary><div class="scroll"><table><thead><tr><th>Method</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="note">Each figure is the mean over the items with a score (micro); “macro” is the unweighted '
        "mean of the means of the kinds of edit.</p></details>"
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
        f'<td class="number">{words.p_value(row["p_value"])}</td>'
        f'<td class="number">{words.p_value(row.get("p_holm"))}</td><td class="number">{row["num_items"]}</td>'
        "</tr>"
        for name, row in found
    )
    return (
        "<details><summary>Differences on the same items, in "
        f"{escape(words.METRICS[metric].label.lower())}</summary>"
        '<div class="scroll"><table><thead><tr><th>Pair</th><th class="number">Difference</th><th '
        'class="number">Interval</th><th class="number">p</th><th class="number">p, Holm</th><th '
        'class="number">n</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>{_floor(data, found[0][1])}</details>"
    )


def _floor(data: ReportData, row: dict[str, Any]) -> str:
    """How small the p-values of the table can be at all."""
    if row.get("p_floor") is None:
        return ""
    num_tests, floor = _num_tests(data, row["metric"]), row["p_floor"]
    corrected = f"; corrected for {num_tests} pairs, {min(1.0, num_tests * floor):.2g}" if num_tests > 1 else ""
    text = f"The smallest p that this test on {row['num_clusters']} source images can give is {floor:.2g}{corrected}."
    if _too_few(data, row):
        text += " So no difference, however large, could be told from chance: it takes more source images."
    return f'<p class="note">{text}</p>'
