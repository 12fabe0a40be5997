"""The requests about videos: a caption without its style, and whether a video has the style that was meant
(ByG, appendix D.2).

The words are text files in a folder per version (`v1/`): changing a word is a new version.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from stages.caption.prompt_files import hash_words, read_words

PROMPT_VERSION = "v1"
FIELDS = ("caption",)

_FOLDER = pathlib.Path(__file__).parent / PROMPT_VERSION


def _text(name: str) -> str:
    return read_words(_FOLDER, name)


def prompt_hash() -> str:
    """Identifies the words of the prompts: sha256 of its files, 16 hex digits."""
    return hash_words(map(_text, ("clean.txt", "verify.txt")))


def clean_text(caption: str) -> str:
    """The prompt that takes the style out of a caption."""
    return _text("clean.txt").format(caption=caption)


def verify_text(style: str) -> str:
    """The question whether frames have a style; the right answer is Yes."""
    return _text("verify.txt").format(style=style)


def answer_schema() -> dict[str, Any]:
    """JSON schema of a cleaned caption."""
    return {
        "type": "object",
        "properties": {"caption": {"type": "string"}},
        "required": list(FIELDS),
        "additionalProperties": False,
    }


def build_clean_chat(caption: str) -> tuple[list[dict], dict]:
    """Messages and answer schema; the model sees the text alone."""
    return [{"role": "user", "content": clean_text(caption)}], answer_schema()


def build_verify_chat(frames: Sequence[bytes], style: str) -> list[dict]:
    """Messages with encoded frames of one video; the answer is free text, Yes or No."""
    content = [{"type": "image", "image": frame} for frame in frames]
    return [{"role": "user", "content": [*content, {"type": "text", "text": verify_text(style)}]}]
