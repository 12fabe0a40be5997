"""Who is making an artifact now: a small file with a heartbeat in the artifact's folder.

On a local path the file is changed under a lock on the folder, so two drivers can't both take it. Object
stores have no such lock: there a taker writes, waits a moment and reads again, and who finds his own name has
it. Hosts that share a root need clocks that agree within a few seconds.
"""

import contextlib
import fcntl
import functools
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from cluster.folder import LEASE_NAME, Folder

LEASE_SECONDS = 30.0
_SETTLE_SECONDS = 1.0


class Process(BaseModel):
    """One process of one boot of one machine, so that a number that was given to another process isn't
    mistaken.
    """

    host: str
    boot: str
    pid: int
    started: int

    def is_dead_here(self) -> bool:
        """True only if it ran on this machine and is gone; about other machines nothing can be said."""
        return self.host == socket.gethostname() and self.boot == _boot() and _started(self.pid) != self.started


class Holder(BaseModel):
    """The content of a lease file: who, and the time of the last heartbeat (seconds since the epoch)."""

    owner: str
    run_id: str
    process: Process
    time: float
    seconds: float

    def is_live(self) -> bool:
        """Whether the heartbeat is recent and the process isn't known to be dead."""
        return time.time() - self.time <= self.seconds and not self.process.is_dead_here()

    def __str__(self) -> str:
        return f"run {self.run_id} (process {self.process.pid} on {self.process.host})"


def this_process() -> Process:
    return Process(host=socket.gethostname(), boot=_boot(), pid=os.getpid(), started=_started(os.getpid()))


@functools.cache
def _boot() -> str:
    """Tells boots and process namespaces (containers) apart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> int:
    """The start time of a process in clock ticks since boot; 0 if it doesn't run, a zombie included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def holder(folder: Folder) -> Holder | None:
    """Who holds the folder's lease, live or not, or None."""
    try:
        return Holder.model_validate(folder.read_json(LEASE_NAME))
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError):
        return None


@contextlib.contextmanager
def _locked(folder: Folder) -> Iterator[None]:
    if not folder.is_local:
        yield
        return
    os.makedirs(folder.url, exist_ok=True)
    descriptor = os.open(folder.url, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Lease:
    """A lease that is held. Made by `Lease.take`."""

    def __init__(self, folder: Folder, run_id: str, seconds: float):
        self.folder = folder
        self.owner = uuid.uuid4().hex
        self._holder = Holder(owner=self.owner, run_id=run_id, process=this_process(), time=0.0, seconds=seconds)

    @classmethod
    def take(cls, folder: Folder, run_id: str, seconds: float = LEASE_SECONDS) -> "Lease | None":
        """Takes the lease if nobody live holds it; None if somebody does."""
        lease = cls(folder, run_id, seconds)
        with _locked(folder):
            current = holder(folder)
            if current is not None and current.is_live():
                return None
            lease._write()
        if not folder.is_local:
            time.sleep(_SETTLE_SECONDS)
            if not lease.is_held():
                return None
        return lease

    def _write(self) -> None:
        self._holder.time = time.time()
        self.folder.write_json(LEASE_NAME, self._holder.model_dump(), durable=False)

    def is_held(self) -> bool:
        """Whether the file still names this owner."""
        current = holder(self.folder)
        return current is not None and current.owner == self.owner

    def beat(self) -> bool:
        """Renews the lease. False if it was lost: then the work must stop."""
        with _locked(self.folder):
            if not self.is_held():
                return False
            self._write()
        return True

    def release(self) -> None:
        """Gives the lease up; does nothing if it was lost."""
        with _locked(self.folder):
            if self.is_held():
                self.folder.remove(LEASE_NAME)
