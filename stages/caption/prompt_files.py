"""The words of a prompt: text files in a folder per version."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Iterable


@functools.cache
def read_words(folder: pathlib.Path, name: str) -> str:
    """The text of a file, without the white space around it."""
    return (folder / name).read_text(encoding="utf-8").strip()


def hash_words(texts: Iterable[str]) -> str:
    """Identifies texts: the first 16 hex digits of their sha256."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
