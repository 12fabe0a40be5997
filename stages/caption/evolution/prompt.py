"""The request for an evolution caption: what happens between a picture and its edit, told as a clip (Video4Edit, 3.2).

The words are text files in a folder per version (`v1/`): changing a word is a new version.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from stages.caption.prompt_files import hash_words, read_words

PROMPT_VERSION = "v1"
FIELDS = ("evolution_caption",)

_FOLDER = pathlib.Path(__file__).parent / PROMPT_VERSION


def _text(name: str) -> str:
    return read_words(_FOLDER, name)


@functools.cache
def edit_types() -> dict[str, str]:
    """All edit types with the line that tells the model how such an edit goes on (table 1)."""
    return dict(line.split(": ", 1) for line in _text("edit_types.txt").splitlines())


def prompt_hash() -> str:
    """Identifies the words of the prompts: sha256 of its files, 16 hex digits."""
    names = ("prompt.txt", "edit_types.txt", "polish.txt")
    return hash_words(map(_text, names))


def prompt_text(instruction: str, edit_type: str) -> str:
    """The first prompt, instruction to process. Raises ValueError for an edit type that it doesn't know."""
    if edit_type not in edit_types():
        raise ValueError(f"no such edit type: {edit_type!r}; known are {', '.join(edit_types())}")
    return _text("prompt.txt").format(instruction=instruction, hint=edit_types()[edit_type])


def polish_text(evolution_caption: str) -> str:
    """The second prompt, which polishes the wording and leaves the meaning."""
    return _text("polish.txt").format(evolution_caption=evolution_caption)


def answer_schema() -> dict[str, Any]:
    """JSON schema of both answers."""
    return {
        "type": "object",
        "properties": {"evolution_caption": {"type": "string"}},
        "required": list(FIELDS),
        "additionalProperties": False,
    }


def build_chat(source: bytes, target: bytes, instruction: str, edit_type: str) -> tuple[list[dict], dict]:
    """Messages and answer schema for a pair of encoded pictures."""
    content = [
        {"type": "image", "image": source},
        {"type": "image", "image": target},
        {"type": "text", "text": prompt_text(instruction, edit_type)},
    ]
    return [{"role": "user", "content": content}], answer_schema()


def build_polish_chat(evolution_caption: str) -> tuple[list[dict], dict]:
    """The same for the second call, which sees no picture."""
    return [{"role": "user", "content": polish_text(evolution_caption)}], answer_schema()
