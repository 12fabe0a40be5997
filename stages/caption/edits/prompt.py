"""The request for an edit tuple: prompt, answer schema, and a parser for what models really answer.

The prompt's words are text files in a folder per version (`v1/`): changing a word is a new version. The rules
that a parsed row must keep are in `rules.py`.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

from stages.caption.answers import read_fields
from stages.caption.prompt_files import hash_words, read_words

PROMPT_VERSION = "v1"
FIELDS = ("edit_type", "src_caption", "instruction", "tgt_caption", "reverse_instruction")
MAX_CAPTION_LENGTH = 800  # characters
MAX_INSTRUCTION_LENGTH = 240

_FOLDER = pathlib.Path(__file__).parent / PROMPT_VERSION


def _text(name: str) -> str:
    return read_words(_FOLDER, name)


@functools.cache
def edit_types() -> dict[str, str]:
    """All edit types with the line that explains each to the model."""
    return dict(line.split(": ", 1) for line in _text("edit_types.txt").splitlines())


@functools.cache
def styles() -> tuple[str, ...]:
    """The styles that a style edit chooses from, unless the caller names others."""
    return tuple(_text("styles.txt").splitlines())


def prompt_hash() -> str:
    """Identifies the words of the prompt: sha256 of its files, 16 hex digits."""
    names = ("prompt.txt", "edit_types.txt", "styles.txt")
    return hash_words(map(_text, names))


def prompt_text(offered_types: Sequence[str], target_styles: Sequence[str] | None = None) -> str:
    """The prompt for a choice of `offered_types`. Raises ValueError for a type that it does not know."""
    known = edit_types()
    if not offered_types or (unknown := [name for name in offered_types if name not in known]):
        raise ValueError(f"offer one or more of {', '.join(known)}, not {unknown if offered_types else 'none'}")
    listed = ", ".join(target_styles or styles())
    lines = [f"- {name}: {known[name].format(styles=listed)}" for name in offered_types]
    return _text("prompt.txt").format(edit_types="\n".join(lines))


def answer_schema(offered_types: Sequence[str]) -> dict:
    """JSON schema of the answer: the five fields in their order.

    The strings carry no length: bounds of hundreds of characters make the grammar's token masks cost 0.6 s an
    answer instead of 0.5 ms. `max_tokens` ends a string that doesn't, and the rules check lengths.
    """
    text = {"type": "string"}
    return {
        "type": "object",
        "properties": {
            "edit_type": {"type": "string", "enum": list(offered_types)},
            "src_caption": text,
            "instruction": text,
            "tgt_caption": text,
            "reverse_instruction": text,
        },
        "required": list(FIELDS),
        "additionalProperties": False,
    }


def build_chat(
    image: bytes, offered_types: Sequence[str], target_styles: Sequence[str] | None = None
) -> tuple[list[dict], dict]:
    """Messages and answer schema that ask for one edit of `image` (an encoded picture).

    `target_styles` replaces the list that a style edit chooses from; with `offered_types=["style"]` it forces
    the target, as for pictures that are known not to be photographs.
    """
    content = [
        {"type": "image", "image": image},
        {"type": "text", "text": prompt_text(offered_types, target_styles)},
    ]
    return [{"role": "user", "content": content}], answer_schema(offered_types)


def parse(text: str) -> dict[str, str] | str:
    """The five fields of an answer, or the reason why there are none (`answers.field_rules`)."""
    row = read_fields(text, dict.fromkeys(FIELDS, str))
    return row if isinstance(row, str) else row | {"edit_type": row["edit_type"].lower()}
