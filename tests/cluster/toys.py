"""A small pipeline of real stages over numbers: numbers -> squares, evens -> total."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa

from cluster.artifacts import Artifact
from cluster.config import StageConfig, runtime
from cluster.dag import Context, Resources, Stage
from cluster.errors import UserError


class NumbersConfig(StageConfig):
    count: int = 40
    start: int = 0
    folder: str | None = runtime(None)
    seconds_per_shard: float = runtime(0.0, ge=0)


class SquaresConfig(StageConfig):
    power: int = 2
    mode: Literal["exact", "rounded"] = "exact"
    trouble: Literal["no", "user", "fault", "exit", "kill", "kill_once"] = runtime("no")


class PlainConfig(StageConfig):
    seconds: float = runtime(0.0)


SHARD = 10


def make_numbers(inputs: Mapping[str, Artifact], config: NumbersConfig, context: Context) -> None:
    """Shards of ten numbers each; a shard that is there is left as it is."""
    num_shards = config.count // SHARD
    for index in range(num_shards):
        context.check()
        name = f"shard-{index:03}.parquet"
        if not context.out.exists(name):
            time.sleep(config.seconds_per_shard)
            first = config.start + index * SHARD
            context.out.write_table(name, pa.table({"n": list(range(first, first + SHARD))}))
            with open(context.scratch / "made.txt", "a") as file:
                file.write(f"{name}\n")
        context.progress(index + 1, num_shards, "shards", last=float(index))
    context.set_figures({"made_here": (context.scratch / "made.txt").read_text().split()})


def make_squares(inputs: Mapping[str, Artifact], config: SquaresConfig, context: Context) -> None:
    print("squares begin")
    if config.trouble == "user":
        raise UserError("The squares need numbers that are square. Give them some.")
    if config.trouble == "fault":
        raise ValueError("seven is not a square")
    if config.trouble == "exit":
        os._exit(3)
    flag = Path(context.scratch) / "killed"
    if config.trouble == "kill" or (config.trouble == "kill_once" and not flag.exists()):
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    folder = inputs["numbers"].folder
    for name in folder.list(".parquet"):
        numbers = folder.read_table(name)["n"].to_pylist()
        context.out.write_table(name, pa.table({"n": [number**config.power for number in numbers]}))


def make_evens(inputs: Mapping[str, Artifact], config: PlainConfig, context: Context) -> None:
    deadline = time.monotonic() + config.seconds
    while time.monotonic() < deadline:
        context.check()
        time.sleep(0.05)
    folder = inputs["numbers"].folder
    numbers = [n for name in folder.list(".parquet") for n in folder.read_table(name)["n"].to_pylist()]
    context.out.write_json("evens.json", [n for n in numbers if n % 2 == 0])
    context.set_rows(len(numbers) // 2)


def make_total(inputs: Mapping[str, Artifact], config: PlainConfig, context: Context) -> None:
    squares = inputs["squares"].folder
    total = sum(sum(squares.read_table(name)["n"].to_pylist()) for name in squares.list(".parquet"))
    context.out.write_json("total.json", total)
    evens = inputs["evens"].folder.read_json("evens.json")
    context.set_figures({"results": {"squares": {"total": total}, "evens": {"total": sum(evens)}}})


def numbers_sources(config: NumbersConfig) -> list[str]:
    return [config.folder] if config.folder else []


STAGES = [
    Stage("numbers", "1", make_numbers, NumbersConfig, sources=numbers_sources),
    Stage("squares", "1", make_squares, SquaresConfig, needs=("numbers",)),
    Stage("evens", "1", make_evens, PlainConfig, needs=("numbers",), resources=Resources(cpus=0.5)),
    Stage("total", "1", make_total, PlainConfig, needs=("squares", "evens")),
]
