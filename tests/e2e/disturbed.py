"""Runs of the caption stage that are to be disturbed: their drivers, and a Ray that they share."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parents[2]
# Who starts Ray and who joins it agree on the token; no GPU is hidden from those that ask for none.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_HOLD_RAY = """
import sys, ray
from cluster.session import LOCAL_LABELS
for _ in range(5):
    try:
        ray.init(address="local", num_cpus=4, resources=LOCAL_LABELS, include_dashboard=False)
        break
    except Exception:  # a loaded machine can miss the 30 s that the raylet is given
        ray.shutdown()
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


def wait_until(condition: Callable[[], object], driver: Driver | None = None, seconds: float = 900.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver is None or driver.process.poll() is None, f"the driver ended too early:\n{driver.output()}"
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


class Family:
    """Processes of one command, those that lost their parent meanwhile too."""

    def __init__(self, process: subprocess.Popen):
        self._head, self._known = process.pid, {}

    def all(self) -> list[psutil.Process]:
        """Everyone seen so far who is still there."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._head).children(recursive=True):
                self._known[process.pid, process.create_time()] = process
        return [process for process in self._known.values() if process.is_running() and not _is_zombie(process)]

    def find(self, title: str) -> psutil.Process | None:
        """The first one that has this name, or these words in its title."""
        titles = {}
        for process in self.all():
            with contextlib.suppress(psutil.Error):
                titles[process] = process.name(), " ".join(process.cmdline())
        named = [process for process, (name, _) in titles.items() if name == title]
        return next(iter(named or [process for process, (_, words) in titles.items() if title in words]), None)

    def wait_for(self, title: str, driver: Driver) -> psutil.Process:
        """`find`, once it is there."""
        wait_until(lambda: self.find(title), driver)
        return self.find(title)

    def kill(self, title: str) -> None:
        """kill -9, once it is there."""
        wait_until(lambda: self.find(title))
        self.find(title).send_signal(signal.SIGKILL)

    def end(self) -> None:
        for process in self.all():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def gone(processes: list[psutil.Process], seconds: float = 60.0) -> bool:
    """Whether all of them have ended, after so long at most."""
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Driver:
    """A driver from the command line, with a Ray of its own or on the one at `address`."""

    def __init__(self, root: Path, profile: Path, log: Path, address: str = "", **more: str):
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **_ENVIRONMENT, **more}
        environment.pop("RAY_ADDRESS", None)
        if address:
            environment["RAY_ADDRESS"] = address
        command = [sys.executable, "pipelines/full.py", "--profile", str(profile), "--root", str(root)]
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=file, stderr=file)
        self.family = Family(self.process)

    def output(self) -> str:
        return self._log.read_text()

    def end(self, seconds: float = 900) -> tuple[int, str]:
        return self.process.wait(seconds), self.output()


@contextlib.contextmanager
def ended(*drivers: Driver) -> Iterator[None]:
    """Whatever happens within, in the end the drivers and all that they started are gone."""
    try:
        yield
    finally:
        for driver in drivers:
            driver.family.all()
            driver.process.kill()
            driver.process.wait()
            driver.family.end()


class HeldRay:
    """A Ray of its own for drivers that come and go, as on a cluster."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HOLD_RAY], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(PROJECT), **_ENVIRONMENT},
        )  # fmt: skip
        self.family = Family(self._process)
        self.address = self._process.stdout.readline().strip()
        assert self.address, "Ray didn't start"

    def close(self) -> None:
        self.family.all()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=60)
        self._process.kill()
        self.family.end()


def held_after_next_shard(root: Path, engine: psutil.Process, driver: Driver) -> None:
    """Lets an engine go on until the caption stage has another shard, then holds it still."""
    have = len(shards(root))
    engine.resume()
    wait_until(lambda: len(shards(root)) > have, driver)
    engine.suspend()


def num_incidents(root: Path, words: str) -> int:
    """How many incidents of all runs tell of it."""
    files = root.glob("runs/*/incidents/[!.]*.json")
    return sum(words in json.loads(file.read_text())["text"] for file in files)


def shards(root: Path) -> list[str]:
    """Names of the caption stage's shards that are done."""
    return sorted(file.name for file in root.glob("caption/*/tuples/[!.]*.parquet"))


def manifest(root: Path, stage: str) -> dict:
    (file,) = root.glob(f"{stage}/*/manifest.json")
    return json.loads(file.read_text())
