"""A context for running one stage's function by itself."""

from __future__ import annotations

import pathlib

from cluster.dag import Context
from cluster.folder import Folder
from cluster.lease import Lease

RUN_ID = "20260102-101500-abcdef"


def make_context(tmp_path: pathlib.Path, stage: str) -> Context:
    """A context with a lease held, for an artifact under `tmp_path / stage`."""
    out = Folder(tmp_path / stage / "0123456789abcdef")
    scratch = tmp_path / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    lease = Lease.take(out, RUN_ID)
    owner = lease.owner if lease else out.read_json(".lease.json")["owner"]
    return Context(stage, "0123456789abcdef", RUN_ID, str(tmp_path), out, scratch, owner)
