"""How a run is going, read from its files alone: works from any terminal or machine that reaches the root."""

import argparse
import sys
import time
from collections.abc import Sequence

if __name__ == "__main__" and not __package__:  # `python pipelines/status.py` in a checkout that isn't installed
    from pathlib import Path

    sys.path.append(str(Path(__file__).resolve().parent.parent))

from cluster import record
from cluster.config import nearest
from cluster.errors import RequestError, exit_code
from cluster.folder import Folder
from cluster.record import RunRecord
from pipelines.show import Block, run_block, running_progress

_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a run's state; with --watch until it ends. Exit code 2 if there is no such run."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--root", default="./runs", help="the root of the run: a path or an fsspec URL (%(default)s)")
    parser.add_argument("--run", metavar="ID", help="a run's id; the newest by default")
    parser.add_argument("--watch", action="store_true", help="go on until the run ends")
    arguments = parser.parse_args(argv)
    root = Folder(arguments.root)
    return exit_code(lambda: _show(root, _read(root, arguments.run), arguments.watch))


def _read(root: Folder, run_id: str | None) -> RunRecord:
    ids = record.run_ids(root)
    if not ids:
        raise RequestError(f"There is no run under {root.url} yet.")
    if run_id is not None and run_id not in ids:
        raise RequestError(f"There is no run {run_id!r} under {root.url}; {nearest(run_id, ids[::-1])}")
    # A run whose folder was made this moment may not have its record yet.
    for candidate in [run_id] if run_id else ids[::-1]:
        if run := record.read_run(root, candidate):
            return run
    raise RequestError(f"Run {run_id or ids[-1]} under {root.url} has no readable record.")


def _show(root: Folder, run: RunRecord, watch: bool) -> None:
    block = Block(sys.stdout) if watch and sys.stdout.isatty() else None
    while True:
        lines = run_block(run, running_progress(root, run))
        if block:
            block.draw(lines)
        else:
            print("\n".join(lines), flush=True)
        if not watch or run.status != "running" or run.is_abandoned():
            break
        time.sleep(_SECONDS)
        run = record.read_run(root, run.run_id) or run
    for incident in record.read_incidents(root, run.run_id):
        at = time.strftime("%H:%M:%S", time.localtime(incident["time"]))
        print(f"{at} {incident['stage']}: {incident['text']}")


if __name__ == "__main__":
    sys.exit(main())
