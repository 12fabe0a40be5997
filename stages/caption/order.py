"""The order of a request's words: those that every request shares can go before the pictures, where the engine's prefix
cache finds them.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from stages.caption.asking import Asked, Asking, AskingConfig
from stages.caption.conversation import Call, Conversation, Refused, proceed

_BREAK = "\n\n"


def ordered(asking: Asking, config: AskingConfig, prompt: ModuleType) -> Asking:
    """The same questions; with `config.words_first`, each as `words_first` has it."""
    if not config.words_first:
        return asking
    shared = shared_paragraphs(pathlib.Path(prompt.__file__).parent / config.prompt_version)

    def rows(keys: Sequence[str]) -> Iterator[Asked]:
        for asked in asking.rows(keys):
            yield dataclasses.replace(asked, begin=functools.partial(_reordered, asked, shared))

    return dataclasses.replace(asking, rows=rows)


def shared_paragraphs(folder: pathlib.Path) -> frozenset[str]:
    """The paragraphs of a prompt's files that have no placeholder: the same words in every request."""
    texts = [file.read_text(encoding="utf-8").strip() for file in sorted(folder.glob("*.txt"))]
    return frozenset(part for text in texts for part in text.split(_BREAK) if "{" not in part)


def words_first(messages: Sequence[Mapping[str, Any]], shared: frozenset[str]) -> list[dict[str, Any]]:
    """The user's message, whose `shared` paragraphs are the system's, which goes before it."""
    (message,) = messages
    content = message["content"]
    if isinstance(content, str):
        system, text = _split(content, shared)
        rest: Any = text
    else:
        *pictures, last = content
        system, text = _split(last["text"], shared)
        rest = [*pictures, {"type": "text", "text": text}] if text else pictures
    return [*([{"role": "system", "content": system}] if system else []), {**message, "content": rest}]


def _split(text: str, shared: frozenset[str]) -> tuple[str, str]:
    parts = text.split(_BREAK)
    return (
        _BREAK.join(part for part in parts if part in shared),
        _BREAK.join(part for part in parts if part not in shared),
    )


def _reordered(asked: Asked, shared: frozenset[str]) -> Generator[Call, Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    conversation: Conversation = asked.begin()
    came_to: Mapping[str, Any] | Refused | None = None
    while True:
        try:
            call = proceed(conversation, came_to)
        except StopIteration as end:
            return end.value
        try:
            came_to = yield dataclasses.replace(call, messages=words_first(call.messages, shared))
        except Refused as refused:
            came_to = refused
