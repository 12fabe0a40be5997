"""The table of the ablation: means over seeds beside the paper's figures, and how far the orderings agree."""

from __future__ import annotations

import html
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from stages.ablation.rows import Metric
    from stages.ablation.stage import AblationConfig

METRICS = ("edit_success", "preservation", "whole_scene_right")


def summary_table(scores: pa.Table, config: AblationConfig) -> pa.Table:
    """Per row: the mean of each metric over the seeds, its standard deviation over them, and the paper's figures."""
    table = []
    for name in config.rows:
        seeds: dict[int, list[tuple[bool, bool]]] = {}
        for score in scores.to_pylist():
            if score["row"] == name:
                seeds.setdefault(score["seed"], []).append((score["edit_success"], score["preservation"]))
        values: dict[str, Any] = {"row": name, "num_seeds": len(seeds), "num_items": len(next(iter(seeds.values())))}
        for metric, read in zip(METRICS, (lambda s: s[0], lambda s: s[1], all), strict=True):
            means = [float(np.mean([read(score) for score in done])) for done in seeds.values()]
            values[metric] = statistics.fmean(means)
            values[f"{metric}_sd"] = statistics.stdev(means) if len(means) > 1 else None
        paper = config.table.rows[name].paper
        table.append(values | {f"paper_{metric}": paper.get(metric) for metric in compared(config)})
    return pa.Table.from_pylist(table)


def compared(config: AblationConfig) -> tuple[Metric, ...]:
    """The metrics that the paper's table has something like."""
    rows = config.table.rows.values()
    return tuple(metric for metric in METRICS if any(metric in row.paper for row in rows))


def results(table: pa.Table) -> dict[str, dict[str, float]]:
    """`{row: {metric: number}}`, as the run's summary has it."""
    names = (*METRICS, *(f"{metric}_sd" for metric in METRICS), "num_seeds", "num_items")
    return {row["row"]: {name: row[name] for name in names if row[name] is not None} for row in table.to_pylist()}


def agreement(table: pa.Table, metric: Metric) -> list[tuple[str, str]]:
    """For each row but the full one that the paper has: does it lie on the same side of the full one as there?

    `(row, word)` with word `agrees`, `differs`, or `unclear` where the difference is within two standard errors of
    the seeds.
    """
    by_name = {row["row"]: row for row in table.to_pylist()}
    full = by_name.get("full")
    found = []
    for name, row in by_name.items():
        if full is None or name == "full" or row[f"paper_{metric}"] is None:
            continue
        ours, paper = row[metric] - full[metric], row[f"paper_{metric}"] - full[f"paper_{metric}"]
        spread = [r[f"{metric}_sd"] ** 2 / r["num_seeds"] for r in (row, full) if r[f"{metric}_sd"] is not None]
        if len(spread) < 2 or abs(ours) <= 2 * sum(spread) ** 0.5:
            found.append((name, "unclear"))
        else:
            found.append((name, "agrees" if (ours > 0) == (paper > 0) else "differs"))
    return found


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .7rem;border-bottom:1px solid #d9dee3;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}small{color:#5b6570}tr.full td{font-weight:600}
@media(prefers-color-scheme:dark){body{color:#e6e9ec;background:#14181c}th,td{border-color:#343b42}small{color:#9aa4ae}}
"""


def page(table: pa.Table, config: AblationConfig) -> str:
    """The table as one HTML page."""
    shown = compared(config)
    words = {metric: dict(agreement(table, metric)) for metric in shown}
    lines = []
    for row in table.to_pylist():
        name = row["row"]
        cells = [f"<td>{html.escape(config.table.rows[name].title)}</td>"]
        for metric in METRICS:
            sd = row[f"{metric}_sd"]
            spread = f" <small>&plusmn; {100 * sd:.1f}</small>" if sd is not None else ""
            cells.append(f"<td>{100 * row[metric]:.1f}{spread}</td>")
        for metric in shown:
            figure = row[f"paper_{metric}"]
            text = "" if figure is None else f"{figure:.3g} <small>{words[metric].get(name, '')}</small>"
            cells.append(f"<td>{text}</td>")
        lines.append(f'<tr class="{name}">{"".join(cells)}</tr>')
    num_seeds, num_items = table["num_seeds"][0], table["num_items"][0]
    train, method = config.train, config.table.method
    heads = "".join(f"<th>{metric.replace('_', ' ')}</th>" for metric in METRICS)
    heads += "".join(f"<th>paper: {metric.replace('_', ' ')}</th>" for metric in shown)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>{method} ablation</title>
<style>{_STYLE}</style>
<h1>{method}, one part taken away at a time</h1>
<p>Share of {num_items} held-out edits in percent, by the oracle: mean of {num_seeds} seeds and standard deviation over
them. Each training: {train.num_steps} steps of {train.batch_size} rows. Beside it the paper's {config.table.paper},
and whether the row lies on the same side of the full method as there
(<em>unclear</em>: within two standard errors).</p>
<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead><tbody>
{"".join(lines)}
</tbody></table></div></html>
"""
