"""Rows that came to nothing, and why: tables under `dead_letters/` with a column `reason`."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster.folder import Folder

_FOLDER = "dead_letters/"


def write_letters(out: Folder, name: str, letters: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Writes the table `dead_letters/<name>` if there are any."""
    if letters:
        out.write_table(f"{_FOLDER}{name}", pa.Table.from_pylist(list(letters), schema))


def count_reasons(out: Folder) -> collections.Counter[str]:
    """How often each reason is given in all tables, without what stands behind its colon."""
    names = [name for name in out.list(".parquet", recursive=True) if name.startswith(_FOLDER)]
    reasons = (reason for name in names for reason in out.read_table(name, ["reason"])["reason"].to_pylist())
    return collections.Counter(reason.split(":")[0] for reason in reasons)
