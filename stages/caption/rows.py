"""The rows of an artifact's tables, by key: listed at once, read when they are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.folder import Folder


class StoredRows:
    """The rows of all tables under `under` that have the column `key` and all `columns`, in the order of the files.

    Raises:
        UserError: no table has these columns, a key isn't a text, or two rows have one.
    """

    def __init__(self, folder: Folder, key: str, columns: Sequence[str], under: str = ""):
        self._folder, self._columns = folder, list(columns)
        self._place: dict[str, tuple[str, int]] = {}
        self._loaded: tuple[str, pa.Table] | None = None
        names = [name for name in folder.list(".parquet", recursive=True) if name.startswith(under)]
        names = [name for name in names if _has_columns(folder, name, {key, *columns})]
        if not names:
            raise UserError(f"{folder.path(under)} holds no table with the columns {', '.join([key, *columns])}.")
        for name in names:
            for row, value in enumerate(folder.read_table(name, [key])[key].to_pylist()):
                if not isinstance(value, str):
                    raise UserError(f"{folder.path(name)}: {key} of row {row} is {value!r}; it must be a text.")
                if value in self._place:
                    raise UserError(
                        f"{folder.path(name)}: {key} {value!r} stands in row {row} and before it, in "
                        f"{self._place[value][0]}. Give every row a {key} of its own."
                    )
                self._place[value] = (name, row)
        self.keys = list(self._place)

    def read(self, key: str) -> dict[str, Any]:
        """The row's columns; quick where neighbours are read one after the other."""
        name, row = self._place[key]
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = (name, self._folder.read_table(name, self._columns))
        return self._loaded[1].slice(row, 1).to_pylist()[0]


def _has_columns(folder: Folder, name: str, columns: set[str]) -> bool:
    with folder.open(name) as stream:
        return columns <= set(pq.ParquetFile(stream).schema_arrow.names)
