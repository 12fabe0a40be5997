"""A stage's context outside of any run: to try something, not to make an artifact."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster.dag import Context, new_run_id
from cluster.folder import Folder
from cluster.lease import Lease


@contextlib.contextmanager
def alone(stage: str) -> Iterator[Context]:
    """A context whose root is a folder of its own; that is removed in the end, unless an error may name a log in it."""
    root = Path(tempfile.mkdtemp(prefix=f"pairless-{stage}-"))
    out, run_id = Folder(root / stage / "trial"), new_run_id()
    (root / "scratch").mkdir()
    lease = Lease.take(out, run_id)
    yield Context(stage, "trial", run_id, str(root), out, root / "scratch", lease.owner)
    shutil.rmtree(root, ignore_errors=True)
