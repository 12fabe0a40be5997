"""A run's figures beside the published ones of the same benchmark and aggregate, which look different."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stages.evaluate.published import PublishedFigure, read_published
from stages.report import words
from stages.report.charts import escape
from stages.report.data import ALL, ReportData

Row = Mapping[str, Any]
BENCHMARKS = {  # by the layout in which a benchmark was read: its name among published figures
    "gedit": "gedit-bench",
    "imgedit": "imgedit-bench",
    "dreambooth": "dreambooth",
    "long_tail": "byg-long-tail-style",
    "video_style": "byg-video-style",
}
HALVES = {"from_": "style_to_photorealistic", "to_": "photorealistic_to_style"}  # of the long-tail styles, by edit type
TITLES = {
    "style_to_photorealistic": "from a style to photorealistic",
    "photorealistic_to_style": "from photorealistic to a style",
}


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """How a published column is computed here: `of` gives an item's values (None: unscored), `how` their aggregate."""

    label: str
    meaning: str
    of: Callable[[Row], Sequence[float] | None]
    how: Callable[[Sequence[tuple[str, Sequence[float]]]], float]


def _columns(*names: str) -> Callable[[Row], Sequence[float] | None]:
    """The smallest of these columns, where all of them are there."""

    def values(row: Row) -> Sequence[float] | None:
        found = [row.get(name) for name in names]
        return None if any(value is None for value in found) else (min(found),)

    return values


_SC_EDIT, _PQ = _columns("judge_success", "judge_over_editing"), _columns("judge_naturalness", "judge_artifacts")
_SC_SUBJECT = _columns("judge_prompt_following", "judge_identity")
_OVERALL = _columns("judge_overall")


def _clip_cosine(row: Row) -> Sequence[float] | None:
    """CLIPScore without its factor 100, as papers print it."""
    return None if row.get("clip_score") is None else (row["clip_score"] / 100,)


def _sc(row: Row) -> Sequence[float] | None:
    return _SC_EDIT(row) or _SC_SUBJECT(row)


def _both(row: Row) -> Sequence[float] | None:
    sc, pq = _sc(row), _PQ(row)
    return None if sc is None or pq is None else (*sc, *pq)


def micro(items: Sequence[tuple[str, Sequence[float]]]) -> float:
    """Mean over items (edit type, values) of the first value."""
    return sum(values[0] for _, values in items) / len(items)


def macro(items: Sequence[tuple[str, Sequence[float]]]) -> float:
    """Unweighted mean over edit types of their means."""
    by_type = collections.defaultdict(list)
    for edit_type, values in items:
        by_type[edit_type].append((edit_type, values))
    return sum(map(micro, by_type.values())) / len(by_type)


def geometric_mean_of_means(items: Sequence[tuple[str, Sequence[float]]]) -> float:
    """sqrt(mean SC · mean PQ) over items that have both."""
    means = [sum(values[place] for _, values in items) / len(items) for place in (0, 1)]
    return math.sqrt(means[0] * means[1])


MICRO, MACRO = "mean over items (micro)", "unweighted mean of the kinds’ means (macro)"
AGGREGATES = {  # by the name that stages/evaluate/published.yaml has for it
    "sc_mean": Aggregate("SC", MICRO, _sc, micro),
    "pq_mean": Aggregate("PQ", MICRO, _PQ, micro),
    "overall_mean_of_geometric_means": Aggregate("Overall", f"{MICRO} of √(SC·PQ)", _OVERALL, micro),
    "sc_macro_mean": Aggregate("SC, macro", MACRO, _sc, macro),
    "pq_macro_mean": Aggregate("PQ, macro", MACRO, _PQ, macro),
    "overall_macro_mean_of_geometric_means": Aggregate("Overall, macro", f"{MACRO} of √(SC·PQ)", _OVERALL, macro),
    "overall_geometric_mean_of_means": Aggregate("Overall", "√(mean SC · mean PQ)", _both, geometric_mean_of_means),
    "imgedit_mean": Aggregate("ImgEdit, macro", f"{MACRO} of the three scores’ mean", _columns("judge_imgedit"), macro),
    "masked_dinov2_mean": Aggregate("MDINOv2-I", MICRO, _columns("dinov2_masked"), micro),
    "clip_score_mean": Aggregate("CLIPScore / 100", MICRO, _clip_cosine, micro),
    "tifa_mean": Aggregate("TIFA", MICRO, _columns("tifa"), micro),
    "geometric_score_mean": Aggregate(
        "Geometric score", f"{MICRO} of √(TIFA·MDINOv2-I)", _columns("geometric_score"), micro
    ),
}
BY_TYPE = {  # the published aggregate of one kind of edit, by the metric whose mean it is
    "judge_overall": "overall_mean_of_geometric_means",
    "judge_imgedit": "imgedit_mean",
}


def published_of(data: ReportData) -> list[PublishedFigure]:
    """The published figures of the run's benchmark; none for a world, a table of one's own, or Chinese instructions."""
    benchmark = BENCHMARKS.get(data.ingest.get("layout", "")) if data.ingest.get("source") else None
    settings = data.ingest.get("gedit") or {}
    if data.ingest.get("layout") == "gedit" and settings.get("language", "en") != "en":
        return []
    return [figure for figure in read_published() if figure.benchmark == benchmark]


def published_types(data: ReportData, metric: str) -> dict[tuple[str, str, str], dict[str, PublishedFigure]]:
    """{(method, source, judge): {edit type: figure}} for the metric's means of single kinds of edit."""
    found: dict[tuple[str, str, str], dict[str, PublishedFigure]] = {}
    for figure in published_of(data):
        if figure.name == BY_TYPE.get(metric) and figure.task in data.edit_types:
            found.setdefault((figure.method, figure.source, figure.judge), {})[figure.task] = figure
    return found


def our_figures(rows: Iterable[Row], task: str) -> dict[tuple[str, str], tuple[float, int]]:
    """{(method, aggregate): (value, number of scored items)} from rows of the table of scores."""
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        if task == ALL or any(row["edit_type"].startswith(p) for p, half in HALVES.items() if half == task):
            by_method.setdefault(row["method"], []).append(row)
    figures = {}
    for method, own in by_method.items():
        for name, aggregate in AGGREGATES.items():
            items = [(row["edit_type"], values) for row in own if (values := aggregate.of(row)) is not None]
            if items:
                figures[method, name] = (aggregate.how(items), len(items))
    return figures


def leaderboards(data: ReportData, methods: Sequence[str], star: str | None) -> str:
    """A table for each group of aggregates of which there are our own and published figures, or ""."""
    published = published_of(data)
    if not published or "scores" not in data.tables:
        return ""
    rows = data.tables["scores"].to_pylist()
    tables = []
    for task in dict.fromkeys(figure.task for figure in published):
        ours = our_figures(rows, task) if task == ALL or task in TITLES else {}
        theirs = [f for f in published if f.task == task and any(name == f.name for _, name in ours)]
        for columns in _column_groups(theirs):
            tables.append(_table(data, task, columns, methods, star, ours, theirs))
    if not tables:
        return ""
    named = {(row["judge_model"], row.get("judge_prompt_version")) for row in rows if row.get("judge_model")}
    judges = sorted(f"{model} (prompts {version})" if version else model for model, version in named)
    judged = f" Ours are judged by {escape(', '.join(judges))}." if judges else ""
    trial = ""
    if data.ingest.get("trial") or (data.ingest.get("gedit") or {}).get("part") == "intersection":
        trial = " <b>Ours are not of the whole benchmark, so that the two can’t be compared.</b>"
    return (
        f'<section id="{data.anchor("published")}"><h2>Beside published figures</h2><p class="lead">'
        f"{escape(data.benchmark)}.{judged} Each published row, in grey, says whose and by what judge. Scores of "
        f"different judges aren’t on one scale.{trial}</p>{''.join(tables)}</section>"
    )


def _column_groups(figures: Sequence[PublishedFigure]) -> list[list[str]]:
    """The columns that stand in one table: those that a source prints together."""
    by_source: dict[str, list[str]] = {}
    for figure in figures:
        names = by_source.setdefault(figure.source, [])
        if figure.name not in names:
            names.append(figure.name)
    return [list(names) for names in dict.fromkeys(map(tuple, by_source.values()))]


def _table(
    data: ReportData,
    task: str,
    columns: Sequence[str],
    methods: Sequence[str],
    star: str | None,
    ours: Mapping[tuple[str, str], tuple[float, int]],
    published: Sequence[PublishedFigure],
) -> str:
    digits = 3 if any(name.startswith(("masked", "clip", "tifa", "geometric")) for name in columns) else 2
    lines: list[tuple[float, str]] = []
    errata: list[str] = []
    for method in methods:
        found = [ours.get((method, name)) for name in columns]
        if any(found):
            cells = "".join(_own_cell(value, data.num_expected if task == ALL else None, digits) for value in found)
            css_class = ' class="ours"' if method == star else ""
            label = f"<td>{escape(words.method(method).label)}<small>this run</small></td>"
            lines.append((found[-1][0] if found[-1] else -math.inf, f"<tr{css_class}>{label}{cells}</tr>"))
    rows: dict[tuple[str, str, str], dict[str, PublishedFigure]] = {}
    for figure in published:
        if figure.name in columns:
            rows.setdefault((figure.method, figure.source, figure.judge), {})[figure.name] = figure
    for (method, source, judge), figures in rows.items():
        cells = "".join(published_cell(figures.get(name), errata, digits) for name in columns)
        label = f"<td>{escape(method)}<small>{escape(source)}; judge: {escape(judge)}</small></td>"
        last = figures.get(columns[-1])
        lines.append((last.value if last else -math.inf, f'<tr class="published">{label}{cells}</tr>'))
    lines.sort(key=lambda line: -line[0])
    head = "".join(f'<th class="number">{escape(AGGREGATES[name].label)}</th>' for name in columns)
    meanings = "; ".join(f"{AGGREGATES[name].label}: {AGGREGATES[name].meaning}" for name in columns)
    title = f"<h3>{escape(TITLES[task].capitalize())}</h3>" if task in TITLES else ""
    return (
        f'{title}<div class="scroll"><table class="board"><thead><tr><th>Method</th>{head}</tr></thead><tbody>'
        f"{''.join(line for _, line in lines)}</tbody></table></div>"
        f'<p class="note">{escape(meanings)}.</p>{footnotes(errata)}'
    )


def _own_cell(value: tuple[float, int] | None, num_expected: int | None, digits: int) -> str:
    if value is None:
        return '<td class="number">–</td>'
    count = "" if num_expected in (None, value[1]) else f"<small>n = {value[1]} of {num_expected}</small>"
    return f'<td class="number">{value[0]:.{digits}f}{count}</td>'


def published_cell(figure: PublishedFigure | None, errata: list[str], digits: int) -> str:
    """A published value; what is known to be wrong with it becomes a flag, and goes to `errata` for the footnotes."""
    if figure is None:
        return '<td class="number">–</td>'
    if not figure.erratum:
        return f'<td class="number">{figure.value:.{digits}f}</td>'
    if figure.erratum not in errata:
        errata.append(figure.erratum)
    number, text = errata.index(figure.erratum) + 1, escape(figure.erratum)
    return (
        f'<td class="number erratum">{figure.value:.{digits}f}<sup title="{text}" aria-label="erratum {number}">'
        f"⚑{number}</sup></td>"
    )


def footnotes(errata: Sequence[str]) -> str:
    notes = "".join(f"<li>{escape(text)}</li>" for text in errata)
    return f'<ol class="errata note" aria-label="Errata">{notes}</ol>' if notes else ""
