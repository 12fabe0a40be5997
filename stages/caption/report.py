"""What the caption stage says of its own work: the gate on the error rate, and the report on the rules."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.dag import Context
from cluster.errors import UserError

_NUM_EXAMPLES = 3


def check_error_rate(outcomes: Mapping[str, int], reasons: collections.Counter[str], error_rate_limit: float) -> None:
    total = sum(outcomes.values())
    num_bad = total - outcomes.get("ok", 0)
    if num_bad > error_rate_limit * total:
        worst = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        raise UserError(
            f"caption: {num_bad} of the first {total} images have no edit tuple, more than "
            f"error_rate_limit={error_rate_limit:g} allows. Most often: {worst}. Look at rules/ in the "
            "stage's folder; then change the model, edit_types or temperatures, or raise the limit with "
            "--set caption.error_rate_limit=RATE."
        )


def write_report(shards: Sequence[str], error_rate_limit: float, context: Context) -> None:
    """Sums up all shards, those of an earlier attempt too: `rules.json`, figures, and the gate once more."""
    rows: list[dict[str, Any]] = []
    rules: dict[str, dict[str, Any]] = {}
    for shard in shards:
        name = shard.removeprefix("tuples/")
        for table in (shard, f"dead_letters/{name}"):
            if context.out.exists(table):
                rows += context.out.read_table(table, ["outcome", "reason", "edit_type", "attempts"]).to_pylist()
        for item in context.out.read_json(f"rules/{name.removesuffix('.parquet')}.json"):
            for reason in item["reasons"]:
                rule = rules.setdefault(reason, {"count": 0, "examples": []})
                rule["count"] += 1
                if len(rule["examples"]) < _NUM_EXAMPLES:
                    rule["examples"].append({key: item[key] for key in ("sample_id", "attempt", "answer")})
    outcomes = collections.Counter(row["outcome"] for row in rows)
    check_error_rate(outcomes, collections.Counter(row["reason"] for row in rows if row["reason"]), error_rate_limit)
    num_first = sum(row["outcome"] == "ok" and row["attempts"] == 1 for row in rows)
    figures = {
        "num_tuples": outcomes["ok"],
        "num_dead_letters": len(rows) - outcomes["ok"],
        "outcomes": dict(sorted(outcomes.items())),
        "edit_types": dict(sorted(collections.Counter(r["edit_type"] for r in rows if r["outcome"] == "ok").items())),
        "ok_at_first_attempt": num_first / len(rows),
        "attempts_per_image": sum(row["attempts"] for row in rows) / len(rows),
        "rules_broken": {name: rule["count"] for name, rule in sorted(rules.items())},
    }
    context.out.write_json("rules.json", figures | {"rules": rules})
    context.set_rows(outcomes["ok"])
    context.set_figures(figures)
