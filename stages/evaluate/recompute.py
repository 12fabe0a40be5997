"""Computes every figure of a finished run again from its tables of scores alone, and holds it against what was
written: the figures' tables, the run's summary, and the judge's scores against its raw replies.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster.artifacts import Artifact, Manifest, artifact_folder, read_artifact
from cluster.errors import RequestError, UserError
from cluster.folder import Folder
from stages.evaluate.discrimination import WITHIN_ITEMS, discrimination
from stages.evaluate.figures import Comparison, Figure, Problem, Rescored
from stages.evaluate.judge_replies import NOISE, NOISE_SCHEMA, REPLIES, REPLIES_SCHEMA, judge_noise
from stages.evaluate.judges.tasks import get_judge
from stages.evaluate.perception.scores import NO_DIRECTION
from stages.evaluate.raw_replies import SCORES, check_columns, check_texts, check_tifa, same_value
from stages.evaluate.settings import EvaluateConfig
from stages.evaluate.summary import ALL, MACRO, SCORES_SCHEMA, compare, judge_agreement, results, summarise

COMPARISONS = "figures/comparisons.parquet"
NAMES = ("method", "item_id", "source_id", "edit_type")
UNDEFINED = f"clip_directional: {NO_DIRECTION}"
TABLES = {  # the written tables, and what identifies a row of each
    "figures/summary.parquet": ("method", "edit_type", "metric"),
    COMPARISONS: ("first", "second", "edit_type", "metric"),
    "figures/agreement.parquet": ("method", "judge_metric"),
    "figures/discrimination.parquet": ("metric", "oracle_metric", "scope"),
}


def recompute_run(summary_url: str) -> Rescored:
    """Of the run whose `summary.json` (or `latest.json`) this is: every stage that has a table of scores is a task.

    Raises:
        RequestError: there is no such file, or it is no run's summary.
        UserError: no stage of the run has scores.
    """
    if "://" not in summary_url:
        summary_url = os.path.abspath(os.path.expanduser(summary_url))
    place, _, name = summary_url.rpartition("/")
    try:
        summary = Folder(place).read_json(name)
        stages = {stage: dict(record) for stage, record in summary["stages"].items()}
    except OSError:
        raise RequestError(f"{summary_url}: there is no such file. Give a run's summary.json.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{summary_url}: is no run's summary ({error}).") from None
    result, num_found = Rescored(), 0
    for stage, record in stages.items():
        artifact = _find(summary_url, stage, record)
        if artifact is not None:
            num_found += 1
            try:
                _recompute(artifact, summary.get("results") or {}, name, result)
            except UserError as error:
                result.problems.append(Problem(stage, "", str(error)))
        elif stage.startswith("evaluate") and record.get("status") in ("ran", "cached"):
            missing = f"its {SCORES} is neither under the summary's root nor at {record.get('artifact')}."
            result.problems.append(Problem(stage, "", missing))
    if not num_found:
        raise UserError(f"{summary_url}: no stage of this run has a {SCORES} that can be found.")
    return result


def _find(summary_url: str, stage: str, record: Mapping[str, Any]) -> Artifact | None:
    """The stage's artifact if it has scores: under the summary's own root, else where the run left it."""
    fingerprint = record.get("fingerprint") or ""
    levels = summary_url.rsplit("/", 3)[0], summary_url.rsplit("/", 2)[0]  # <root>/runs/<id>/summary.json, latest.json
    recorded = (record.get("artifact") or "").rsplit("/", 2)[0]
    for root in dict.fromkeys((*levels, recorded)):
        if not fingerprint or not root or not artifact_folder(Folder(root), stage, fingerprint).exists(SCORES):
            continue
        artifact = read_artifact(Folder(root), stage, fingerprint)
        if artifact is not None:
            return artifact
    return None


def _recompute(artifact: Artifact, written_results: Mapping[str, Any], summary_name: str, result: Rescored) -> None:
    task, folder, manifest = artifact.stage, artifact.folder, artifact.manifest
    scores, unscored = _read_scores(folder, task)
    result.problems += unscored
    result.notes += _undefined(task, scores)
    replies = _written(artifact, REPLIES, result, REPLIES_SCHEMA.names)
    if replies is not None:
        judge = get_judge(manifest.config["judge_task"])  # what its numbers mean doesn't depend on its words
        result.problems += check_columns(task, scores, judge, replies)
        noise = judge_noise(judge, replies)
        if (written := _written(artifact, NOISE, result, NOISE_SCHEMA.names)) is not None:
            result.problems += _differences(f"{task}/{NOISE}", noise, written, ("method", "metric"))
        result.figures += _noise_figures(task, noise, len(set(scores["item_id"].to_pylist())))
    else:  # a run before there was such a table
        result.problems += check_texts(task, scores)
    result.problems += check_tifa(task, scores)
    options = _options(manifest)
    tables = {
        "figures/summary.parquet": summarise(scores, **options),
        COMPARISONS: compare(scores, **options),
        "figures/agreement.parquet": judge_agreement(scores),
        "figures/discrimination.parquet": discrimination(scores, **options),
    }
    for name, table in tables.items():
        if (written := _written(artifact, name, result, TABLES[name])) is not None:
            if name == COMPARISONS and "p_floor" not in written.column_names:
                result.notes.append(_older_p_values(task, table, written, options))
                written = written.drop_columns(["p_value", "p_holm"])
            result.problems += _differences(f"{task}/{name}", table, written, TABLES[name])
    summary = tables["figures/summary.parquet"]
    methods = list(dict.fromkeys(scores["method"].to_pylist()))
    num_expected = len(set(scores["item_id"].to_pylist()))
    prefix = _prefix(manifest, methods)
    for method, values in results(summary, methods, num_expected).items():
        written = written_results.get(prefix + method)
        for name, value in values.items() if written is not None else ():
            if name in written and not same_value(value, written[name]):
                reason = f"the run wrote {written[name]}, its table of scores gives {value}."
                result.problems.append(Problem(summary_name, f"results, {prefix + method}, {name}", reason))
    result.figures += [_figure(task, row) for row in summary.to_pylist()]
    result.figures += _agreement_figures(task, tables["figures/agreement.parquet"])
    result.figures += _discrimination_figures(task, tables["figures/discrimination.parquet"])
    result.comparisons += [
        Comparison(
            task, r["first"], r["second"], f"{r['metric']}_mean", r["difference"], r["low"], r["high"], r["p_value"],
            r["p_floor"], r["p_holm"], r["num_items"],
        )
        for r in tables[COMPARISONS].to_pylist()
        if r["edit_type"] == ALL
    ]  # fmt: skip


def _written(artifact: Artifact, name: str, result: Rescored, columns: Sequence[str] = ()) -> pa.Table | None:
    """A table that the run wrote; None if it wrote none, and with a problem where it can't be read any more, or lacks
    one of the `columns`.
    """
    if not artifact.folder.exists(name) and name not in artifact.manifest.files:
        return None
    try:
        table = artifact.folder.read_table(name)
        if not (lacking := [column for column in columns if column not in table.column_names]):
            return table
        reason = f"has no column {lacking[0]!r}"
    except (OSError, pa.ArrowInvalid) as error:
        reason = "is gone" if isinstance(error, FileNotFoundError) else f"can't be read ({error})"
    result.problems.append(Problem(f"{artifact.stage}/{name}", "", f"{reason}, so nothing is held against it."))
    return None


def _read_scores(folder: Folder, task: str) -> tuple[pa.Table, list[Problem]]:
    """One row for every method and item, with the columns that are known today (an older run has fewer).

    Of two rows for one item neither counts; those and missing ones become unscored rows.
    """
    try:
        table = folder.read_table(SCORES)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{folder.path(SCORES)}: can't be read ({error}), so {task} has no figures.") from None
    if not set(NAMES) <= set(table.column_names):
        raise UserError(f"{folder.path(SCORES)}: has no columns {', '.join(NAMES)}, which every figure needs.")
    columns = [
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(table.num_rows, f.type)
        for f in SCORES_SCHEMA
    ]
    rows = pa.Table.from_arrays(columns, schema=SCORES_SCHEMA).to_pylist()
    times = collections.Counter((row["method"], row["item_id"]) for row in rows)
    known = {(row["method"], row["item_id"]): row for row in rows}
    items = {row["item_id"]: {name: row[name] for name in NAMES if name != "method"} for row in rows}
    whole = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for item_id, names in items.items():
            if times[method, item_id] == 1:
                whole.append(known[method, item_id])
            else:
                reason = "there are two rows for it" if times[method, item_id] else "there is no row for it"
                whole.append(names | {"method": method, "unscored": reason})
    return pa.Table.from_pylist(whole, SCORES_SCHEMA), [
        Problem(f"{task}/{SCORES}", f"{row['method']} {row['item_id']}", f"unscored ({row['unscored']}).")
        for row in whole
        if row["unscored"] and row["unscored"] != UNDEFINED
    ]


def _undefined(task: str, scores: pa.Table) -> list[str]:
    """A remark on the edits that are their sources: nothing went wrong, but a copy has no `clip_directional`."""
    num = collections.Counter(row["method"] for row in scores.to_pylist() if row["unscored"] == UNDEFINED)
    return [f"{task}: {method} has {n} without a clip_directional: {NO_DIRECTION}." for method, n in num.items()]


def _options(manifest: Manifest) -> dict[str, Any]:
    """How the stage was told to compute its figures; the defaults where the manifest doesn't say."""
    names = ("seed", "confidence", "num_resamples")
    return {name: manifest.config.get(name, EvaluateConfig.model_fields[name].default) for name in names}


def _prefix(manifest: Manifest, methods: Sequence[str]) -> str:
    """What the run put before this stage's methods in its results."""
    written = list(manifest.figures.get("results") or {})
    return written[0].removesuffix(methods[0]) if written and methods else ""


def _differences(name: str, computed: pa.Table, written: pa.Table, keys: Sequence[str]) -> Iterable[Problem]:
    """Rows of a written table that are not what the scores give, in the columns and kinds of rows that it has."""

    def by_key(table: pa.Table) -> dict[tuple[str, ...], dict[str, Any]]:
        return {tuple(row[key] for key in keys): row for row in table.to_pylist()}

    ours, theirs = by_key(computed), by_key(written)
    has_macro = any(MACRO in key for key in theirs)  # runs before there was such a row have none
    for key in ours.keys() | theirs.keys() if has_macro else {k for k in ours if MACRO not in k} | theirs.keys():
        if key not in ours or key not in theirs:
            where = "the run wrote this row, its scores don't give it" if key in theirs else "the run lacks this row"
            yield Problem(name, " ".join(key), f"{where}.")
            continue
        for column in written.column_names:
            if column in computed.column_names and not same_value(ours[key][column], theirs[key][column]):
                reason = f"the run wrote {theirs[key][column]}, its table of scores gives {ours[key][column]}."
                yield Problem(name, f"{' '.join(key)} {column}", reason)


def _older_p_values(task: str, computed: pa.Table, written: pa.Table, options: Mapping[str, Any]) -> str:
    """What to know of a run that drew as few sign patterns for many pairs as for one: its table names no `p_floor`."""

    def told_apart(table: pa.Table) -> int:
        return sum(p is not None and p < 1 - options["confidence"] for p in table["p_holm"].to_pylist())

    return (
        f"{task}/{COMPARISONS}: an older run, with {options['num_resamples']} sign patterns however many pairs are "
        f"corrected; its p-values are not held against these, which are of more. By p_holm {told_apart(written)} of "
        f"{written.num_rows} pairs were told apart, now {told_apart(computed)}."
    )


def _figure(task: str, row: Mapping[str, Any]) -> Figure:
    kind = {ALL: "micro_mean", MACRO: "macro_mean"}.get(row["edit_type"], "mean")
    category = ALL if row["edit_type"] in (ALL, MACRO) else row["edit_type"]
    return Figure(
        task, row["method"], f"{row['metric']}_{kind}", row["mean"], row["num_items"], row["num_expected"], row["low"],
        row["high"], category,
    )  # fmt: skip


def _noise_figures(task: str, noise: pa.Table, num_expected: int) -> list[Figure]:
    """The judge's own noise, where it judged more than once."""
    return [
        Figure(task, row["method"], f"{row['metric']}_{name}_over_passes", row[name], row["num_items"], num_expected)
        for row in noise.to_pylist()
        for name in ("std_of_items", "std_of_means")
    ]


def _agreement_figures(task: str, agreement: pa.Table) -> list[Figure]:
    figures = []
    for row in agreement.to_pylist():
        what = f"{row['judge_metric']}_with_{row['oracle_metric']}"
        for name in ("agreement", "kappa"):
            n = row["num_items"]
            figures.append(Figure(task, row["method"], f"{what}_{name}", row[name], n, n))
    return figures


def _discrimination_figures(task: str, discrimination: pa.Table) -> list[Figure]:
    """Areas under the ROC curve: n edits of all methods are in it, of those that the oracle has judged."""
    figures, num_judged = [], {}
    for row in discrimination.to_pylist():
        within = "_within_items" if row["scope"] == WITHIN_ITEMS else ""
        n = row["num_right"] + row["num_wrong"]
        num_judged.setdefault(row["oracle_metric"], n + row["num_unscored"])  # the pooled row comes first
        name = f"{row['metric']}_auc_of_{row['oracle_metric']}{within}"
        figures.append(
            Figure(task, ALL, name, row["auc"], n, num_judged[row["oracle_metric"]], row["low"], row["high"])
        )
    return figures
