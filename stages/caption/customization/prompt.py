"""The requests for customization: does a picture show one thing that can be told from others, and where else could
it be seen (NP-Edit, appendix D)?

The words are text files in a folder per version (`v1/`): changing a word is a new version.
"""

from __future__ import annotations

import pathlib
from typing import Any

from stages.caption.prompt_files import hash_words, read_words

PROMPT_VERSION = "v1"
OBJECT_FIELDS = ("reason", "is_unique", "object")
NUM_BACKGROUNDS = 3

_FOLDER = pathlib.Path(__file__).parent / PROMPT_VERSION


def _text(name: str) -> str:
    return read_words(_FOLDER, name)


def prompt_hash() -> str:
    """Identifies the words of the prompts: sha256 of its files, 16 hex digits."""
    names = ("object.txt", "example.txt", "backgrounds.txt")
    return hash_words(map(_text, names))


def object_text(has_example: bool = False) -> str:
    """The prompt that asks for the one thing in a picture, the last one where an example goes before it."""
    return f"{_text('example.txt')} {_text('object.txt')}" if has_example else _text("object.txt")


def backgrounds_text(object: str) -> str:
    """The prompt that asks for settings of a thing."""
    return _text("backgrounds.txt").format(object=object)


def object_schema() -> dict[str, Any]:
    """JSON schema of the first answer."""
    properties = {"reason": {"type": "string"}, "is_unique": {"type": "boolean"}, "object": {"type": "string"}}
    return {
        "type": "object",
        "properties": properties,
        "required": list(OBJECT_FIELDS),
        "additionalProperties": False,
    }


def backgrounds_schema() -> dict[str, Any]:
    """JSON schema of the second answer."""
    num = NUM_BACKGROUNDS
    backgrounds = {"type": "array", "items": {"type": "string"}, "minItems": num, "maxItems": num}
    return {
        "type": "object",
        "properties": {"backgrounds": backgrounds},
        "required": ["backgrounds"],
        "additionalProperties": False,
    }


def build_object_chat(image: bytes, example: bytes | None = None) -> tuple[list[dict], dict]:
    """Messages and answer schema for an encoded picture, with an `example` of a good one before it."""
    images = [{"type": "image", "image": picture} for picture in (example, image) if picture is not None]
    content = [*images, {"type": "text", "text": object_text(example is not None)}]
    return [{"role": "user", "content": content}], object_schema()


def build_backgrounds_chat(object: str) -> tuple[list[dict], dict]:
    """The same for the second call, which sees no picture."""
    return [{"role": "user", "content": backgrounds_text(object)}], backgrounds_schema()
