"""A benchmark of one's own: a folder of pictures or videos, and `items.csv` that says what is asked of each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from cluster.errors import UserError
from cluster.folder import Folder
from stages.ingest.benchmarks.listing import Listed, Listing, plain_path, published
from stages.ingest.csv_rows import BadRows, csv_header, csv_rows

TABLE = "items.csv"
TEXTS = ("item_id", "edit_type", "instruction")
UNREAD = {"\0", "\ufffd"}  # the second stands for what isn't UTF-8
OPTIONAL = ("reverse_instruction", "src_caption", "tgt_caption")


def list_table(folder: Folder, column: str, name: str = "") -> Listing:
    """The rows of `items.csv`: TEXTS, the file's name in `column`, and OPTIONAL ones; others go to the metadata.

    Args:
        column: `image` or `video`.
        name: of `published.yaml`, whose counts the table must have.

    Raises UserError, naming the line: there is no table, it lacks a column, or a row can't be read.
    """
    if not folder.exists(TABLE):
        raise UserError(
            f"{folder.url} has no {TABLE}. It has a row for each edit, with {', '.join((*TEXTS, column))}; "
            "python -m stages.ingest.benchmarks.build writes one for the sets of ByG's paper."
        )
    place, header = folder.path(TABLE), csv_header(folder, TABLE)
    _check_header(place, header, (*TEXTS, column))
    bad, items = BadRows(), []
    lines: dict[str, int] = {}
    for number, row in csv_rows(folder, TABLE, bad, strict=True):
        line = f"{place}, line {number}"
        if unread := next((key for key, value in row.items() if UNREAD & set(value)), None):
            raise UserError(
                f"{line}: {unread} {row[unread]!r} has characters that aren't UTF-8. Save the table as UTF-8."
            )
        for wanted in (*TEXTS, column):
            if not row[wanted].strip():
                raise UserError(f"{line}: {wanted} is empty.")
        for wanted in ("item_id", column):
            if not plain_path(row[wanted]):
                raise UserError(f"{line}: {wanted} {row[wanted]!r} is no path within a folder.")
        if row["item_id"] in lines:
            other = lines[row["item_id"]]
            raise UserError(
                f"{line}: line {other} has item_id {row['item_id']!r}, too. Give each row an id of its own."
            )
        lines[row["item_id"]] = number
        metadata = {key: row[key] for key in header if key not in (*TEXTS, *OPTIONAL, column)}
        texts = {key: row.get(key, "") for key in OPTIONAL}
        items.append(
            Listed(row["item_id"], row["edit_type"], row["instruction"], row[column], metadata=metadata, **texts)
        )
    for source, reason in bad.reasons.items():
        reason = reason.replace("unexpected end of data", "a quote before it doesn't end")
        raise UserError(f"{place}, line {source.rpartition('#')[2]}: {reason}. Repair the table.")
    if not items:
        raise UserError(f"{place} has no rows.")
    wanted = published(name) if name else None
    return Listing(folder, items, wanted, num_sources=len({item.file for item in items}))


def _check_header(place: str, header: Sequence[str], needed: Sequence[str]) -> None:
    """Raises UserError if a column is missing, there twice, or almost one that has a meaning."""
    if UNREAD & set("".join(header)):
        raise UserError(f"{place} isn't UTF-8. Save the table as UTF-8.")
    if missing := [wanted for wanted in needed if wanted not in header]:
        raise UserError(
            f"{place} has no column {missing[0]!r}; its columns are {', '.join(header) or 'none'}. "
            "It is comma-separated, and its first line names the columns."
        )
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"{place} has the column {name!r} twice. Leave one.")
        meant = difflib.get_close_matches(name.strip().lower(), [*needed, *OPTIONAL], n=1, cutoff=0.85)
        if name not in (*needed, *OPTIONAL) and meant:
            raise UserError(
                f"{place} has a column {name!r}; did you mean {meant[0]!r}? Rename it, also if it is something else: "
                "the other columns go to the items' metadata."
            )
