"""What an engine says of its own work: the gate on the error rate, and the report on the rules."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster.dag import Context
from cluster.errors import UserError

if TYPE_CHECKING:
    from stages.caption.asking import Asking

_NUM_EXAMPLES = 3


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


def write_report(asking: Asking, shards: Sequence[str], error_rate_limit: float, context: Context) -> None:
    """Sums up all shards, those of an earlier attempt too: `rules.json`, figures, and the gate once more."""
    tally = [asking.tally] if asking.tally else []
    rows: list[dict[str, Any]] = []
    rules: dict[str, dict[str, Any]] = {}
    for shard in shards:
        name = pathlib.PurePosixPath(shard).name
        for table in (shard, f"dead_letters/{name}"):
            if context.out.exists(table):
                columns = [asking.key, "outcome", "reason", "attempts", *tally]
                rows += context.out.read_table(table, columns).to_pylist()
        for item in context.out.read_json(f"rules/{name.removesuffix('.parquet')}.json"):
            for reason in item["reasons"]:
                rule = rules.setdefault(reason, {"count": 0, "examples": []})
                rule["count"] += 1
                if len(rule["examples"]) < _NUM_EXAMPLES:
                    rule["examples"].append({key: item[key] for key in (asking.key, "attempt", "answer")})
    num_good = sum(row["outcome"] == "ok" for row in rows)
    asked = list({row[asking.key]: row for row in rows}.values())  # what was asked about, each once
    outcomes = collections.Counter(row["outcome"] for row in asked)
    reasons = collections.Counter(row["reason"] for row in asked if row["reason"])
    num_bad = len(asked) - outcomes["ok"] - sum(reasons[reason] for reason in asking.unfit)
    check_error_rate(num_bad, len(asked), reasons, error_rate_limit, asking.unit, context)
    num_first = sum(row["outcome"] == "ok" and row["attempts"] <= 1 for row in asked)
    figures = {
        f"num_{asking.table}": num_good,
        "num_dead_letters": len(asked) - outcomes["ok"],
        "outcomes": dict(sorted(outcomes.items())),
        "ok_at_first_attempt": num_first / len(asked),
        f"attempts_per_{asking.unit}": sum(row["attempts"] for row in asked) / len(asked),
        "rules_broken": {name: rule["count"] for name, rule in sorted(rules.items())},
    }
    for name in tally:
        counts = collections.Counter(row[name] for row in rows if row["outcome"] == "ok")
        figures[f"{name}s"] = dict(sorted(counts.items()))
    context.out.write_json("rules.json", figures | {"rules": rules})
    context.set_rows(num_good)
    context.set_figures(figures)
