"""What a benchmark's reader finds, before any picture is read: its items, held against what is published."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from cluster.errors import UserError
from cluster.folder import Folder

PUBLISHED_FILE = Path(__file__).with_name("published.yaml")
BENCHMARK_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("source_id", pa.string()),
        ("image", pa.binary()),
        ("edit_type", pa.string()),
        ("instruction", pa.string()),
        ("reverse_instruction", pa.string()),
        ("src_caption", pa.string()),
        ("tgt_caption", pa.string()),
        ("metadata", pa.string()),
    ]
)
CLIPS_SCHEMA = pa.schema([*BENCHMARK_SCHEMA, ("clip", pa.binary())])


@dataclasses.dataclass(frozen=True)
class Listed:
    """An item and where its picture is: a file of the folder, or a row of a table among them.

    `item_id` is also the name of the item's edit in the benchmark's own output layout, without its ending.
    """

    item_id: str
    edit_type: str
    instruction: str
    file: str
    row: int | None = None
    reverse_instruction: str = ""
    src_caption: str = ""
    tgt_caption: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Published:
    """How many items there should be: of each edit type (None: that isn't published), and in all."""

    title: str
    by_type: Mapping[str, int | None]
    num_items: int | None = None
    num_sources: int | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
    """All items of a copy; `published` is what it should hold, `column` the pictures' column where they are in tables.

    `num_sources`: of different pictures, as far as they can be told apart by their names. `problems`: what the reader
    has seen to be wrong with the copy, beside its counts.
    """

    folder: Folder
    items: Sequence[Listed]
    published: Published | None
    column: str = ""
    num_sources: int | None = None
    problems: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Choice:
    """The items that are read, how many of each type there should be, and what is wrong with the copy."""

    items: Sequence[Listed]
    expected: Mapping[str, int]
    problems: Sequence[str]


def published(name: str) -> Published:
    """The counts of `published.yaml`."""
    values = _published()[name]
    by_type = values.get("by_type") or dict.fromkeys(values["types"])
    return Published(values["title"], by_type, values.get("num_items"), values.get("num_sources"))


@functools.cache
def _published() -> Mapping[str, Any]:
    return yaml.safe_load(PUBLISHED_FILE.read_text(encoding="utf-8"))


def plain_path(text: str) -> bool:
    """Whether a text can be a path within a folder, on every system, that leads nowhere else."""
    parts = text.split("/")
    return all(part and not part.startswith(".") for part in parts) and not set(text) & set('\\\0:*?"<>|\n')


def choose(listing: Listing, trial: int | None) -> Choice:
    """The items in the order of their ids, with `trial` the first so many of each edit type, and what there should be.

    Raises UserError if an id is there twice.
    """
    counts = collections.Counter(item.item_id for item in listing.items)
    item_id, count = counts.most_common(1)[0] if counts else ("", 0)
    if count > 1:
        raise UserError(
            f"{listing.folder.url} has item {item_id!r} {count} times. Is another version of the benchmark beside it? "
            "Leave one copy of each item."
        )
    by_type: dict[str, list[Listed]] = collections.defaultdict(list)
    for item in sorted(listing.items, key=lambda item: item.item_id):
        by_type[item.edit_type].append(item)
    chosen = [item for items in by_type.values() for item in items[:trial]]
    found = {name: len(items) for name, items in sorted(by_type.items())}
    if listing.published is None:
        expected = {name: count if trial is None else min(trial, count) for name, count in found.items()}
        return Choice(sorted(chosen, key=lambda item: item.item_id), expected, [])
    problems = _differences(listing, found, trial)
    expected = {}
    for name in sorted(found.keys() | listing.published.by_type.keys()):
        limit, there = listing.published.by_type.get(name), found.get(name, 0)
        wanted = max(there, limit or 0)
        expected[name] = wanted if trial is None else min(trial, wanted)
    return Choice(sorted(chosen, key=lambda item: item.item_id), expected, problems)


def _differences(listing: Listing, found: Mapping[str, int], trial: int | None) -> list[str]:
    """A line for each way in which the copy isn't what is published; of a trial subset only what it needs counts."""
    wanted = listing.published
    problems = [
        f"{count} items of type {name!r}, which the published set doesn't have"
        for name, count in found.items()
        if name not in wanted.by_type
    ]
    for name, count in wanted.by_type.items():
        there = found.get(name, 0)
        needed = (1 if count is None else count) if trial is None else min(trial, count or 1)
        if there < needed or (trial is None and count is not None and there > count):
            problems.append(f"{there} of {'at least ' if count is None else ''}{count or 1} items of type {name!r}")
    num_items = sum(found.values())
    if trial is None and not problems and wanted.num_items not in (None, num_items):
        problems.append(f"{num_items} of {wanted.num_items} items")
    if trial is None and listing.num_sources is not None and wanted.num_sources not in (None, listing.num_sources):
        problems.append(f"{listing.num_sources} of {wanted.num_sources} source pictures")
    return problems + (list(listing.problems) if trial is None else [])
