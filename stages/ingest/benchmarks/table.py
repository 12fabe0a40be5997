"""A benchmark of one's own: a folder of pictures or videos, and `items.csv` that says what is asked of each."""

from __future__ import annotations

from cluster.errors import UserError
from cluster.folder import Folder
from stages.ingest.benchmarks.listing import Listed, Listing, plain_path, published
from stages.ingest.csv_rows import BadRows, csv_header, csv_rows

TABLE = "items.csv"
TEXTS = ("item_id", "edit_type", "instruction")
OPTIONAL = ("reverse_instruction", "src_caption", "tgt_caption")


def list_table(folder: Folder, column: str, name: str = "") -> Listing:
    """The rows of `items.csv`: TEXTS, the file's name in `column`, and OPTIONAL ones; others go to the metadata.

    Args:
        column: `image` or `video`.
        name: of `published.yaml`, whose counts the table must have.

    Raises UserError: there is no table, it lacks a column, or a row can't be read.
    """
    if not folder.exists(TABLE):
        raise UserError(
            f"{folder.url} has no {TABLE}. It has a row for each edit, with {', '.join((*TEXTS, column))}; "
            "python -m stages.ingest.benchmarks.build writes one for the sets of ByG's paper."
        )
    place = folder.path(TABLE)
    header = csv_header(folder, TABLE)
    if missing := [wanted for wanted in (*TEXTS, column) if wanted not in header]:
        raise UserError(f"{place} has no column {missing[0]!r}; its columns are {', '.join(header)}.")
    bad, items = BadRows(), []
    for number, row in csv_rows(folder, TABLE, bad):
        for wanted in (*TEXTS, column):
            if not row[wanted].strip():
                raise UserError(f"{place}, line {number}: {wanted} is empty.")
        for wanted in ("item_id", column):
            if not plain_path(row[wanted]):
                raise UserError(f"{place}, line {number}: {wanted} {row[wanted]!r} is no path within a folder.")
        metadata = {key: row[key] for key in header if key not in (*TEXTS, *OPTIONAL, column)}
        texts = {key: row.get(key, "") for key in OPTIONAL}
        items.append(
            Listed(row["item_id"], row["edit_type"], row["instruction"], row[column], metadata=metadata, **texts)
        )
    for source, reason in bad.reasons.items():
        raise UserError(f"{folder.path(source)}: {reason}. Repair the table.")
    if not items:
        raise UserError(f"{place} has no rows.")
    wanted = published(name) if name else None
    return Listing(folder, items, wanted, num_sources=len({item.file for item in items}))
