"""The judge's raw replies as a table, and what they say: columns of the scores, and the judge's own noise."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from cluster.chat import ChatReply
from stages.evaluate.judges.judge import Judge

REPLIES = "judge_replies.parquet"
REPLIES_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("method", pa.string()),
        ("judge", pa.string()),
        ("call", pa.string()),
        ("pass", pa.int32()),
        ("attempt", pa.int32()),
        ("text", pa.string()),
        ("error", pa.string()),
        ("finish_reason", pa.string()),
        ("logprobs", pa.string()),  # JSON {token: log-probability} of the first token, where the judge reads that
        ("prompt_version", pa.string()),
        ("prompt_hash", pa.string()),
        ("model", pa.string()),
        ("engine", pa.string()),
        ("request_hash", pa.string()),
        ("width", pa.int32()),  # of the edited picture as the judge saw it
        ("height", pa.int32()),
        ("source_sha256", pa.string()),
        ("image_sha256", pa.string()),
    ]
)
NOISE = "figures/judge_noise.parquet"
NOISE_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("metric", pa.string()),
        ("num_passes", pa.int64()),
        ("num_items", pa.int64()),
        ("std_of_items", pa.float64()),
        ("std_of_means", pa.float64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class JudgeReply:
    """What came of one call about an edit at one attempt of one pass, both from 0 on."""

    call: str
    num_pass: int
    attempt: int
    reply: ChatReply
    request_hash: str

    def row(self) -> dict[str, Any]:
        """The columns of REPLIES_SCHEMA that the reply itself fills."""
        logprobs = None if self.reply.logprobs is None else json.dumps(self.reply.logprobs, ensure_ascii=False)
        return {
            "call": self.call,
            "pass": self.num_pass,
            "attempt": self.attempt,
            "text": self.reply.text,
            "error": self.reply.error,
            "finish_reason": self.reply.finish_reason,
            "logprobs": logprobs,
            "request_hash": self.request_hash,
        }

    @staticmethod
    def of(row: Mapping[str, Any]) -> JudgeReply:
        return JudgeReply(row["call"], row["pass"], row["attempt"], chat_reply(row), row["request_hash"])


def chat_reply(row: Mapping[str, Any]) -> ChatReply:
    """The reply that a row keeps, as the engine gave it; token counts aren't kept. Damaged logprobs are an error."""
    error = row["error"]
    try:
        logprobs = json.loads(row["logprobs"]) if row["logprobs"] else None
    except ValueError:
        logprobs, error = None, f"the logprobs {row['logprobs'][:40]!r} are no JSON"
    return ChatReply("", row["text"], row["finish_reason"], logprobs=logprobs, error=error)


def read(judge: Judge, call: str, reply: ChatReply) -> dict[str, float] | str:
    """The columns that a reply fills, or why it fills none."""
    if reply.error is not None:
        return reply.error
    return judge.read(call, reply)


def by_pass(judge: Judge, replies: Iterable[JudgeReply]) -> tuple[dict[int, dict[str, float]], list[str]]:
    """The columns of each pass over an edit, and the reasons why others are missing. Of attempts the last counts."""
    last = {(r.num_pass, r.call): r for r in sorted(replies, key=lambda r: r.attempt)}
    passes: dict[int, dict[str, float]] = {}
    reasons = set()
    for (index, call), reply in sorted(last.items()):
        values = read(judge, call, reply.reply)
        if isinstance(values, str):
            reasons.add(f"judge {call}: {values}")
        else:
            passes.setdefault(index, {}).update(values)
    for values in passes.values():
        values |= judge.score(values)
    return passes, sorted(reasons)


def columns_of(judge: Judge, replies: Iterable[JudgeReply]) -> dict[str, Any]:
    """An edit's columns of the scores: means over the passes that could be read, and the texts of the first pass.

    `unscored` says why there is no overall score; a column that no pass gives is left out.
    """
    replies = list(replies)
    passes, reasons = by_pass(judge, replies)
    columns: dict[str, Any] = {}
    for name in judge.columns:
        if values := [found[name] for found in passes.values() if name in found]:
            columns[name] = statistics.fmean(values)
    for reply in sorted(replies, key=lambda r: r.attempt):
        if reply.num_pass == 0 and reply.call in judge.text_columns:
            columns[judge.text_columns[reply.call]] = reply.reply.text
    return columns | {"unscored": None if judge.overall in columns else "; ".join(reasons)}


def grouped(replies: pa.Table) -> dict[tuple[str, str], list[JudgeReply]]:
    """{(method, item): its replies} of a table of replies."""
    found: dict[tuple[str, str], list[JudgeReply]] = collections.defaultdict(list)
    for row in replies.to_pylist():
        found[row["method"], row["item_id"]].append(JudgeReply.of(row))
    return found


def judge_noise(judge: Judge, replies: pa.Table) -> pa.Table:
    """How far a judge's passes over the same edits differ, by method and column: NOISE_SCHEMA; empty for one pass.

    std_of_items: standard deviation of one item's score, the root of the items' mean variance over passes.
    std_of_means: standard deviation over passes of the method's mean. Both with n - 1, over the items that every pass
    has scored.
    """
    passes = {key: by_pass(judge, found)[0] for key, found in grouped(replies).items()}
    indices = sorted(set(replies["pass"].to_pylist()))
    rows = []
    for method in dict.fromkeys(method for method, _ in sorted(passes)) if len(indices) > 1 else ():
        for metric in judge.columns:
            scores = [
                [found[index][metric] for index in indices]
                for (name, _), found in sorted(passes.items())
                if name == method and all(metric in found.get(index, {}) for index in indices)
            ]
            if scores:
                variance = statistics.fmean(statistics.variance(values) for values in scores)
                means = [statistics.fmean(values) for values in zip(*scores, strict=True)]
                rows.append((method, metric, len(indices), len(scores), math.sqrt(variance), statistics.stdev(means)))
    return pa.Table.from_pylist([dict(zip(NOISE_SCHEMA.names, row, strict=True)) for row in rows], NOISE_SCHEMA)
