"""ImgEdit-Bench's three score files, from the raw replies of its judge: three integers from 1 to 5 for each item."""

from __future__ import annotations

import collections
from collections.abc import Mapping

from cluster.folder import Folder
from stages.evaluate.judges.imgedit.judge import MAX_DIGITS


def item_score(reply: str) -> float | None:
    """The mean of a reply's scores to two decimals, as the official script reads them: all lines `NAME: INTEGER`.

    None where there is none.
    """
    ends = [line.strip().partition(": ")[2] for line in reply.splitlines()]
    scores = [int(end) for end in ends if end.isdecimal() and len(end) <= MAX_DIGITS]
    return round(sum(scores) / len(scores), 2) if scores else None


def type_scores(averages: Mapping[str, float], edit_types: Mapping[str, str]) -> dict[str, float]:
    """The mean score of every edit type, to two decimals."""
    by_type: dict[str, list[float]] = collections.defaultdict(list)
    for key, score in averages.items():
        by_type[edit_types[key]].append(score)
    return {name: round(sum(scores) / len(scores), 2) for name, scores in sorted(by_type.items())}


def write_scores(out: Folder, replies: Mapping[str, str], edit_types: Mapping[str, str]) -> None:
    """Writes `result.json` (replies), `average_score.json` (of items) and `typescore.json`, by the items' keys."""
    averages = {key: score for key, reply in replies.items() if (score := item_score(reply)) is not None}
    out.write_json("result.json", dict(replies))
    out.write_json("average_score.json", averages)
    out.write_json("typescore.json", type_scores(averages, edit_types))
