"""Who may vote: each rater has a token, of which only the hash is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.config import nearest
from cluster.errors import RequestError, UserError
from cluster.folder import Folder
from stages.evaluate.study.definition import RATERS

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$"


class Rater(BaseModel):
    """`number` decides what the rater is shown, and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME)
    number: int = Field(ge=0)
    token_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def _hash(token: str) -> str:
    # A token is 32 random bytes: nobody can try them out, so a slow hash would add nothing.
    return hashlib.sha256(token.encode()).hexdigest()


def find_rater(raters: Sequence[Rater], token: str) -> Rater | None:
    """Whose token it is; the time taken doesn't depend on how near a wrong one comes."""
    given, found = _hash(token), None
    for rater in raters:
        if hmac.compare_digest(rater.token_sha256, given):
            found = rater
    return found


def read_raters(folder: Path) -> list[Rater]:
    try:
        content = Folder(folder).read_json(RATERS)
        raters = [Rater.model_validate(entry) for entry in content["raters"]]
    except FileNotFoundError:
        return []
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RATERS} can't be used: {error}") from None
    if len({rater.name for rater in raters}) < len(raters) or len({rater.number for rater in raters}) < len(raters):
        raise UserError(f"{folder / RATERS} has a name or a number twice.")
    return raters


def add_raters(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """New raters with the next numbers; returns {name: token}, which nothing else knows."""
    raters = read_raters(folder)
    for name in names:
        if not re.match(NAME, name):
            raise RequestError(f"{name!r} can't name a rater: up to 40 letters, digits, '_', '.' or '-'.")
        if name in {rater.name for rater in raters} or names.count(name) > 1:
            raise RequestError(f"There is a rater {name!r} already; --renew {name} gives them a new token.")
    first = max((rater.number for rater in raters), default=-1) + 1
    tokens = {name: secrets.token_urlsafe(32) for name in names}
    added = [
        Rater(name=name, number=first + index, token_sha256=_hash(token))
        for index, (name, token) in enumerate(tokens.items())
    ]
    _write(folder, [*raters, *added])
    return tokens


def renew(folder: Path, name: str) -> str:
    """A new token for a rater, in place of the old one; what they voted stays theirs."""
    raters = read_raters(folder)
    if name not in {rater.name for rater in raters}:
        raise RequestError(f"There is no rater {name!r}; {nearest(name, [rater.name for rater in raters])}")
    token = secrets.token_urlsafe(32)
    _write(folder, [r.model_copy(update={"token_sha256": _hash(token)}) if r.name == name else r for r in raters])
    return token


def free_names(folder: Path, num_raters: int) -> list[str]:
    """`rater-01`, `rater-02`, ... as many as are asked for, without those that there are."""
    taken = {rater.name for rater in read_raters(folder)}
    names, number = [], 0
    while len(names) < num_raters:
        number += 1
        if (name := f"rater-{number:02d}") not in taken:
            names.append(name)
    return names


def _write(folder: Path, raters: Sequence[Rater]) -> None:
    Folder(folder).write_json(RATERS, {"raters": [rater.model_dump() for rater in raters]}, sort_keys=False)
