"""What a data engine's artifact holds: outcomes, attempts, tokens, lengths and kinds, counted; and rows to look at."""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from cluster.artifacts import MANIFEST, Manifest
from cluster.chat import request_seed
from cluster.errors import RequestError, UserError, one_line
from cluster.folder import Folder
from stages.caption.asking import OUTCOME_COLUMNS
from stages.caption.report import broken_name
from stages.caption.rows import StoredRows
from stages.caption.rule import rule_name

KINDS = ("edit_type", "style")  # columns whose values are to be spread evenly
NO_PROSE = (*KINDS, "decided_by")  # columns of a few words, whose lengths say nothing
TOKENS = ("prompt_tokens", "completion_tokens")
DEAD_LETTERS = "dead_letters/"
NUM_SAMPLES = 24  # of good rows, and of dead letters
_OUTCOME_NAMES = frozenset(name for name, _ in OUTCOME_COLUMNS)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A row and the pictures that the model saw, by column; none where they aren't there any more. answer: of a dead
    letter, what the model said last; None where it wasn't asked.
    """

    key: str
    row: Mapping[str, Any]
    pictures: Mapping[str, bytes]
    answer: str | None = None


@dataclasses.dataclass
class Contents:
    """Counts of all rows that were asked about; lengths (in characters) are of good rows. kinds: {value: {outcome:
    rows}} of the column `kind`. rules: as in rules.json.
    """

    manifest: Manifest
    key: str
    num_good: int = 0
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    reasons: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    attempts: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    tokens: dict[str, collections.Counter[int]] = dataclasses.field(default_factory=dict)
    lengths: dict[str, collections.Counter[int]] = dataclasses.field(default_factory=dict)
    kind: str | None = None
    kinds: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    rules: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    good: list[Sample] = dataclasses.field(default_factory=list)
    bad: list[Sample] = dataclasses.field(default_factory=list)
    no_pictures: str | None = None


def read_contents(url: str) -> Contents:
    """Counts an artifact's rows. Raises RequestError if there is none at `url`, or no data engine made it."""
    folder = Folder(url)
    try:
        manifest = Manifest.model_validate(folder.read_json(MANIFEST))
        report = folder.read_json("rules.json")
    except FileNotFoundError as error:
        missing = MANIFEST if str(error).find(MANIFEST) >= 0 else "rules.json"
        raise RequestError(
            f"{folder.url} has no {missing}: it is not the finished artifact of a data engine, which is a folder "
            "ROOT/STAGE/FINGERPRINT such as runs/caption/82e197e511a9a89c."
        ) from None
    except (OSError, ValidationError, ValueError) as error:
        raise RequestError(f"{folder.url} can't be read: {one_line(error)}") from None
    names = [name for name in manifest.files if name.endswith(".parquet")]
    if not names:
        raise RequestError(f"{folder.url} holds no table.")
    schema = _schema(folder, names[0])
    contents = Contents(manifest, key=schema.names[0], rules=report["rules"])
    _count(contents, folder, names, schema)
    _add_pictures(contents, folder)
    return contents


def _schema(folder: Folder, name: str) -> pa.Schema:
    with folder.open(name) as file:
        return pq.ParquetFile(file).schema_arrow


def _count(contents: Contents, folder: Folder, names: Sequence[str], schema: pa.Schema) -> None:
    texts = [f.name for f in schema if pa.types.is_string(f.type) and f.name not in {*_OUTCOME_NAMES, contents.key}]
    contents.kind = next((name for name in KINDS if name in texts), None)
    texts = [name for name in texts if name not in NO_PROSE]
    contents.tokens = {name: collections.Counter() for name in TOKENS}
    contents.lengths = {name: collections.Counter() for name in texts}
    samples: dict[tuple[bool, str], list[tuple[int, int, dict[str, Any]]]] = {}
    table_of: dict[str, str] = {}  # of dead letters that are or were to be shown
    for name_of_table, row, number, is_first in _rows(folder, names, contents.key):
        is_good = row["outcome"] == "ok"
        contents.num_good += is_good
        if is_good:
            for name in texts:
                if row[name]:
                    contents.lengths[name][len(row[name])] += 1
        if contents.kind and row[contents.kind]:
            contents.kinds.setdefault(row[contents.kind], collections.Counter())[row["outcome"]] += 1
        if is_first:  # no further row of one that was asked about
            contents.outcomes[row["outcome"]] += 1
            contents.attempts[row["attempts"]] += 1
            for name in TOKENS:
                contents.tokens[name][row[name]] += 1
        elif is_good:
            continue
        for reason in (row["reason"] or "").split("; ") if not is_good else ():
            contents.reasons[row["outcome"], reason] += 1
        group = (row[contents.kind] or "") if is_good and contents.kind else rule_name(row["reason"] or "")
        heap = samples.setdefault((is_good, group), [])
        # the same rows each time, from all over the table
        rank = -request_seed("inspect", row[contents.key], *([number] if number else []))
        item = (rank, -len(heap), row)
        heapq.heappush(heap, item) if len(heap) < NUM_SAMPLES else heapq.heappushpop(heap, item)
        if not is_good and item in heap:
            table_of[row[contents.key]] = name_of_table
    contents.good = [Sample(row[contents.key], row, {}) for row in _in_turn(samples, True)]
    bad = _in_turn(samples, False)
    answers = _last_answers(folder, contents.key, {row[contents.key]: table_of[row[contents.key]] for row in bad})
    contents.bad = [Sample(row[contents.key], row, {}, answers.get(row[contents.key])) for row in bad]


def _last_answers(folder: Folder, key: str, table_of: Mapping[str, str]) -> dict[str, str]:
    """What the model said last about each row that it was asked about."""
    answers: dict[str, tuple[tuple[int, int], str]] = {}
    for table in sorted(set(table_of.values())):
        for item in folder.read_json(broken_name(table)):
            place = (item["attempt"], item.get("call", 1))
            if table_of.get(item[key]) == table and place[0] > 0 and place >= answers.get(item[key], (place, ""))[0]:
                answers[item[key]] = place, item["answer"]
    return {name: answer for name, (_, answer) in answers.items()}


def _rows(folder: Folder, names: Sequence[str], key: str) -> Iterator[tuple[str, dict[str, Any], int, bool]]:
    """All rows with their tables, the number of each among those of its key there, and whether it is the key's first
    of all.

    The rows of one key are neighbours. A key with good rows may have refused ones, too, in its shard's dead letters.
    """
    for name in names:
        good = set()
        if name.startswith(DEAD_LETTERS):
            shard = name.removeprefix(DEAD_LETTERS)
            beside = (other for other in names if other.endswith(f"/{shard}") and other != name)
            good = {value for other in beside for value in folder.read_table(other, [key])[key].to_pylist()}
        before, number = None, 0
        for row in folder.read_table(name).to_pylist():
            number = number + 1 if row[key] == before else 0
            before = row[key]
            yield name, row, number, number == 0 and before not in good


def _in_turn(
    samples: Mapping[tuple[bool, str], Sequence[tuple[int, int, dict[str, Any]]]], is_good: bool
) -> list[dict[str, Any]]:
    """Rows of all groups in turn, NUM_SAMPLES at most."""
    groups = [[row for *_, row in sorted(samples[name], key=lambda item: -item[0])] for name in sorted(samples)
              if name[0] == is_good]  # fmt: skip
    depth = max(map(len, groups), default=0)
    return [group[place] for place in range(depth) for group in groups if place < len(group)][:NUM_SAMPLES]


def _add_pictures(contents: Contents, folder: Folder) -> None:
    """From the artifacts that the stage read: beside its own, in the same root."""
    root = Folder(folder.url.rsplit("/", 2)[0])
    for name, fingerprint in contents.manifest.parents.items():
        parent = root.sub(f"{name}/{fingerprint}")
        columns = _picture_columns(parent, contents.key)
        if not columns:
            continue
        try:
            stored = StoredRows(parent, contents.key, columns)
        except (OSError, UserError) as error:
            contents.no_pictures = one_line(error)
            return
        known = set(stored.keys)
        for samples in (contents.good, contents.bad):
            for place, sample in sorted(enumerate(samples), key=lambda item: item[1].key):
                if sample.key in known:
                    found = stored.read(sample.key)
                    pictures = {column: found[column] for column in columns if found[column]}
                    samples[place] = dataclasses.replace(sample, pictures=pictures)
        return
    read = ", ".join(f"{name}/{fingerprint}" for name, fingerprint in contents.manifest.parents.items())
    if not all(
        root.exists(f"{name}/{fingerprint}/{MANIFEST}") for name, fingerprint in contents.manifest.parents.items()
    ):
        contents.no_pictures = f"What the stage read ({read}) isn't in {root.url} any more, so no picture is shown."


def _picture_columns(folder: Folder, key: str) -> list[str]:
    for name in folder.list(".parquet", recursive=True):
        schema = _schema(folder, name)
        columns = [field.name for field in schema if pa.types.is_binary(field.type)]
        if key in schema.names and columns and not name.startswith(DEAD_LETTERS):
            return columns
    return []
