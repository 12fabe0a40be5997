"""What a study asks: its items with both methods' edits, its attention checks, its questions; one JSON file.

A study's folder holds `study.json`, `media/` (named by content), `raters.json` and `votes.jsonl`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from cluster.errors import RequestError, UserError
from cluster.folder import Folder

STUDY, MEDIA, RATERS, VOTES = "study.json", "media", "raters.json", "votes.jsonl"
MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp"}
MediaName = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\.(png|webp)$")]

BETTER = "Which is the better editing result?"  # ByG, appendix E, in its words
CRITERIA = (
    "A good edit does what the instruction asks for.",
    "It keeps everything else as it is in the original.",
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Question(_Part):
    """Something to answer about every pair; votes name it by its key."""

    key: str = Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")
    text: str = Field(min_length=1, max_length=300)


class Item(_Part):
    """One edit that both methods made; `outputs` by method. Pictures are files of `media/`."""

    item_id: str
    source_id: str
    edit_type: str
    instruction: str
    reference: MediaName
    outputs: dict[str, MediaName]


class Check(_Part):
    """A pair with a known answer: nothing is to be changed, `right` is the reference itself, `wrong` another source."""

    check_id: str
    instruction: str
    reference: MediaName
    right: MediaName
    wrong: MediaName


class Origin(_Part):
    """The evaluation that the edits were taken from."""

    run_id: str
    stage: str
    fingerprint: str


class Study(_Part):
    """`num_per_rater` items are shown to each rater, with all checks among them.

    Of the benchmark's `num_expected` items `num_missing` lack an edit by one of the methods; for `num_identical` both
    made the same picture, so that there is nothing to choose; `items` are all or some of the others, drawn evenly over
    the edit types.
    """

    version: Literal[1] = 1
    title: str
    methods: tuple[str, str]
    questions: tuple[Question, ...] = Field(min_length=1, max_length=5)
    ties: bool
    seed: int
    num_per_rater: int = Field(ge=1)
    min_checks_right: float = Field(ge=0, le=1)
    origin: Origin
    num_expected: int
    num_missing: int
    num_identical: int
    items: tuple[Item, ...] = Field(min_length=1)
    checks: tuple[Check, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, keys in (
            ("item_id", [item.item_id for item in self.items]),
            ("check_id", [check.check_id for check in self.checks]),
            ("question", [question.key for question in self.questions]),
            ("method", self.methods),
        ):
            if len(set(keys)) < len(keys):
                raise ValueError(f"{name} isn't unique")
        if any(set(item.outputs) != set(self.methods) for item in self.items):
            raise ValueError(f"an item has other outputs than those of {' and '.join(self.methods)}")
        if self.num_per_rater > len(self.items) or len(self.checks) > self.num_per_rater:
            raise ValueError("a rater can't be shown more items than there are, nor more checks than items")
        return self

    @property
    def media(self) -> set[str]:
        """Every file that the study shows."""
        files = {file for item in self.items for file in (item.reference, *item.outputs.values())}
        return files | {file for check in self.checks for file in (check.reference, check.right, check.wrong)}


def write_study(folder: Path, study: Study) -> None:
    Folder(folder).write_json(STUDY, study.model_dump(mode="json"), sort_keys=False)


def read_study(folder: Path) -> tuple[Study, str]:
    """The study and its id, which is a hash of the file: votes carry it.

    Raises:
        RequestError: there is no study in the folder.
        UserError: its file doesn't say what it should, or a picture is missing.
    """
    path = folder / STUDY
    try:
        content = path.read_bytes()
    except OSError:
        raise RequestError(f"{folder} holds no study: there is no {STUDY}. `prepare` makes one.") from None
    try:
        study = Study.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(f"{path} can't be used: {where}: {first['msg']}.") from None
    missing = sorted(name for name in study.media if not (folder / MEDIA / name).is_file())
    if missing:
        raise UserError(f"{folder / MEDIA} lacks {len(missing)} of the study's pictures, such as {missing[0]}.")
    return study, hashlib.sha256(content).hexdigest()[:16]
