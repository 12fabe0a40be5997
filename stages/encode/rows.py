"""Which rows are encoded: where each one's pictures stand, and what it says, from the tables of earlier stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from cluster.errors import UserError
from cluster.folder import Folder

TEXT_FIELDS = ("src_caption", "instruction", "tgt_caption", "reverse_instruction")
LABEL_FIELDS = ("edit_type", "object")
NOTHING = "do nothing"  # the instruction of NP-Edit's steps that must give the source back


@dataclasses.dataclass(frozen=True)
class Row:
    """A training row: where its pictures stand, its texts by field, and labels that aren't encoded."""

    id: str
    file: str
    key: str
    texts: Mapping[str, str]
    labels: Mapping[str, str | None]


@dataclasses.dataclass(frozen=True)
class Rows:
    """All rows, in order, and the columns that hold their pictures."""

    folder: Folder
    key_column: str
    image_columns: Mapping[str, str]  # latents field -> column
    rows: Sequence[Row]


def pair_rows(folder: Folder, texts: Sequence[str]) -> Rows:
    """The pairs of a folder, with these of their texts. Raises UserError if no table of it has what is needed."""
    images = {"source": "source_image", "target": "target_image"}
    columns = ("pair_id", *texts, *images.values())
    files = folder.tables_with(columns)
    if not files:
        raise UserError(f"{folder.url} holds no table with the columns {', '.join(columns)}.")
    rows = [
        Row(row["pair_id"], file, row["pair_id"], {name: row[name] for name in texts}, {})
        for file in files
        for row in folder.read_table(file, ["pair_id", *texts]).to_pylist()
    ]
    return Rows(folder, "pair_id", images, rows)


def tuple_rows(samples: Folder, tuples: Folder) -> Rows:
    """Joins the ok samples and the ok tuples by `sample_id`, in the order of the samples.

    A sample's second tuple and those after it get ids with a number.

    Raises UserError for a tuple whose sample isn't there.
    """
    tuples_of: dict[str, list[tuple[dict, dict]]] = {}
    columns = ("sample_id", "outcome", *TEXT_FIELDS, *LABEL_FIELDS)
    for file in tuples.tables_with(columns):
        for row in tuples.read_table(file, list(columns)).to_pylist():
            if row["outcome"] == "ok":
                texts = {name: row[name] for name in TEXT_FIELDS} | {"nothing": NOTHING}
                labels = {name: row[name] for name in LABEL_FIELDS}
                tuples_of.setdefault(row["sample_id"], []).append((texts, labels))
    rows = []
    for file in samples.tables_with(("sample_id", "outcome", "image")):
        for sample in samples.read_table(file, ["sample_id", "outcome"]).to_pylist():
            sample_id = sample["sample_id"]
            if sample["outcome"] == "ok":
                for number, found in enumerate(tuples_of.pop(sample_id, ())):
                    rows.append(Row(f"{sample_id}-{number}" if number else sample_id, file, sample_id, *found))
    if tuples_of:
        raise UserError(
            f"encode: the tuple of sample {next(iter(tuples_of))!r} (and {len(tuples_of) - 1} more) has no "
            f"sample in {samples.url}. Make both anew with --from ingest."
        )
    return Rows(samples, "sample_id", {"source": "image"}, rows)
