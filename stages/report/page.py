"""The page: what stands on it, in its order."""

from __future__ import annotations

from collections.abc import Sequence

from stages.report import charts, discrimination, gallery, kinds, results
from stages.report.charts import escape
from stages.report.data import Curve, ReportData, StageNode
from stages.report.frame import framed

QUALITY_CURVES = ("whole_scene_right", "edit_success", "preservation")
MAX_MAIN_CURVES = 6


def render_page(data: ReportData, title: str) -> str:
    """The whole page as HTML. All text that comes from data is escaped."""
    main = data.others[0] if data.others and not data.methods else data  # a run without edits of pictures
    sections = [
        hero(main, title),
        pipeline(data),
        results.comparison(main),
        kinds.by_edit_type(main),
        gallery.gallery(main),
        *(other(section) for section in data.others if section is not main),
        training(data),
        kinds.judge(main),
        discrimination.discrimination(main),
        problems(data),
        footer(data),
    ]
    return framed(title, sections)


def hero(data: ReportData, title: str) -> str:
    profile = f"profile {escape(data.profile)} · " if data.profile else ""
    examples = gallery.examples(data)
    return (
        f'<header class="hero"><div><div class="eyebrow"><b>{escape(title)}</b> · {profile}run '
        f"{escape(data.run_id)}</div><h1>{results.headline(data)}</h1>"
        f'<p class="lead">{results.lead(data)}</p></div>{examples}</header>'
    )


TITLES = {"clips": "Video", "settings": "Customization"}


def other(data: ReportData) -> str:
    """What the run found out about clips or settings, after what it found out about edits of pictures."""
    return (
        f'<section id="{data.items}"><h2>{TITLES[data.items]}</h2><p class="lead">{results.headline(data)} '
        f"{results.lead(data)}</p></section>"
        f"{results.comparison(data)}{gallery.gallery(data)}{kinds.judge(data)}"
        f"{discrimination.discrimination(data)}"
    )


def pipeline(data: ReportData) -> str:
    if not data.nodes:
        return ""
    states = {node.status for node in data.nodes}
    legend = "".join(
        f'<span><i class="{state}"></i>{text}</span>'
        for state, text in (
            ("ran", "ran now"),
            ("cached", "kept from an earlier run, with the time it took then"),
            ("failed", "failed"),
        )
        if state in states
    )
    return (
        '<section id="stages"><h2>How it got there</h2><p class="lead">Each stage reads what the ones before '
        f"it wrote{_times(data.nodes)}.</p>"
        f"{charts.graph(data.nodes, downwards=False)}{charts.graph(data.nodes, downwards=True)}"
        f'<div class="note states">{legend}</div></section>'
    )


def _times(nodes: Sequence[StageNode]) -> str:
    """How long what ran now took, from the first start to the last end: stages run side by side."""
    ran = [node for node in nodes if node.status == "ran" and node.ended and node.seconds]
    if not ran:
        return ""
    whole = max(node.ended for node in ran) - min(node.ended - node.seconds for node in ran)
    return f", side by side where none needs the other. This run took {escape(charts.duration(whole))}"


def training(data: ReportData) -> str:
    if not data.curves:
        return ""
    parts = []
    for stage, curves in data.curves.items():
        quality = {curve.name: curve for curve in curves if _last_part(curve.name) in QUALITY_CURVES}
        losses = [curve for curve in curves if "loss" in curve.name and curve.name not in quality]
        others = [curve for curve in curves if curve not in losses and curve.name not in quality]
        main = [charts.line_chart(name, group, is_share=True) for name, group in _quality_groups(quality).items()]
        main += [charts.line_chart(curve.name, {curve.name: curve}) for curve in losses[:MAX_MAIN_CURVES]]
        more = [charts.line_chart(curve.name, {curve.name: curve}) for curve in losses[MAX_MAIN_CURVES:] + others]
        steps = max((curve.steps[-1] for curve in curves), default=0)
        start = f", from the adapter {data.starts[stage]}" if stage in data.starts else ""
        parts.append(f"<h3>{escape(stage)}, {steps:,.0f} steps{escape(start)}</h3>")
        parts.append(f'<div class="plots">{"".join(main or more)}</div>')
        if main and more:
            parts.append(
                f'<details><summary>{len(more)} more curves</summary><div class="plots">{"".join(more)}</div></details>'
            )
    return (
        '<section id="training"><h2>While it learned</h2><p class="lead">Edits done and everything else kept '
        "pull against each other; a good balance of the losses raises both.</p>"
        f"{''.join(parts)}"
        '<p class="note">Long curves are drawn faintly as they were and boldly as a running '
        "mean.</p></section>"
    )


def _last_part(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _quality_groups(quality: dict[str, Curve]) -> dict[str, dict[str, Curve]]:
    """The success curves that belong in one frame: those that share what stands before the last slash."""
    groups: dict[str, dict[str, Curve]] = {}
    for name, curve in quality.items():
        prefix = name.rsplit("/", 1)[0] if "/" in name else ""
        heading = "Edits during training" + (f" ({prefix})" if prefix else "")
        label = {
            "whole_scene_right": "exactly right",
            "edit_success": "edit done",
            "preservation": "rest kept",
        }
        groups.setdefault(heading, {})[label[_last_part(name)]] = curve
    return groups


def problems(data: ReportData) -> str:
    if not data.problems:
        return (
            '<section id="problems"><h2>What failed</h2><p class="lead">Nothing: no row was set aside, every '
            "edit was scored, and no worker was lost.</p></section>"
        )
    rows = "".join(
        f"<tr><td>{escape(problem.stage)}</td><td>{escape(problem.outcome)}</td>"
        f"<td>{escape(problem.text)}</td><td "
        f'class="number">{"" if problem.count is None else f"{problem.count:,}"}</td></tr>'
        for problem in data.problems
    )
    return (
        '<section id="problems"><h2>What failed</h2><p class="lead">Rows that were set aside, edits without '
        "a score, and what went wrong and was got over. None of them counts as a zero anywhere.</p>"
        '<div class="scroll"><table><thead><tr><th>Stage</th><th>What</th><th>Why</th><th '
        'class="number">Rows</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div></section>"
    )


def footer(data: ReportData) -> str:
    files = ", ".join(f"<code>tables/{escape(name)}.csv</code>" for name in data.tables)
    tables = f" The tables behind every figure lie beside this page: {files}." if files else ""
    return (
        f"<footer><p>Intervals hold {data.confidence:.0%} confidence. Shares: Wilson's interval where every "
        "item has a source image of its own, else a bootstrap over source images; other means: a bootstrap "
        "over source images. Items without a score are left out of a mean and shown in its "
        f"count.{tables}</p></footer>"
    )
