"""The caption stage over 1,000, 10,000 and 100,000 rows: is its rate flat, its memory, and its files of the size asked?

`python -m benchmarks.caption_scale [--num-rows 1000 10000 100000] [--speed 10]` prints a table and one JSON line. The
engine is a recorded one (`benchmarks/recorded.py`), all else is the pipeline's own: pictures that are read from
ingest's tables, sent to a Ray actor and decoded there (each hundredth is broken: a dead letter), replies (each
twentieth is cut off and asked for again), rules, shards, the report and the manifest. Each size has processes of its
own. `--speed` is how much faster than the recorded model the engine is: at 1 it is the limit, far above that the stage
itself is.

Memory is resident memory, sampled: of the stage's process beyond what it had when the engine was ready, its highest in
the first and in the last quarter of the rows, of the engine's actor likewise, and of Ray's own processes at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

from benchmarks.caption import run_stage, stage_context, starter_config
from benchmarks.recorded import RECORDING, Recording, use_recorded_engine
from benchmarks.samples import make_samples
from cluster import record
from cluster.dag import Context, new_run_id
from cluster.folder import Folder
from cluster.session import open_session
from cluster.vllm import get_engine

_NUM_PICTURES = 1000
_BROKEN_EVERY = 100
_CUT_EVERY = 20
_SECONDS = 0.25
_MIB = 1 << 20


class Memory:
    """Samples the resident memory of this process and another in a thread of its own, with the rows done."""

    def __init__(self, context: Context, worker: int) -> None:
        self._context = context
        self._processes = {"stage": psutil.Process(), "worker": psutil.Process(worker)}
        self._samples: list[tuple[int, dict[str, int]]] = []
        self._ended = threading.Event()
        self.at_start = self._now()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def end(self, num_rows: int) -> dict[str, float]:
        """MiB: the highest in the first and the last quarter of the rows, beyond what it was at the start."""
        self._ended.set()
        self._thread.join()
        found = {}
        for name, start in self.at_start.items():
            early = [now[name] for done, now in self._samples if done <= num_rows / 4]
            late = [now[name] for done, now in self._samples if done >= num_rows * 3 / 4]
            found[f"{name}_mib_at_start"] = round(start / _MIB)
            found[f"{name}_mib_added_first_quarter"] = round((max(early) - start) / _MIB)
            found[f"{name}_mib_added_last_quarter"] = round((max(late) - start) / _MIB)
        return found

    def _now(self) -> dict[str, int]:
        return {name: process.memory_info().rss for name, process in self._processes.items()}

    def _sample(self) -> None:
        root, stage = Folder(self._context.root), self._context.stage
        while not self._ended.wait(_SECONDS):
            progress = record.read_progress(root, self._context.run_id, [stage])
            self._samples.append((progress[stage].done if stage in progress else 0, self._now()))
        self._samples.append((sys.maxsize, self._now()))


def measure(num_rows: int, speed: float, shard_size: int) -> dict[str, Any]:
    """The figures of one size, in this process."""
    run_id = new_run_id()
    with tempfile.TemporaryDirectory(prefix="caption-scale-") as temporary:
        root = Path(temporary)
        model = use_recorded_engine(Recording.read(RECORDING).faster(speed).with_cut(_CUT_EVERY), root / "recorded")
        config = starter_config(shard_size=shard_size, engine={"model": model, "max_model_len": 512})
        session = open_session(run_id)
        try:
            warm = stage_context(root, "warm", run_id)
            engine = get_engine(config.engine, warm)
            run_stage(config, warm, make_samples(Folder(root / "ingest/warm"), 64), engine)
            samples = make_samples(
                Folder(root / "ingest/all"), num_rows, num_pictures=_NUM_PICTURES, broken_every=_BROKEN_EVERY
            )
            context = stage_context(root, "all", run_id)
            memory = Memory(context, engine.infos[0]["pid"])
            seconds = run_stage(config, context, samples, engine)
            figures = memory.end(num_rows) | {"ray_mib": round(_ray_memory() / _MIB)}
            found = _files(context, shard_size)
        finally:
            session.close()
    return {
        "num_rows": num_rows,
        "seconds": round(seconds, 1),
        "rows_per_s": round(num_rows / seconds, 1),
        **figures,
        **found,
    }


def _ray_memory() -> int:
    total = 0
    for process in psutil.Process().children(recursive=True):
        if process.name() in ("raylet", "gcs_server"):
            total += process.memory_info().rss
    return total


def _files(context: Context, shard_size: int) -> dict[str, Any]:
    """Whether each shard has the rows asked for (the last may have fewer), no key is lost or double; their sizes."""
    import pyarrow.parquet as pq

    shards = [name for name in context.out.list(".parquet", recursive=True) if name.startswith("tuples/")]
    num_rows, sizes, previous = [], [], ""
    for shard in shards:
        keys: list[str] = []
        for name in (shard, shard.replace("tuples/", "dead_letters/")):
            if context.out.exists(name):
                keys += pq.read_table(context.out.path(name), columns=["sample_id"])["sample_id"].to_pylist()
        keys.sort()  # ids of the benchmark's samples rise
        if len(set(keys)) != len(keys) or keys[0] <= previous:
            raise SystemExit(f"{shard} has a row twice")
        previous = keys[-1]
        num_rows.append(len(keys))
        sizes.append(os.path.getsize(context.out.path(shard)))
    if any(number != shard_size for number in num_rows[:-1]):
        raise SystemExit(f"shards have {sorted(set(num_rows))} rows, not {shard_size}")
    whole = sizes[:-1] or sizes
    return {
        "num_shards": len(shards),
        "rows_in_tables": sum(num_rows),
        "shard_kb_least": round(min(whole) / 1000, 1),
        "shard_kb_most": round(max(whole) / 1000, 1),
        "dead_letters": context.figures["num_dead_letters"],
        "attempts_per_row": round(context.figures["attempts_per_image"], 3),
    }


def _in_a_process(num_rows: int, speed: float, shard_size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.caption_scale", "--one", "--num-rows", str(num_rows)]
    command += ["--speed", str(speed), "--shard-size", str(shard_size)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--speed", type=float, default=10.0)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--one", action="store_true", help="one size, in this process")
    flags = parser.parse_args()
    if flags.one:
        print(json.dumps(measure(flags.num_rows[0], flags.speed, flags.shard_size)))
        return
    found = []
    for num_rows in flags.num_rows:
        found.append(_in_a_process(num_rows, flags.speed, flags.shard_size))
        if len(found) == 1:
            print(_line(["rows", "rows/s", "stage +MiB, 1st and 4th quarter", "worker +MiB", "Ray MiB", "shards, kB"]))
        each = found[-1]
        both = {
            name: f"{each[f'{name}_mib_added_first_quarter']}  {each[f'{name}_mib_added_last_quarter']}"
            for name in ("stage", "worker")
        }
        size = f"{each['num_shards']} of {each['shard_kb_least']:g} to {each['shard_kb_most']:g}"
        cells = [f"{num_rows:,}", each["rows_per_s"], both["stage"], both["worker"], each["ray_mib"], size]
        print(_line(cells), flush=True)
    rates = [each["rows_per_s"] for each in found]
    print(json.dumps({"slowest_over_fastest": round(min(rates) / max(rates), 3), "speed": flags.speed, "sizes": found}))


def _line(cells: list[Any]) -> str:
    widths = (9, 8, 33, 13, 9, 24)
    return "".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


if __name__ == "__main__":
    main()
