"""The rows of an artifact's tables, by key: listed at once, read when they are asked about."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.folder import Folder

_BATCH = 4096


class Texts(Sequence[str]):
    """A column of texts, each in a few bytes more than its letters; a slice of neighbours shares them."""

    def __init__(self, column: pa.LargeStringArray):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            places = range(*index.indices(len(self)))
            if places.step == 1:
                return Texts(self._column.slice(places.start, len(places)))
            return Texts(self._column.take(pa.array(places, pa.int64())))
        return self._column[index].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BATCH):
            yield from self._column.slice(start, _BATCH).to_pylist()


class StoredRows:
    """The rows of all tables under `under` that have the column `key` and all `columns`, in the order of the files.

    In memory are the keys (`keys`, 16 bytes more than their letters each) and one row group of a table.

    Raises:
        UserError: no table has these columns, a key isn't a text, or two rows have one.
    """

    def __init__(self, folder: Folder, key: str, columns: Sequence[str], under: str = ""):
        self._folder, self._columns = folder, list(columns)
        self._loaded: tuple[int, int, pa.Table] | None = None  # its first row, the first behind it, the rows
        names = [name for name in folder.list(".parquet", recursive=True) if name.startswith(under)]
        self._names: list[str] = []
        self._starts: list[int] = []  # the first row of each row group,
        self._groups: list[tuple[int, int]] = []  # its table and its place there
        found, num_rows = [], 0
        for name in names:
            with folder.open(name) as stream:
                table = pq.ParquetFile(stream)
                if not {key, *columns} <= set(table.schema_arrow.names):
                    continue
                found.append(_texts(table.read([key])[key], folder.path(name), key))
                for group in range(table.num_row_groups):
                    self._starts.append(num_rows)
                    self._groups.append((len(self._names), group))
                    num_rows += table.metadata.row_group(group).num_rows
                self._names.append(name)
        if not self._names:
            raise UserError(f"{folder.path(under)} holds no table with the columns {', '.join([key, *columns])}.")
        column = pa.concat_arrays(found)
        self.keys = Texts(column)
        self._order = pc.sort_indices(column).to_numpy()
        self._refuse_doubles(column, key)

    def _refuse_doubles(self, column: pa.LargeStringArray, key: str) -> None:
        ordered = column.take(pa.array(self._order))
        equal = pc.index(pc.equal(ordered[1:], ordered[:-1]), True).as_py()
        if equal >= 0:
            first, second = sorted(self._order[equal : equal + 2].tolist())
            name, row = self._place(second)
            raise UserError(
                f"{self._folder.path(name)}: {key} {self.keys[second]!r} stands in row {row} and before it, in "
                f"{self._place(first)[0]}. Give every row a {key} of its own."
            )

    def read(self, key: str) -> dict[str, Any]:
        """The row's columns; quick where neighbours are read one after the other."""
        row = self._row(key)
        if self._loaded is None or not self._loaded[0] <= row < self._loaded[1]:
            index = bisect.bisect_right(self._starts, row) - 1
            name, group = self._groups[index]
            self._loaded = None  # before the next one is there
            with self._folder.open(self._names[name]) as stream:
                table = pq.ParquetFile(stream).read_row_group(group, self._columns)
            self._loaded = self._starts[index], self._starts[index] + table.num_rows, table
        return self._loaded[2].slice(row - self._loaded[0], 1).to_pylist()[0]

    def read_column(self, column: str, keys: Sequence[str]) -> list[Any]:
        """One column of some rows, without the others of theirs."""
        places = [self._place(self._row(key)) for key in keys]
        tables = {name: self._folder.read_table(name, [column])[column] for name in dict.fromkeys(n for n, _ in places)}
        return [tables[name][row].as_py() for name, row in places]

    def _row(self, key: str) -> int:
        at = bisect.bisect_left(range(len(self._order)), key, key=lambda place: self.keys[int(self._order[place])])
        if at == len(self._order) or self.keys[int(self._order[at])] != key:
            raise KeyError(key)
        return int(self._order[at])

    def _place(self, row: int) -> tuple[str, int]:
        """The table of a row, and which one it is there."""
        name, group = self._groups[index := bisect.bisect_right(self._starts, row) - 1]
        return self._names[name], row - self._starts[index - group]


def _texts(column: pa.ChunkedArray, path: str, key: str) -> pa.LargeStringArray:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        bad = 0 if len(column) else None
    else:
        bad = int(np.argmax(column.is_null().to_numpy())) if column.null_count else None
    if bad is not None:
        raise UserError(f"{path}: {key} of row {bad} is {column[bad].as_py()!r}; it must be a text.")
    return pa.concat_arrays([pa.array([], pa.large_string()), *column.cast(pa.large_string()).chunks])
