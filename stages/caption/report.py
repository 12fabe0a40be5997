"""What an engine says of its own work: the gate on the error rate, and the report on the rules."""

from __future__ import annotations

import collections
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.dag import Context
from cluster.errors import UserError
from stages.caption.rule import Rule

if TYPE_CHECKING:
    from stages.caption.asking import Asking

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
    """Sums up all shards, those of an earlier attempt too: `rules.json`, figures, and the gate once more."""
    tally = [asking.tally] if asking.tally else []
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for shard in shards:
        for table in (shard, dead_letters_name(shard)):
            if context.out.exists(table):
                columns = [asking.key, "outcome", "reason", "attempts", *tally, *([asking.part] if asking.part else [])]
                for row in context.out.read_table(table, columns).to_pylist():
                    rows_of.setdefault(row[asking.key], []).append(row)
    rows = list(itertools.chain(*rows_of.values()))
    broken = (item for shard in shards for item in context.out.read_json(broken_name(shard)))
    rules = count_rules(asking.all_rules, broken, asking.key)
    num_good = sum(row["outcome"] == "ok" for row in rows)
    became = [what_became(found) for found in rows_of.values()]  # each that was asked about
    outcomes = collections.Counter(outcome for outcome, _ in became)
    reasons = collections.Counter("; ".join(found) for _, found in became if found)
    num_unfit = sum(bool(found) and asking.unfit.issuperset(found) for _, found in became)
    num_bad = len(became) - outcomes["ok"] - num_unfit
    check_error_rate(num_bad, len(became), reasons, error_rate_limit, asking.unit, context)
    attempts = [found[0]["attempts"] for found in rows_of.values()]
    num_first = sum(outcome == "ok" and num <= 1 for (outcome, _), num in zip(became, attempts, strict=True))
    figures = {
        f"num_{asking.table}": num_good,
        "num_dead_letters": len(became) - outcomes["ok"],
        "outcomes": dict(sorted(outcomes.items())),
        "ok_at_first_attempt": num_first / len(became),
        f"attempts_per_{asking.unit}": sum(attempts) / len(became),
        "rules_broken": {name: rule["count"] for name, rule in sorted(rules.items()) if rule["count"]},
    }
    if asking.part:
        refused = [row["reason"] for row in rows if row["outcome"] != "ok" and row[asking.part] is not None]
        figures[f"{asking.part}s_refused"] = dict(sorted(collections.Counter(refused).items()))
    for name in tally:
        counts = collections.Counter(row[name] for row in rows if row["outcome"] == "ok")
        figures[f"{name}s"] = dict(sorted(counts.items()))
    context.out.write_json("rules.json", figures | {"rules": rules})
    context.set_rows(num_good)
    context.set_figures(figures)
