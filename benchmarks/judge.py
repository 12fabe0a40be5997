"""The judge of the evaluate stage against bare vLLM, side by side: edits per second over the same requests.

`python -m benchmarks.judge [--num-edits 1024] [--num-repetitions 5]` prints one JSON line. Each repetition has edits
that no engine has seen: scenes of the starter's world, the true edit or an untouched copy in turn. The stage reads
benchmark and edits from Parquet, sizes and encodes the pictures, asks VIEScore's two questions of each, reads the
answers, asks again where they can't be read, and writes the tables of scores and replies. Then `vllm.LLM.chat`, in a
process of its own, gets exactly these requests, all at once. Both have answered a first lot before the clock starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.bare_vllm import BareVLLM
from benchmarks.caption import Overheard, Repetition, figures, stage_context
from cluster.config import find_profile, read_profile
from cluster.dag import new_run_id
from cluster.folder import Folder
from cluster.session import open_session
from cluster.vllm import get_engine
from pipelines.cli import PROFILES
from stages.evaluate.judges.tasks import get_judge
from stages.evaluate.judging import judge_files
from stages.evaluate.settings import EvaluateConfig
from stages.evaluate.tables import Benchmark, EditsFile
from stages.starter.stages import png
from stages.starter.world import render, sample_edit, sample_scene

_SEED = 1 << 20  # no data set of the starter has it
_WARMUP_EDITS = 32
_EDITS_IN_FILE = 128


@dataclasses.dataclass(frozen=True)
class Edits:
    benchmark: Benchmark
    files: dict[str, EditsFile]


def make_edits(folder: Folder, num_edits: int, first: int) -> Edits:
    """Tables of a benchmark of scenes, numbers `first` and on, and of one edit of each by one method."""
    items, edits = [], []
    for index in range(first, first + num_edits):
        generator = np.random.default_rng([_SEED, index])
        edit = sample_edit(sample_scene(generator), generator)
        source, target = png(render(edit.source)), png(render(edit.target))
        name = f"{index:08d}"
        items.append(
            {
                "item_id": name, "source_id": name, "image": source, "edit_type": edit.edit_type,
                "instruction": edit.instruction, "metadata": edit.to_json(),
            }
        )  # fmt: skip
        edits.append({"item_id": name, "method": "either", "image": (source, target)[index % 2], "seconds": 0.0})
    folder.write_table("benchmark.parquet", pa.Table.from_pylist(items))
    files = {}
    for start in range(0, num_edits, _EDITS_IN_FILE):
        name = f"edits/{start:08d}.parquet"
        folder.write_table(name, pa.Table.from_pylist(edits[start : start + _EDITS_IN_FILE]))
        files[name] = EditsFile(folder, name)
    return Edits(Benchmark(folder, ("benchmark.parquet",)), files)


def repeat(config: EvaluateConfig, num_edits: int, num_repetitions: int, bare: BareVLLM) -> list[Repetition]:
    """The stage's judge, then bare vLLM, so many times after a first that doesn't count."""
    run_id, found, judge = new_run_id(), [], get_judge(config.judge_task)
    with tempfile.TemporaryDirectory(prefix="bench-judge-") as temporary:
        root = Path(temporary)
        session = open_session(run_id)
        try:
            for number in range(num_repetitions + 1):
                context = stage_context(root, f"{number:016x}", run_id)
                num = num_edits if number else _WARMUP_EDITS
                edits = make_edits(Folder(root / f"edits/{number}"), num, first=number * num_edits)
                engine, load = Overheard(get_engine(config.judge, context)), os.getloadavg()[0]
                started = time.perf_counter()
                judge_files(edits.files, edits.benchmark, judge, config, context, lambda engine=engine: engine)
                seconds = time.perf_counter() - started
                found.append(Repetition(engine, bare.chat(engine.requests), seconds, load))
        finally:
            session.close()
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-edits", type=int, default=1024)
    parser.add_argument("--num-repetitions", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=1, help="of bare vLLM; the actor has one")
    flags = parser.parse_args()
    config = EvaluateConfig.model_validate(read_profile(find_profile("starter", PROFILES)).values["evaluate"])
    bare = BareVLLM(config.judge, flags.num_threads)
    try:
        repetitions = repeat(config, flags.num_edits, flags.num_repetitions, bare)
    finally:
        bare.close()
    found = figures(repetitions, flags.num_edits)
    named = {name.replace("rows", "edits").replace("_row", "_edit"): value for name, value in found.items()}
    print(json.dumps(named | bare.info))


if __name__ == "__main__":
    main()
