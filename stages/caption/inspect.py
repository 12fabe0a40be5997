"""Shows what a data engine made: what became of its rows, which rules fired at which attempt and at which answers,
tokens, lengths, kinds.

    python -m stages.caption.inspect runs/caption/82e197e511a9a89c --html look.html

With --html the same as one self-contained page, with rows and the pictures that they are about.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cluster.errors import RequestError, UserError, exit_code
from stages.caption.contents import Contents, read_contents
from stages.report.charts import nice_ticks

BAR = 32  # characters
NUM_BINS = 8
NUM_REASONS = 12
MAX_ANSWER = 600  # characters


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 if there is no such artifact, or the page can't be written."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", metavar="DIR", help="a folder ROOT/STAGE/FINGERPRINT: a path or an fsspec URL")
    parser.add_argument("--html", metavar="OUT.html", help="write a page, too")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: _inspect(arguments.artifact, arguments.html))


def _inspect(artifact: str, html: str | None) -> None:
    try:
        contents = read_contents(artifact)
    except UserError as error:
        raise RequestError(str(error)) from None
    with contextlib.suppress(BrokenPipeError):  # `| head` has seen enough
        print(show(contents), flush=True)
    if not html:
        return
    from stages.caption.inspect_page import render

    try:
        Path(html).write_text(render(contents), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{html} can't be written: {error}") from None
    print(f"\n{html}")


def show(contents: Contents) -> str:
    """All counts in print, with bars."""
    manifest, asked = contents.manifest, contents.outcomes.total()
    parts = [
        f"{manifest.stage} {manifest.fingerprint}: {contents.num_good:,} good rows of {asked:,} that were asked about, "
        f"by {manifest.config['engine']['model']} in {manifest.seconds:,.0f} s",
        section("Outcome", contents.outcomes.most_common()),
    ]
    if contents.reasons:
        parts.append(
            section("Why not", [(f"{o}: {r[:60]}", n) for (o, r), n in contents.reasons.most_common(NUM_REASONS)])
        )
    parts.append(section("Attempts", sorted(contents.attempts.items())))
    if contents.kind:
        kinds = {name: counts["ok"] for name, counts in sorted(contents.kinds.items())}
        parts.append(section(f"Good rows by {contents.kind}", list(kinds.items())))
    for name, counts in [*contents.tokens.items(), *((f"{n}, characters", c) for n, c in contents.lengths.items())]:
        parts.append(section(name, histogram(counts)))
    return "\n\n".join(filter(None, [*parts, rule_table(contents), examples(contents)]))


def section(title: str, counts: Sequence[tuple[object, int]]) -> str:
    """A title and a line with a bar for each count."""
    if not counts:
        return f"{title}: none"
    width = max(len(str(label)) for label, _ in counts)
    most, total = max(max(count for _, count in counts), 1), max(sum(count for _, count in counts), 1)
    lines = [
        f"  {label!s:{width}}  {count:>9,} {count / total:>5.0%}  {'█' * round(BAR * count / most)}"
        for label, count in counts
    ]
    return "\n".join([title, *lines])


def histogram(counts: Mapping[int, int]) -> list[tuple[str, int]]:
    """Whole numbers in at most some NUM_BINS ranges between round ones, (`low to high`, how many)."""
    if not counts:
        return []
    low, high = min(counts), max(counts)
    if low == high:
        return [(str(low), counts[low])]
    edges = sorted({int(tick) for tick in nice_ticks(low, high + 1, NUM_BINS)})
    found = [0] * (len(edges) - 1)
    for value, count in counts.items():
        found[min(bisect.bisect_right(edges, value) - 1, len(found) - 1)] += count
    spans = [f"{a}" if b == a + 1 else f"{a} to {b - 1}" for a, b in zip(edges, edges[1:], strict=False)]
    return list(zip(spans, found, strict=True))


def attempts_of(contents: Contents) -> list[str]:
    """The attempts at which any rule fired; "0" is before a model was asked."""
    found: Iterable[str] = {attempt for rule in contents.rules.values() for attempt in rule.get("by_attempt", {})}
    return sorted(found, key=int)


def rules_by_count(contents: Contents) -> list[tuple[str, dict]]:
    return sorted(contents.rules.items(), key=lambda item: (-item[1]["count"], item[0]))


def rule_table(contents: Contents) -> str:
    """How often each rule fired, at each attempt, those that never did with 0."""
    attempts = attempts_of(contents)
    width = max((len(name) for name in contents.rules), default=4)
    head = f"  {'rule':{width}} {'fired':>7}" + "".join(f" {'at ' + a:>6}" for a in attempts)
    lines = [
        f"  {name:{width}} {rule['count']:>7,}"
        + "".join(f" {rule.get('by_attempt', {}).get(a, 0):>6,}" for a in attempts)
        + f"  {rule.get('meaning', '')}"
        for name, rule in rules_by_count(contents)
    ]
    return "\n".join(["Rules, by attempt", head, *lines])


def examples(contents: Contents) -> str:
    """An answer that broke each rule that fired, with the row that it is about."""
    lines = []
    for name, rule in rules_by_count(contents):
        if example := next((example for example in rule["examples"] if example["answer"]), None):
            answer = " ".join(example["answer"].split())
            lines += [
                f"  {name}: {example[contents.key]}",
                textwrap.indent(textwrap.shorten(answer, MAX_ANSWER), "    "),
            ]
    return "\n".join(["Answers that broke them, one for each", *lines]) if lines else ""


if __name__ == "__main__":
    sys.exit(main())
