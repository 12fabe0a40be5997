"""Votes: one JSON line each in a file that is only ever added to, on disk before the rater hears that it counts."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import RequestError, UserError
from stages.evaluate.study.definition import VOTES

NOTES = "notes.jsonl"


class Vote(BaseModel):
    """A rater's answer to a question about the pair at place `trial` of theirs.

    `key` is the id of the item or of the check; `A` and `B` say whose edit stood there; `chosen` is whose was taken,
    None for a tie. `milliseconds`: from the pictures' appearance to the answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    rater: str
    trial: int = Field(ge=0)
    key: str
    is_check: bool
    question: str
    choice: Literal["A", "B", "tie"]
    chosen: str | None
    A: str
    B: str
    milliseconds: int
    time: str

    @property
    def place(self) -> tuple[str, int, str]:
        """What can be answered once."""
        return self.rater, self.trial, self.question


class Conflict(Exception):
    """The same was answered before, otherwise."""


def read_votes(folder: Path, study_id: str) -> tuple[list[Vote], int, str]:
    """The votes, how many bytes of the file hold them, and what the rest of it is ("": there is none).

    A process that dies while it writes leaves a last line without its end, or, after a power cut, of rubbish: nobody
    was told that this vote counts. Anything else that can't be read is an error.

    Raises:
        UserError: a line within the file can't be read, belongs to another study, or repeats a vote.
    """
    path = folder / VOTES
    content = path.read_bytes() if path.exists() else b""
    *lines, rest = content.split(b"\n")
    votes: list[Vote] = []
    first_at: dict[tuple[str, int, str], int] = {}
    whole = 0
    for number, line in enumerate(lines, start=1):
        try:
            vote = Vote.model_validate_json(line)
        except ValidationError:
            if number == len(lines) and not rest:
                rest = line + b"\n"
                break
            raise UserError(
                f"{path}: line {number} is no vote: {line[:60]!r}. Only the last line can have been torn off by a "
                "crash; put the file right by hand, or take it from a copy."
            ) from None
        if vote.study != study_id:
            raise UserError(
                f"{path}: line {number} belongs to study {vote.study}, not to {study_id}, which lies beside it: the "
                "study was changed after people had voted."
            )
        if vote.place in first_at:
            raise UserError(
                f"{path}: line {number} repeats line {first_at[vote.place]}: {', '.join(map(str, vote.place))}."
            )
        first_at[vote.place] = number
        votes.append(vote)
        whole += len(line) + 1
    return votes, whole, rest.decode("utf-8", "backslashreplace")


class VoteLog:
    """The file of votes, open for one server; what is in it is known by `votes`."""

    def __init__(self, folder: Path, descriptor: int, votes: list[Vote], size: int, note: str):
        self.votes = {vote.place: vote for vote in votes}
        self.note = note
        self._folder, self._descriptor, self._size = folder, descriptor, size
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, study_id: str) -> Self:
        """Takes the file for this process; a torn last line is cut off, and a note of it kept.

        Raises:
            RequestError: another server has it.
            UserError: as `read_votes`.
        """
        descriptor = os.open(folder / VOTES, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go when the process dies
        except OSError:
            os.close(descriptor)
            raise RequestError(f"Another server takes votes for {folder} already.") from None
        try:
            votes, size, torn = read_votes(folder, study_id)
            note = ""
            if torn:
                note = (
                    f"{VOTES}: a last line that a crash had torn off was cut: {torn[:200]!r}. It had not been counted."
                )
                _append(folder / NOTES, {"time": _now(), "note": note})
                os.ftruncate(descriptor, size)
            os.fsync(descriptor)
            _sync_folder(folder)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(folder, descriptor, votes, size, note)

    def add(self, vote: Vote) -> bool:
        """Puts a vote on disk; False if this very vote is there already, as when its answer got lost.

        Raises:
            Conflict: the question was answered otherwise.
            OSError: it can't be written; nothing of it stays in the file.
        """
        with self._lock:
            known = self.votes.get(vote.place)
            if known is not None:
                if known.choice != vote.choice:
                    raise Conflict
                return False
            line = vote.model_dump_json().encode() + b"\n"
            try:
                _write_all(self._descriptor, line)
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self._size)
                raise
            self._size += len(line)
            self.votes[vote.place] = vote
            return True

    def close(self) -> None:
        os.close(self._descriptor)


def read_notes(folder: Path) -> list[str]:
    """What happened to the file of votes, oldest first."""
    path = folder / NOTES
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [f"{entry['time']}: {entry['note']}" for entry in map(json.loads, lines)]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def make_vote(**fields: object) -> Vote:
    """A vote of this moment."""
    return Vote.model_validate(fields | {"time": _now()})


def _append(path: Path, entry: dict[str, str]) -> None:
    with open(path, "ab") as file:
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
