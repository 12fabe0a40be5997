"""What an engine says of its own work: the gate on the error rate, and the report on the rules."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.dag import Context
from cluster.errors import UserError
from stages.caption.asking import Asking
from stages.caption.rule import Rule

_NUM_EXAMPLES = 3
_NUM_WORDS = 100


def check_error_rate(
    num_bad: int, total: int, reasons: collections.Counter[str], error_rate_limit: float, unit: str, context: Context
) -> None:
    if num_bad > error_rate_limit * total:
        worst = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        raise UserError(
            f"{context.stage}: {num_bad} of the first {total} {unit}s came to nothing, more than "
            f"error_rate_limit={error_rate_limit:g} allows. Most often: {worst}. Look at rules/ in the "
            "stage's folder; then change the model, what it is asked, or the temperatures, or raise the limit with "
            f"--set {context.stage}.error_rate_limit=RATE."
        )


def dead_letters_name(shard: str) -> str:
    """The table of the rows of a shard that came to nothing; it is there if there are any."""
    return f"dead_letters/{pathlib.PurePosixPath(shard).name}"


def broken_name(shard: str) -> str:
    """The file of a shard's answers that broke rules."""
    return f"rules/{pathlib.PurePosixPath(shard).stem}.json"


def what_became(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """The outcome of what was asked about, and the reasons, from all rows of its key: ok if one of them is, or if
    none says otherwise; else the first one's outcome for the reasons of all.
    """
    bad = [row for row in rows if row.get("outcome", "ok") != "ok"]
    if not bad or len(bad) < len(rows):
        return "ok", []
    return bad[0]["outcome"], list(dict.fromkeys(reason for row in bad for reason in row["reason"].split("; ")))


def count_rules(rules: Iterable[Rule], broken: Iterable[Mapping[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """How often each rule was broken, {name: meaning, count, by_attempt, words, examples}; 0 where it never was.

    by_attempt: attempt 0 is before a model was asked. words: of reasons `NAME:WORD`, how often each was it.
    """
    found = {
        str(rule): {"meaning": rule.meaning, "count": 0, "by_attempt": {}, "words": {}, "examples": []}
        for rule in rules
    }
    for item in broken:
        for reason in item["reasons"]:
            name, _, word = reason.partition(":")
            rule = found.setdefault(name, {"meaning": "", "count": 0, "by_attempt": {}, "words": {}, "examples": []})
            rule["count"] += 1
            rule["by_attempt"][str(item["attempt"])] = rule["by_attempt"].get(str(item["attempt"]), 0) + 1
            word = word.strip()
            if word and (word in rule["words"] or len(rule["words"]) < _NUM_WORDS):
                rule["words"][word] = rule["words"].get(word, 0) + 1
            if len(rule["examples"]) < _NUM_EXAMPLES:
                rule["examples"].append({name: item[name] for name in (key, "attempt", "answer")})
    return found


def write_report(asking: Asking, shards: Sequence[str], error_rate_limit: float, context: Context) -> None:
    """Sums up all shards, those of an earlier attempt too: `rules.json`, figures, and the gate once more.

    One shard's rows are in memory at a time.
    """
    names = (asking.key, "outcome", "reason", "attempts", asking.tally, asking.part)
    columns = [name for name in dict.fromkeys(names) if name]
    written = set(context.out.list(".parquet", recursive=True))
    outcomes, reasons, tally, refused = (collections.Counter[str]() for _ in range(4))
    num_good = num_first = num_attempts = num_unfit = 0
    for shard in shards:
        rows_of: dict[str, list[dict[str, Any]]] = {}  # all rows of a key are in one shard
        for table in (shard, dead_letters_name(shard)):
            for row in context.out.read_table(table, columns).to_pylist() if table in written else ():
                rows_of.setdefault(row[asking.key], []).append(row)
        for rows in rows_of.values():
            outcome, found = what_became(rows)
            outcomes[outcome] += 1
            reasons.update(["; ".join(found)] if found else [])
            num_unfit += bool(found) and asking.unfit.issuperset(found)
            num_attempts += rows[0]["attempts"]
            num_first += outcome == "ok" and rows[0]["attempts"] <= 1
            for row in rows:
                if row["outcome"] == "ok":
                    num_good += 1
                    tally.update([row[asking.tally]] if asking.tally else [])
                elif asking.part and row[asking.part] is not None:
                    refused[row["reason"]] += 1
    num_asked, num_ok = outcomes.total(), outcomes["ok"]
    num_bad = num_asked - num_ok - num_unfit
    check_error_rate(num_bad, num_asked, reasons, error_rate_limit, asking.unit, context)
    broken = (item for shard in shards for item in context.out.read_json(broken_name(shard)))
    rules = count_rules(asking.all_rules, broken, asking.key)
    figures = {
        f"num_{asking.table}": num_good,
        "num_dead_letters": num_asked - num_ok,
        "outcomes": dict(sorted(outcomes.items())),
        "ok_at_first_attempt": num_first / num_asked,
        f"attempts_per_{asking.unit}": num_attempts / num_asked,
        "rules_broken": {name: rule["count"] for name, rule in sorted(rules.items()) if rule["count"]},
    }
    if asking.part:
        figures[f"{asking.part}s_refused"] = dict(sorted(refused.items()))
    if asking.tally:
        figures[f"{asking.tally}s"] = dict(sorted(tally.items()))
    context.out.write_json("rules.json", figures | {"rules": rules})
    context.set_rows(num_good)
    context.set_figures(figures)
