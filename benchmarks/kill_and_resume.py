"""The whole pipeline, undisturbed and killed again and again: do both end in the same bytes?

    python benchmarks/kill_and_resume.py

Runs the profile once in peace. Then once more into another root, where SIGKILL hits the driver in one stage after the
other (and the same command is called again), a training rank, and the vLLM engine. In the end each artifact is compared
file by file, tables without the seconds that an edit took. The report tells of its run, so it is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pyarrow.parquet as pq

PROJECT = Path(__file__).resolve().parents[1]
PROFILE = PROJECT / "tests" / "e2e" / "small.yaml"
TIME = "seconds"  # the column, and the metric, that no two runs have alike


@dataclasses.dataclass(frozen=True)
class Kill:
    """SIGKILL to the driver, or to the first of its descendants whose title has `victim`, once `stage` has `done`."""

    stage: str
    done: int
    victim: str | None = None

    @property
    def whom(self) -> str:
        return self.victim or "the driver"


KILLS = (
    Kill("caption", 0),
    Kill("caption", 1, "EngineActor"),
    Kill("encode", 0),
    Kill("train_sft", 1),
    Kill("train_byg", 3),
    Kill("train_byg", 5, "_Rank"),
    Kill("edit", 1),
    Kill("evaluate", 1),
)


class Runner:
    """Calls the pipeline on one root, with a log, and tells what happens with the time since it began."""

    def __init__(self, root: Path, profile: Path) -> None:
        self.root = root
        self.command = [sys.executable, "pipelines/full.py", "--profile", str(profile), "--root", str(root)]
        self.log = root.parent / f"{root.name}.log"
        self.began = time.monotonic()

    def tell(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", flush=True)

    def start(self) -> psutil.Popen:
        with self.log.open("a") as log:
            return psutil.Popen(self.command, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT)

    def finish(self, driver: psutil.Popen) -> None:
        """Waits for the end. Raises SystemExit if it isn't a good one."""
        if driver.wait() != 0:
            raise SystemExit(f"the run failed with exit code {driver.returncode}: see {self.log}")

    def state(self, stage: str) -> tuple[str, int]:
        """The stage's status in the newest run, and how far it is."""
        runs = sorted(self.root.glob("runs/*/run.json"))
        if not runs:
            return "pending", 0
        status = json.loads(runs[-1].read_text())["stages"].get(stage, {}).get("status", "pending")
        file = runs[-1].parent / "progress" / f"{stage}.json"
        return status, json.loads(file.read_text())["done"] if file.exists() else 0

    def summary(self) -> dict:
        return json.loads((self.root / "runs" / "latest.json").read_text())


def killed_run(runner: Runner, kills: Sequence[Kill]) -> int:
    """Runs to the end through all kills that find their moment; returns how many those were."""
    driver, num_hits = runner.start(), 0
    for kill in kills:
        killed = _killed(runner, driver, kill)
        num_hits += killed
        if not killed:
            runner.tell(f"{kill.stage} was over before {kill.whom} could be killed")
        elif kill.victim is None:
            driver.wait()
            driver = runner.start()
            runner.tell("called the same command again")
    runner.finish(driver)
    return num_hits


def _killed(runner: Runner, driver: psutil.Popen, kill: Kill) -> bool:
    """Waits for the moment of a kill and does it; False if it passed."""
    while driver.poll() is None:
        status, done = runner.state(kill.stage)
        if status in ("ran", "cached"):
            return False
        victim = _victim(driver, kill) if status == "running" and done >= kill.done else None
        if victim is not None:
            victim.send_signal(signal.SIGKILL)
            runner.tell(f"killed {kill.whom} (pid {victim.pid}) in {kill.stage}, {done} done")
            return True
        time.sleep(0.05)
    return False


def _victim(driver: psutil.Popen, kill: Kill) -> psutil.Process | None:
    if kill.victim is None:
        return driver
    for process in driver.children(recursive=True):
        try:
            if kill.victim in " ".join(process.cmdline()):
                return process
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return None


def digest(file: Path) -> str:
    """What a file holds; a table without its times."""
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        rows = table.drop_columns([TIME] if TIME in table.column_names else []).to_pylist()
        rows = [row for row in rows if row.get("metric") != TIME]
        return hashlib.sha256(repr(rows).encode()).hexdigest()
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digests(runner: Runner) -> dict[str, dict[str, str]]:
    """The digest of every file of every artifact of the run, by stage and name."""
    found = {}
    for stage, record in runner.summary()["stages"].items():
        if stage != "report":
            folder = Path(record["artifact"])
            files = json.loads((folder / "manifest.json").read_text())["files"]
            found[stage] = {name: digest(folder / name) for name in sorted(files)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, default=PROFILE)
    parser.add_argument("--folder", type=Path, help="where both roots go; default: a temporary one")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kill-and-resume-"))
    folder.mkdir(parents=True, exist_ok=True)
    peace, war = Runner(folder / "undisturbed", arguments.profile), Runner(folder / "killed", arguments.profile)

    print(f"undisturbed, in {peace.root}", flush=True)
    peace.finish(peace.start())
    peace.tell("done")
    print(f"killed, in {war.root}", flush=True)
    war.began = time.monotonic()
    num_hits = killed_run(war, KILLS)
    war.tell(f"done, after {num_hits} of {len(KILLS)} kills")

    wanted, found = digests(peace), digests(war)
    num_different = 0
    for stage in wanted:
        names = sorted({*wanted[stage], *found[stage]})
        different = [name for name in names if wanted[stage].get(name) != found[stage].get(name)]
        whole = hashlib.sha256(json.dumps(found[stage], sort_keys=True).encode()).hexdigest()
        verdict = f"DIFFERENT: {', '.join(different)}" if different else "equal"
        print(f"{stage:14} {len(names):4} files  {whole[:16]}  {verdict}")
        num_different += len(different)
    return 1 if num_different else 0


if __name__ == "__main__":
    raise SystemExit(main())
