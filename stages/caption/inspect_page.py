"""The page about a data engine's artifact: its counts, and rows with the pictures that they are about."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.caption.asking import OUTCOME_COLUMNS
from stages.caption.contents import Contents, Sample
from stages.caption.inspect import attempts_of, histogram, rules_by_count
from stages.report.charts import duration, escape
from stages.report.frame import framed
from stages.report.gallery import filter_buttons, picture

MAX_PICTURES_LENGTH = 16_000_000  # characters of all pictures together
MAX_TEXT = 1200  # characters of one field
NUM_REASONS = 24


def render(contents: Contents) -> str:
    """The whole page as HTML. All text that comes from data is escaped, and its size is bounded."""
    css = (pathlib.Path(__file__).parent / "inspect.css").read_text(encoding="utf-8")
    title = f"{contents.manifest.stage} {contents.manifest.fingerprint}"
    return framed(title, [head(contents), outcomes(contents), rules(contents), figures(contents), rows(contents)], css)


def head(contents: Contents) -> str:
    manifest, asked = contents.manifest, contents.outcomes.total()
    share = contents.outcomes["ok"] / asked if asked else 0
    first = contents.attempts[1] / asked if asked else 0
    return (
        f'<header><div class="eyebrow"><b>{escape(manifest.stage)}</b> · {escape(manifest.fingerprint)} · run '
        f"{escape(manifest.run_id)}</div><h1><em>{share:.1%}</em> of {asked:,} rows came to something</h1>"
        f'<p class="lead">{escape(manifest.config["engine"]["model"])} was asked about {asked:,} rows in '
        f"{escape(duration(manifest.seconds))}: {contents.num_good:,} good rows, {asked - contents.outcomes['ok']:,} "
        f"dead letters; {first:.1%} were settled at the first attempt.</p></header>"
    )


def bars(counts: Sequence[tuple[object, int]], classes: Sequence[str] = ()) -> str:
    """A line with a bar for each count, its share of all beside it."""
    most, total = max((n for _, n in counts), default=0) or 1, sum(n for _, n in counts) or 1
    lines = []
    for place, (label, count) in enumerate(counts):
        css_class = f' class="{escape(classes[place])}"' if classes else ""
        lines.append(
            f'<dt>{escape(label)}</dt><dd class="track"><i{css_class} style="width:{100 * count / most:.1f}%"></i></dd>'
            f"<dd>{count:,} <small>{count / total:.0%}</small></dd>"
        )
    return f'<dl class="bars">{"".join(lines)}</dl>'


def _breakable(name: str) -> str:
    """A name whose lines may break after its underscores."""
    return escape(name).replace("_", "_<wbr>")


def outcomes(contents: Contents) -> str:
    counted = contents.outcomes.most_common()
    parts = [f"<div><h3>Outcome</h3>{bars(counted, [name for name, _ in counted])}</div>"]
    parts.append(f"<div><h3>Attempts</h3>{bars(sorted(contents.attempts.items()))}</div>")
    if contents.kind:
        kinds = [(name, counts["ok"]) for name, counts in sorted(contents.kinds.items())]
        parts.append(f"<div><h3>Good rows by {escape(contents.kind)}</h3>{bars(kinds)}</div>")
    why = "".join(
        f'<tr><td>{escape(outcome)}</td><td>{_breakable(reason[:MAX_TEXT])}</td><td class="number">{count:,}</td></tr>'
        for (outcome, reason), count in contents.reasons.most_common(NUM_REASONS)
    )
    table = (
        '<div class="scroll"><table class="reasons"><thead><tr><th>Dead letters</th><th>Why, in the end</th>'
        f'<th class="number">Rows</th></tr></thead><tbody>{why}</tbody></table></div>'
    )
    return (
        f'<section id="outcomes"><h2>What became of the rows</h2><div class="lists">{"".join(parts)}</div>'
        f"{table if why else ''}</section>"
    )


def rules(contents: Contents) -> str:
    """Every rule that was checked, those that never fired with 0."""
    attempts = attempts_of(contents)
    columns = "".join(f'<th class="number">at {escape(attempt)}</th>' for attempt in attempts)
    lines = []
    for name, rule in rules_by_count(contents):
        cells = "".join(f'<td class="number">{rule.get("by_attempt", {}).get(a, 0):,}</td>' for a in attempts)
        never = "" if rule["count"] else ' class="never"'
        fired = " fired" if rule["count"] else ""
        lines.append(
            f"<tr{never}><td><code>{_breakable(name)}</code><small>{escape(rule.get('meaning', ''))}</small>"
            f"{_examples(contents, rule)}</td>"
            f'<td class="number{fired}">{rule["count"]:,}</td>{cells}</tr>'
        )
    note = "Attempt 0 is before a model was asked. " if "0" in attempts else ""
    return (
        '<section id="rules"><h2>Rules</h2><p class="lead">How often an answer broke each, at which attempt. '
        f"{note}An answer can break several; it is then asked for again.</p>"
        '<div class="scroll"><table class="rules"><thead><tr><th>Rule, and what it asks for</th>'
        f'<th class="number">Fired</th>{columns}</tr></thead><tbody>{"".join(lines)}</tbody></table></div></section>'
    )


def _examples(contents: Contents, rule: Mapping[str, Any]) -> str:
    """Answers that broke the rule, to be unfolded."""
    answers = "".join(
        f"<dt>{escape(example[contents.key])}, attempt {example['attempt']}</dt>"
        f"<dd>{escape(example['answer'][:MAX_TEXT])}</dd>"
        for example in rule["examples"]
        if example["answer"]
    )
    return f'<details><summary>answers</summary><dl class="fields">{answers}</dl></details>' if answers else ""


def figures(contents: Contents) -> str:
    tokens = [(name.replace("_", " "), counts) for name, counts in contents.tokens.items()]
    lengths = [(f"{name}, characters", counts) for name, counts in contents.lengths.items() if any(counts)]
    charts = "".join(
        f"<div><h3>{escape(name)}</h3>{bars(histogram(counts))}</div>" for name, counts in [*tokens, *lengths] if counts
    )
    return (
        '<section id="lengths"><h2>Tokens and lengths</h2><p class="lead">Tokens of each row\'s last answers; texts of '
        f'good rows.</p><div class="lists">{charts}</div></section>'
    )


def rows(contents: Contents) -> str:
    """Good rows and dead letters, with buttons that choose among them."""
    samples = [*contents.good, *contents.bad]
    if not samples:
        return ""
    kinds = sorted({_kind(contents, sample) for sample in samples} - {""})
    buttons = filter_buttons("right", "outcome", [("", "All rows"), ("yes", "Good"), ("no", "Dead letters")])
    if len(kinds) > 1:
        buttons += filter_buttons("type", contents.kind, [("", "All kinds"), *((kind, kind) for kind in kinds)])
    lost = f'<p class="note">{escape(contents.no_pictures)}</p>' if contents.no_pictures else ""
    items = "".join(_items(contents, samples))
    return (
        '<section id="rows" class="gallery"><h2>See for yourself</h2><p class="lead">Rows from all over the tables, '
        "the same at each look: good ones of every kind in turn, dead letters of every reason in turn.</p>"
        f'<div class="filters">{buttons}</div><p class="count" aria-live="polite"></p>{lost}{items}</section>'
    )


def _kind(contents: Contents, sample: Sample) -> str:
    return (sample.row[contents.kind] or "") if contents.kind else ""


def _items(contents: Contents, samples: Sequence[Sample]) -> Iterator[str]:
    room = MAX_PICTURES_LENGTH
    for sample in samples:
        shown = []
        for name, data in sample.pictures.items():
            element = picture(data, f"{name} of {sample.key}")
            if len(element) > room:
                element = '<div class="missing">left out: the page is full</div>'
            room -= len(element)
            shown.append(f"<figure>{element}<figcaption>{escape(name.replace('_', ' '))}</figcaption></figure>")
        yield _item(contents, sample, shown)


def _item(contents: Contents, sample: Sample, figures: Sequence[str]) -> str:
    row, is_good, kind = sample.row, sample.row["outcome"] == "ok", _kind(contents, sample)
    verdict = '<span class="ok">ok</span>' if is_good else f'<span class="not">{escape(row["outcome"])}</span>'
    why = "" if is_good else f"<dt>reason</dt><dd>{escape((row['reason'] or '')[:MAX_TEXT])}</dd>"
    if sample.answer is not None:
        why += f"<dt>the last answer</dt><dd>{escape(sample.answer[:MAX_TEXT]) or '(empty)'}</dd>"
    tail = {name for name, _ in OUTCOME_COLUMNS}
    fields = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value)[:MAX_TEXT])}</dd>"
        for name, value in row.items()
        if value not in (None, "") and name not in {contents.key, contents.kind} and name not in tail
    )
    counts = (
        f"{row['attempts']} {'attempt' if row['attempts'] == 1 else 'attempts'} · {row['prompt_tokens']} + "
        f"{row['completion_tokens']} tokens"
    )
    strip = f'<div class="strip" style="--n:{len(figures)}">{"".join(figures)}</div>' if figures else ""
    return (
        f'<article class="item" data-type="{escape(kind)}" data-right="{"yes" if is_good else "no"}"><h3>{verdict} '
        f"{escape(kind)}<small>{escape(sample.key)} · {counts}</small></h3>"
        f'<div class="{"row" if strip else ""}">{strip}<dl class="fields">{why}{fields}</dl></div></article>'
    )
