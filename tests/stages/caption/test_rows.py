"""The rows of an artifact's tables, found by their columns and read by key."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from stages.caption.rows import StoredRows
from tests.stages.ingest.context import make_context


def test_rows_are_found_by_their_columns(tmp_path):
    context = make_context(tmp_path, "tables")
    pairs = list(itertools.product("ab", "cd"))
    for number, part in enumerate((pairs[:2], pairs[2:])):
        table = pa.table({"id": ["".join(pair) for pair in part], "x": [pair[1] for pair in part], "y": [0] * 2})
        context.out.write_table(f"part{number}/rows.parquet", table)
    context.out.write_table("other.parquet", pa.table({"id": ["zz"]}))
    rows = StoredRows(context.out, "id", ("x",))
    assert list(rows.keys) == ["ac", "ad", "bc", "bd"]
    assert [rows.read(key) for key in ("bd", "ac")] == [
        {"x": "d"},
        {"x": "c"},
    ]
    with pytest.raises(UserError, match="no table with the columns id, z"):
        StoredRows(context.out, "id", ("z",))
    with pytest.raises(UserError, match="y of row 0 is 0; it must be a text"):
        StoredRows(context.out, "y", ("x",))
    context.out.write_table("part2/rows.parquet", pa.table({"id": ["bc"], "x": ["c"]}))
    with pytest.raises(UserError, match="part2/rows.parquet: id 'bc' stands in row 0 and before it, in part1"):
        StoredRows(context.out, "id", ("x",))


def test_rows_are_read_over_the_borders_of_row_groups(tmp_path):
    context = make_context(tmp_path, "tables")
    numbers = list(range(23))
    keys = [f"k{(number * 7) % 23:02d}" for number in numbers]
    for name, part in (("a.parquet", slice(0, 13)), ("b.parquet", slice(13, 23))):
        path = context.out.path(name)
        pq.write_table(pa.table({"id": keys[part], "x": numbers[part]}), path, row_group_size=4)
    rows = StoredRows(context.out, "id", ("x",))
    assert (list(rows.keys), list(rows.keys[5:15][2:]), list(rows.keys[::-1])) == (keys, keys[7:15], keys[::-1])
    assert [rows.read(key)["x"] for key in keys] == numbers
    assert [rows.read(keys[place])["x"] for place in (22, 0, 12, 13)] == [22, 0, 12, 13]
    assert rows.read_column("x", keys[10:16]) == numbers[10:16]
    with pytest.raises(KeyError):
        rows.read("k99")
