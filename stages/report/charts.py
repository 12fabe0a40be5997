"""The report's drawings as inline SVG. Colours come from the page's CSS classes, so they follow light and
dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from stages.report.data import Curve, StageNode

MAX_POINTS = 300
SMOOTHED = 8
PLOT_WIDTH, PLOT_HEIGHT = 344, 190
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 38, 10, 12, 24


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def duration(seconds: float | None) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, with spaces that don't break."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def interval_mark(
    mean: float,
    low: float | None,
    high: float | None,
    maximum: float,
    css_class: str,
    *,
    beside: float | None = None,
) -> str:
    """A dot with its interval on a track from 0 to `maximum`, and a line at `beside`; as wide as its place, since x is
    in per cent.
    """

    def x(value: float) -> str:
        return f"{2 + 96 * min(max(value / maximum, 0), 1):.2f}%"

    grid = "".join(f'<line class="grid" x1="{x(p)}" x2="{x(p)}" y1="0" y2="26"/>' for p in (0, maximum / 2, maximum))
    bar = ""
    if low is not None and high is not None:
        bar = f'<line class="bar" x1="{x(low)}" x2="{x(high)}" y1="13" y2="13"/>'
    line = "" if beside is None else f'<line class="beside" x1="{x(beside)}" x2="{x(beside)}" y1="4" y2="22"/>'
    dot = f'<circle class="dot" cx="{x(mean)}" cy="13" r="5.5"/>'
    return f'<svg class="mark {css_class}" height="26" aria-hidden="true">{grid}{bar}{line}{dot}</svg>'


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    """At most MAX_POINTS points: means of runs of neighbours. Values that are not finite are left out."""
    points = [(s, v) for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v)]
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(s for s, _ in run) / len(run), sum(v for _, v in run) / len(run)) for run in runs]


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over up to SMOOTHED neighbours on either side, fewer at the ends."""
    result = []
    for index, (step, _) in enumerate(points):
        reach = min(SMOOTHED, index, len(points) - 1 - index)
        around = [value for _, value in points[index - reach : index + reach + 1]]
        result.append((step, sum(around) / len(around)))
    return result


def nice_ticks(low: float, high: float, num_steps: int = 3) -> list[float]:
    """Round numbers that cover [low, high]."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / num_steps
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _tick_label(value: float, is_share: bool) -> str:
    if is_share:
        return f"{value * 100:.0f}%"
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def line_chart(title: str, curves: Mapping[str, Curve], *, is_share: bool = False) -> str:
    """Curves over steps in one frame with a legend; long noisy ones as a faint line under a smoothed one."""
    lines = {label: points for label, curve in curves.items() if (points := _thinned(curve))}
    if not lines:
        return ""
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in lines.values() for _, value in points]
    x_ticks = [0.0, max(steps)] if max(steps) > 0 else [0.0, 1.0]
    y_ticks = [0.0, 0.5, 1.0] if is_share else nice_ticks(min(0.0, min(values)), max(values))
    if is_share and len(lines) and max(values) > 1:
        y_ticks = nice_ticks(0.0, max(values))

    def x(step: float) -> float:
        return MARGIN_LEFT + step / x_ticks[-1] * (PLOT_WIDTH - MARGIN_LEFT - MARGIN_RIGHT)

    def y(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return PLOT_HEIGHT - MARGIN_BOTTOM - share * (PLOT_HEIGHT - MARGIN_TOP - MARGIN_BOTTOM)

    def path(points: Sequence[tuple[float, float]], css_class: str) -> str:
        coordinates = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
        return f'<path class="{css_class}" d="M{coordinates}"/>'

    parts = []
    for tick in y_ticks:
        height, right = f"{y(tick):.1f}", PLOT_WIDTH - MARGIN_RIGHT
        parts.append(f'<line class="grid" x1="{MARGIN_LEFT}" x2="{right}" y1="{height}" y2="{height}"/>')
        parts.append(
            f'<text class="tick" x="{MARGIN_LEFT - 7}" y="{y(tick) + 3.5:.1f}" text-anchor="end">'
            f"{_tick_label(tick, is_share)}</text>"
        )
    for tick, anchor in zip(x_ticks, ("start", "end"), strict=True):
        label = f"{tick:.0f}" if tick == 0 else f"step {tick:,.0f}"
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{PLOT_HEIGHT - 6}" text-anchor="{anchor}">{label}</text>'
        )
    for index, points in enumerate(lines.values()):
        if len(points) > 60:
            parts += [path(points, f"curve faint c{index}"), path(_smoothed(points), f"curve c{index}")]
        else:
            parts.append(path(points, f"curve c{index}"))
        step, value = (_smoothed(points) if len(points) > 60 else points)[-1]
        parts.append(f'<circle class="end c{index}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3"/>')
    legend = ""
    if len(lines) > 1:
        legend = "".join(f'<span><i class="c{i}"></i>{escape(label)}</span>' for i, label in enumerate(lines))
        legend = f'<span class="legend">{legend}</span>'
    return (
        f'<figure class="plot"><figcaption><b>{escape(title)}</b>{legend}</figcaption>'
        f'<svg viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" role="img" aria-label="{escape(title)} over training '
        'steps">'
        f"{''.join(parts)}</svg></figure>"
    )


def _direct_needs(nodes: Sequence[StageNode]) -> dict[str, list[str]]:
    """Each stage's needs, without those that follow from others."""
    needs = {node.name: [n for n in node.needs if any(n == other.name for other in nodes)] for node in nodes}

    def above(name: str) -> set[str]:
        return set(needs[name]).union(*(above(need) for need in needs[name]))

    indirect = {name: set().union(*(above(need) for need in direct)) for name, direct in needs.items()}
    return {name: [need for need in direct if need not in indirect[name]] for name, direct in needs.items()}


def layers(nodes: Sequence[StageNode]) -> list[list[str]]:
    """The stages, each as late as what needs it allows; within a layer near what needs them.

    Where what needs it lies further on, `need>stage` holds a lane free in each layer between, so that no line runs
    behind a box.
    """
    needs = _direct_needs(nodes)
    users: dict[str, list[str]] = {node.name: [] for node in nodes}
    for name, direct in needs.items():
        for need in direct:
            users[need].append(name)
    height: dict[str, int] = {}

    def height_of(name: str) -> int:
        if name not in height:
            height[name] = 1 + max((height_of(user) for user in users[name]), default=-1)
        return height[name]

    last = max(height_of(node.name) for node in nodes)
    result: list[list[str]] = [[] for _ in range(1 + last)]
    after: dict[str, list[str]] = {}
    for node in nodes:
        layer = last - height[node.name]
        result[layer].append(node.name)
        after[node.name] = []
        for user in users[node.name]:
            between = range(layer + 1, last - height[user])
            after[node.name].append(f"{node.name}>{user}" if between else user)
            for lane in between:
                result[lane].append(f"{node.name}>{user}")
                after[f"{node.name}>{user}"] = [user]
    place: dict[str, float] = {}
    for names in reversed(result):
        wanted = {name: sum(place[other] for other in after[name]) / max(1, len(after[name])) for name in names}
        names.sort(key=wanted.__getitem__)
        place.update({name: index - (len(names) - 1) / 2 for index, name in enumerate(names)})
    return result


def graph(nodes: Sequence[StageNode], *, downwards: bool) -> str:
    """The stages with their states, times and rows; from left to right, or downwards for narrow screens."""
    if not nodes:
        return ""
    needs, rows = _direct_needs(nodes), layers(nodes)
    widest = max(len(row) for row in rows)
    box_width = 130
    box_height = 49 + LINE_HEIGHT * max(len(_name_lines(node.name)) for node in nodes)
    along, across = (box_height + 22, box_width + 8) if downwards else (box_width + 22, box_height + 16)
    centre: dict[tuple[str, int], tuple[float, float]] = {}
    layer_of: dict[str, int] = {}
    for layer, names in enumerate(rows):
        for index, name in enumerate(names):
            a = layer * along
            b = (index + (widest - len(names)) / 2) * across
            centre[name, layer] = (b, a) if downwards else (a, b)
            layer_of[name] = layer
    long, wide = (len(rows) - 1) * along, (widest - 1) * across
    width = (wide if downwards else long) + box_width + 2
    height = (long if downwards else wide) + box_height + 2
    parts = []
    for name, direct in needs.items():
        for need in direct:
            stops = [centre[need, layer_of[need]]]
            stops += [centre[f"{need}>{name}", layer] for layer in range(layer_of[need] + 1, layer_of[name])]
            stops.append(centre[name, layer_of[name]])
            parts.append(_edge(stops, box_width, box_height, downwards))
    for node in nodes:
        parts.append(_box(node, *centre[node.name, layer_of[node.name]], box_width, box_height))
    css_class = "graph down" if downwards else "graph across"
    return (
        f'<svg class="{css_class}" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" '
        f'role="img" aria-label="The stages of the run and what needs what">{"".join(parts)}</svg>'
    )


def _edge(stops: Sequence[tuple[float, float]], width: int, height: int, downwards: bool) -> str:
    """A line through the places of boxes (upper left corners): curved between layers, straight along a
    lane.
    """
    path = ""
    for (x1, y1), (x2, y2) in zip(stops, stops[1:], strict=False):
        if downwards:
            start, end = (x1 + width / 2 + 1, y1 + height + 1), (x2 + width / 2 + 1, y2 + 1)
            middle = (start[1] + end[1]) / 2
            bend = f"C{start[0]:.1f} {middle:.1f} {end[0]:.1f} {middle:.1f}"
        else:
            start, end = (x1 + width + 1, y1 + height / 2 + 1), (x2 + 1, y2 + height / 2 + 1)
            middle = (start[0] + end[0]) / 2
            bend = f"C{middle:.1f} {start[1]:.1f} {middle:.1f} {end[1]:.1f}"
        path += f"{'L' if path else 'M'}{start[0]:.1f} {start[1]:.1f}{bend} {end[0]:.1f} {end[1]:.1f}"
    return f'<path class="edge" d="{path}"/>'


STATE_WORDS = {
    "ran": "ran",
    "cached": "kept from before",
    "failed": "failed",
    "skipped": "skipped",
    "wait": "waiting",
}


LINE_HEIGHT = 15
MAX_NAME_LENGTH = 13  # characters of a name on one line of a box


def _name_lines(name: str) -> list[str]:
    """A stage's name on one line, or a long one on two, cut behind an underscore near its middle."""
    cuts = [place + 1 for place, letter in enumerate(name) if letter == "_"]
    if len(name) <= MAX_NAME_LENGTH or not cuts:
        return [name]
    cut = min(cuts, key=lambda place: abs(place - len(name) / 2))
    return [name[:cut], name[cut:]]


def _box(node: StageNode, x: float, y: float, width: int, height: int) -> str:
    rows = "" if node.rows is None else f"{node.rows:,} rows"
    if node.name == "report" and node.status == "running":
        detail = "this page"
    else:
        detail = duration(node.seconds) or STATE_WORDS.get(node.status, node.status)
    state = STATE_WORDS.get(node.status, node.status)
    tip = ", ".join(part for part in (state, detail, rows) if part)
    lines = _name_lines(node.name)
    below = 23 + LINE_HEIGHT * (len(lines) - 1)
    names = "".join(
        f'<text class="name" x="23" y="{23 + LINE_HEIGHT * line}">{escape(text)}</text>'
        for line, text in enumerate(lines)
    )
    return (
        f'<g class="box {escape(node.status)}" transform="translate({x + 1:.1f} {y + 1:.1f})">'
        f"<title>{escape(node.name)}: {escape(tip)}</title>"
        f'<rect width="{width}" height="{height}" rx="9"/><circle cx="13" cy="19" r="4"/>'
        f"{names}"
        f'<text class="detail" x="23" y="{below + 16}">{escape(detail)}</text>'
        f'<text class="detail" x="23" y="{below + 31}">{escape(rows)}</text></g>'
    )
