"""What asking about all rows would cost, from a few of them that were really asked about."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest

from cluster.chat import request_seed
from cluster.folder import Folder
from stages.caption.asking import Asking, AskingConfig
from stages.caption.trial import Trial

NUM_REASONS = 3


def choose_keys(keys: Sequence[str], num_rows: int, seed: int) -> list[str]:
    """A sample of the keys that is the same each time, whatever their order."""
    return sorted(keys, key=lambda key: request_seed(seed, "cost", key))[:num_rows]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of a number of each row: its mean and its 95th percentile."""

    mean: float
    high: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the sample took, and what all rows will.

    Tokens are those of every attempt. tokens_per_second: of prompts and answers together, as the sample had them.
    kept: of the sample's rows, what share came to something, and its 95 % interval (Wilson). reasons: why the others
    didn't, the most frequent first. num_bytes: of the tables.
    """

    num_rows: int
    num_sampled: int
    calls: Spread
    attempts: Spread
    prompt_tokens: Spread
    completion_tokens: Spread
    kept: float
    kept_interval: tuple[float, float]
    reasons: Sequence[tuple[str, int]]
    num_bytes: int
    tokens_per_second: float

    @property
    def num_tokens(self) -> float:
        return self.num_rows * (self.prompt_tokens.mean + self.completion_tokens.mean)


def estimate(trial: Trial, whole: Asking, sampled: Asking, config: AskingConfig, folder: Folder) -> Estimate:
    """Carries the trial of the rows `sampled` over to the `whole`. `folder` is written to, to measure tables."""
    calls: dict[str, set[int]] = collections.defaultdict(set)
    attempts, prompt, completion = (collections.Counter[str]() for _ in range(3))
    for exchange in trial.exchanges:
        key, reply = exchange.request.key, exchange.reply
        calls[key].add(exchange.call)
        attempts[key] += 1
        prompt[key] += reply.prompt_tokens
        completion[key] += reply.completion_tokens
    num = len(sampled.keys)
    num_kept = len({row[whole.key] for row in trial.good})
    interval = binomtest(num_kept, num).proportion_ci(method="wilson")
    empty = _num_bytes(folder, whole.schema, [])
    per_row = (_num_bytes(folder, whole.schema, [*trial.good, *trial.bad]) - empty) / num
    num_tables = -(-len(whole.keys) // config.shard_size) * (2 if trial.bad else 1)

    def spread(counts: Mapping[str, int]) -> Spread:
        values = [counts.get(key, 0) for key in sampled.keys]
        return Spread(float(np.mean(values)), float(np.percentile(values, 95)))

    return Estimate(
        num_rows=len(whole.keys),
        num_sampled=num,
        calls=spread({key: len(numbers) for key, numbers in calls.items()}),
        attempts=spread(attempts),
        prompt_tokens=spread(prompt),
        completion_tokens=spread(completion),
        kept=num_kept / num,
        kept_interval=(interval.low, interval.high),
        reasons=collections.Counter(row["reason"] for row in trial.bad).most_common(),
        num_bytes=round(len(whole.keys) * per_row + num_tables * empty),
        tokens_per_second=(prompt.total() + completion.total()) / max(trial.seconds, 1e-9),
    )


def _num_bytes(folder: Folder, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> int:
    folder.write_table("measured.parquet", pa.Table.from_pylist(rows, schema))
    return folder.sizes()["measured.parquet"]


def show(
    found: Estimate,
    unit: str,
    num_gpus: int,
    num_engines: int = 1,
    tokens_per_second: float | None = None,
    price: float | None = None,
) -> str:
    """The estimate in print, at the sample's rate or a given one, which is that of one engine with its `num_gpus`;
    `price` is that of one GPU for an hour.
    """
    rate = tokens_per_second or found.tokens_per_second
    seconds = found.num_tokens / rate
    gpu_hours = seconds * num_gpus / 3600
    low, high = found.kept_interval
    engines = f"{num_engines} engines of {num_gpus}" if num_engines > 1 else f"{num_gpus} for the engine"
    how = "as given" if tokens_per_second else "as the sample had it; a full engine is faster"

    def spread(value: Spread, digits: int = 0) -> str:
        return f"{value.mean:,.{digits}f} on average, 95 % have {value.high:,.{digits}f} or fewer"

    lines = [
        f"rows              {found.num_rows:,} {unit}s; {found.num_sampled} of them were asked about",
        f"calls per row     {spread(found.calls, 1)}",
        f"attempts per row  {spread(found.attempts, 1)} (all calls together)",
        f"prompt tokens     {spread(found.prompt_tokens)} (a row, all attempts, pictures included)",
        f"answer tokens     {spread(found.completion_tokens)}",
        f"tokens in all     {found.num_tokens:,.0f}",
        f"rate              {rate:,.0f} tokens a second and engine, prompts and answers ({how})",
        f"time              {_duration(seconds / num_engines)}, {_hours(gpu_hours)} GPU-hours with {engines}",
        f"rows kept         {found.kept:.0%} ({low:.0%} to {high:.0%} with 95 % confidence)",
        f"written           {_size(found.num_bytes)} of tables or less: large ones compress better",
    ]
    if found.reasons:
        told = ", ".join(f"{reason} ({count})" for reason, count in found.reasons[:NUM_REASONS])
        lines.insert(-1, f"the others        {told}")
    if price is not None:
        place = next(place for place, line in enumerate(lines) if line.startswith("rows kept"))
        lines.insert(place, f"price             {_hours(gpu_hours * price)} at {price:g} for a GPU-hour")
    return "\n".join(lines)


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours >= 0.1 else f"{hours:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"
