"""What a judge is: which calls it makes about an edit, how it reads a reply, which columns of the scores it fills."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cluster.chat import ChatReply


@dataclasses.dataclass(frozen=True)
class EditToJudge:
    """One edit: both pictures as PNG, the instruction, and what the benchmark says about the item.

    key: `method/item_id`. about: the item's metadata, as `object`, `class` or `prompt`; empty where there is none.
    """

    key: str
    source: bytes
    edited: bytes
    instruction: str
    edit_type: str = ""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Call:
    """One question: what the model sees, in this order, and the form of its answer.

    logprobs: how many of the likeliest first tokens are wanted; such an answer is the same at every attempt.
    """

    name: str
    content: list[dict[str, Any]]
    schema: dict[str, Any] | None
    max_tokens: int
    logprobs: int | None = None


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The words of a judge's calls: {name: text}.

    version: the folder's name for our own; `official:` and the first 12 hex digits of the words' sha256 for those of
    somebody's checkout, in which a place to be filled is `<name>` instead of `{name}`.
    sources: the files or folders that they are read from.
    """

    texts: Mapping[str, str]
    version: str
    sources: tuple[str, ...]
    official: bool = False

    @property
    def hash(self) -> str:
        """Identifies the words: sha256 of all texts, 16 hex digits."""
        return sha256(self.texts)[:16]

    def fill(self, name: str, **values: str) -> str:
        """The text of this name with its places filled."""
        text = self.texts[name]
        if not self.official:
            return text.format(**values)
        for place, value in values.items():
            text = text.replace(f"<{place}>", value)
        return text


def sha256(texts: Mapping[str, str]) -> str:
    return hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()


def own_prompts(files: Mapping[str, pathlib.Path]) -> Prompts:
    """Our own words, a file for each text, all in folders of one version."""
    texts = {name: file.read_text(encoding="utf-8").strip() for name, file in files.items()}
    folders = tuple(dict.fromkeys(str(file.parent) for file in files.values()))
    return Prompts(texts, pathlib.Path(folders[0]).name, folders)


class Judge(Protocol):
    """A judge's task. Its words are data (`prompts`); what a call's numbers mean is not."""

    @property
    def name(self) -> str:
        """As `judge_task` has it."""

    @property
    def prompts(self) -> Prompts: ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the scores that it fills with numbers."""

    @property
    def overall(self) -> str:
        """Of these the one that an item must have to count as scored."""

    @property
    def text_columns(self) -> Mapping[str, str]:
        """{call: the column of the scores that keeps its reply}."""

    @property
    def resizes(self) -> bool:
        """Whether the edited picture is brought to its source's size before it is shown."""

    @property
    def edit_types(self) -> frozenset[str] | None:
        """The types of edit that it knows; None: it asks the same of all."""

    def calls(self, edit: EditToJudge) -> Sequence[Call]:
        """What is asked about an edit of a known type."""

    def read(self, call: str, reply: ChatReply) -> dict[str, float] | str:
        """The columns that a reply fills, or the reason why it can't be read: never a guess."""

    def score(self, columns: Mapping[str, float]) -> dict[str, float]:
        """What follows from the columns of all calls; empty where one of them is missing."""


def cut_off(reply: ChatReply) -> str | None:
    """Why a reply in words is no answer because of its end: what a cut-off one says may be a draft of the model's
    thoughts, whose beginning stands in the prompt with some models.
    """
    if reply.finish_reason != "length":
        return None
    return "truncated while thinking" if "<think>" in reply.text.rsplit("</think>", 1)[-1] else "truncated"


def image_part(data: bytes) -> dict[str, Any]:
    return {"type": "image", "image": data}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
