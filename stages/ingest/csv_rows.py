"""CSV files of any size, row by row; a row that can't be read comes with the reason, never as an exception."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from cluster.errors import UserError
from cluster.folder import Folder

MAX_BAD_ROWS = 1000


class BadRows:
    """The rows of the CSV files of a folder that can't be read, and why: dead letters to be."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def add(self, folder: Folder, name: str, number: int, reason: str) -> None:
        """Raises UserError if there are so many that the file can't be what it seems to be."""
        self.reasons[f"{name}#{number}"] = reason
        if len(self.reasons) > MAX_BAD_ROWS:
            raise UserError(
                f"{folder.path(name)}: over {MAX_BAD_ROWS} rows up to line {number} can't be read, the last of them: "
                f"{reason}. Is the file whole, and comma-separated in UTF-8? Download it again, or take it out."
            )


def csv_header(folder: Folder, name: str) -> list[str]:
    """The fields of the first line; of a file that isn't CSV, whatever comes first."""
    with folder.open(name) as stream:
        line = io.BytesIO(stream.read(1 << 16)).readline().decode("utf-8-sig", errors="replace")
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def csv_rows(folder: Folder, name: str, bad: BadRows, *, strict: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row by its column names, with the number of its (last) line; bad rows go to `bad`.

    `strict`: a row with a quote that doesn't end, or that ends within a field, is bad, too.
    """
    header = csv_header(folder, name)
    for number, fields in csv_lines(folder, name, bad, strict=strict):
        if number == 1 or not fields:
            continue
        if len(fields) != len(header):
            bad.add(folder, name, number, f"unreadable: {len(fields)} fields, the first line has {len(header)}")
        else:
            yield number, dict(zip(header, fields, strict=True))


def csv_lines(folder: Folder, name: str, bad: BadRows, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Each row's fields, the first line's too, with the number of the row's (last) line."""
    with folder.open(name) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        reader = csv.reader(text, strict=strict)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # the reader goes on at the next line
                bad.add(folder, name, reader.line_num, f"unreadable: {error}")
                continue
            yield reader.line_num, fields
