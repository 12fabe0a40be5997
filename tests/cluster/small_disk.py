"""A disk that is soon full."""

import contextlib
import subprocess
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]


class SmallDisk:
    """A file system of a few megabytes that only those who come in by `entrance` see at `place`; others see its
    content at `content`. It needs no privilege where the kernel lets users have namespaces. Raises OSError else.
    """

    def __init__(self, place: Path, megabytes: int):
        self.place = place
        mount = f"mount -t tmpfs -o size={megabytes}m none '{place}' && echo mounted && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", mount], cwd=_PROJECT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE,
        )  # fmt: skip
        if self._holder.stdout.readline() != "mounted\n":
            raise OSError(f"no file system can be mounted here: {self._holder.communicate()[1]}")
        pid = self._holder.pid
        self.content = Path(f"/proc/{pid}/root{place}")
        self.entrance = ("nsenter", f"--target={pid}", "--user", "--preserve-credentials", "--mount", "--wd")

    def fill(self) -> None:
        """Takes all the room that is left."""
        with contextlib.suppress(OSError), open(self.content / "somebody-elses", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def make_room(self) -> None:
        (self.content / "somebody-elses").unlink()

    def close(self) -> None:
        self._holder.communicate()
