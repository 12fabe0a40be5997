import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from cluster import record
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.shards import name_shards, run_shards
from tests.stages.ingest.context import make_context


@dataclass
class Double:
    """Writes a shard's own number; `trouble` ends the worker, or fails, at one shard."""

    out: Folder
    log: Path
    trouble: str = ""
    at: str = ""

    def __call__(self, shard: str) -> None:
        with open(self.log, "a") as file:
            file.write(f"{shard} {os.getpid()}\n")
        if shard == self.at:
            first = sum(line.startswith(f"{shard} ") for line in self.log.read_text().splitlines()) == 1
            if self.trouble == "die" or (self.trouble == "die_once" and first):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.trouble == "die_after_commit" and first:
                self.out.write_table(shard, pa.table({"name": [shard]}))
                os.kill(os.getpid(), signal.SIGKILL)
            if self.trouble == "user":
                raise UserError(f"Row 7 of {shard} has no caption.")
        time.sleep(0.05)
        self.out.write_table(shard, pa.table({"name": [shard]}))


def calls(log: Path) -> list[str]:
    return [line.split()[0] for line in log.read_text().splitlines()]


SHARDS = [f"part/{i:02d}.parquet" for i in range(12)]


def test_names_depend_on_content_and_place_alone():
    shards = name_shards([f"id{i}" for i in range(10)], 4, prefix="tuples/")
    assert [len(keys) for keys in shards.values()] == [4, 4, 2]
    assert list(shards) == list(name_shards([f"id{i}" for i in range(10)], 4, prefix="tuples/"))
    assert all(name.startswith(f"tuples/{i:05d}-") for i, name in enumerate(shards))
    other = name_shards(["id0", "id1", "id2", "changed", *(f"id{i}" for i in range(4, 10))], 4, prefix="tuples/")
    assert [a == b for a, b in zip(shards, other, strict=True)] == [False, True, True]
    assert name_shards([], 4) == {}


def test_each_shard_is_done_once_and_finished_ones_are_left(ray_cluster: str, tmp_path: Path):
    context, log = make_context(tmp_path, "double"), tmp_path / "log"
    context.out.write_table(SHARDS[3], pa.table({"name": ["from before"]}))
    run_shards(SHARDS, Double(context.out, log), context=context, num_workers=3)
    assert sorted(calls(log)) == sorted(set(SHARDS) - {SHARDS[3]})
    assert context.out.list(".parquet", recursive=True) == SHARDS
    assert context.out.read_table(SHARDS[3]).to_pylist() == [{"name": "from before"}]
    assert len({line.split()[1] for line in log.read_text().splitlines()}) > 1
    progress = record.read_progress(Folder(context.root), context.run_id, ["double"])["double"]
    assert (progress.done, progress.total, progress.unit) == (12, 12, "shards")
    run_shards(SHARDS, Double(context.out, log, "user", SHARDS[0]), context=context)
    assert len(calls(log)) == 11


@pytest.mark.parametrize("trouble", ["die_once", "die_after_commit"])
def test_a_killed_workers_shard_is_done_again(ray_cluster: str, tmp_path: Path, trouble: str):
    context, log = make_context(tmp_path, "double"), tmp_path / "log"
    run_shards(SHARDS, Double(context.out, log, trouble, SHARDS[5]), context=context, num_workers=2)
    for shard in SHARDS:
        assert context.out.read_table(shard).to_pylist() == [{"name": shard}]
    assert calls(log).count(SHARDS[5]) == (2 if trouble == "die_once" else 1)
    (incident,) = record.read_incidents(Folder(context.root), context.run_id)
    assert incident["stage"] == "double" and SHARDS[5] in incident["text"]


def test_a_shard_that_always_kills_is_named(ray_cluster: str, tmp_path: Path):
    context, log = make_context(tmp_path, "double"), tmp_path / "log"
    with pytest.raises(UserError, match=f"died 3 times at shard {SHARDS[0]}"):
        run_shards(SHARDS[:2], Double(context.out, log, "die", SHARDS[0]), context=context)
    assert calls(log).count(SHARDS[0]) == 3


def test_an_error_of_the_work_reaches_the_stage_as_it_is(ray_cluster: str, tmp_path: Path):
    context, log = make_context(tmp_path, "double"), tmp_path / "log"
    with pytest.raises(UserError, match="^Row 7 of part/04.parquet has no caption.$"):
        run_shards(SHARDS, Double(context.out, log, "user", SHARDS[4]), context=context, num_workers=1)
    assert context.out.list(".parquet", recursive=True) == SHARDS[:4]
