"""The requests for NP-Edit's instructions: four edits of a picture, then for each whether it is valid and what the
edited picture shows (NP-Edit, appendix D); and the caption of the picture itself.

The words are text files in a folder per version (`v1/`): changing a word is a new version. The types and the styles
are those of edit tuples.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.caption.edits import prompt as edits_prompt
from stages.caption.prompt_files import hash_words, read_words

PROMPT_VERSION = "v1"
NUM_PROPOSALS = 4
EDIT_FIELDS = ("edit_type", "object", "instruction")
VERDICT_FIELDS = ("reason", "is_valid", "edited_caption")

_FOLDER = pathlib.Path(__file__).parent / PROMPT_VERSION
_FILES = ("propose.txt", "examples.txt", "good_examples.txt", "bad_examples.txt", "verify.txt", "caption.txt")


def _text(name: str) -> str:
    return read_words(_FOLDER, name)


@functools.cache
def good_examples() -> dict[str, tuple[str, ...]]:
    """Good instructions for each edit type."""
    found: dict[str, tuple[str, ...]] = {}
    for line in _text("good_examples.txt").splitlines():
        edit_type, instruction = line.split(": ", 1)
        found[edit_type] = (*found.get(edit_type, ()), instruction)
    return found


def choose_examples(edit_types: Sequence[str], seed: int) -> dict[str, str]:
    """One good instruction for each of the types, as the seed says."""
    generator = np.random.default_rng(seed)
    known = good_examples()
    return {name: known[name][int(generator.integers(len(known[name])))] for name in edit_types}


def prompt_hash() -> str:
    """Identifies the words of the prompts: sha256 of all files, 16 hex digits."""
    shared = (*edits_prompt.edit_types().values(), *edits_prompt.styles())
    return hash_words([*map(_text, _FILES), *shared])


def proposal_text(edit_types: Sequence[str], examples: Mapping[str, str] | None = None) -> str:
    """The prompt that asks for one edit of each type, with an example of each where they are given.

    Raises ValueError for a type that it does not know.
    """
    known = edits_prompt.edit_types()
    if unknown := [name for name in edit_types if name not in known]:
        raise ValueError(f"ask for types among {', '.join(known)}, not {', '.join(unknown)}")
    listed = ", ".join(edits_prompt.styles())
    types = [f"- {name}: {known[name].format(styles=listed)}" for name in edit_types]
    good = [f"- {name}: {instruction}" for name, instruction in (examples or {}).items()]
    bad = []
    for line in _text("bad_examples.txt").splitlines():
        instruction, why = line.split(" | ", 1)
        bad.append(f"- {instruction}\n  {why}")
    shown = _text("examples.txt").format(examples="\n".join(good)) + "\n\n" if good else ""
    return _text("propose.txt").format(edit_types="\n".join(types), examples=shown, bad_examples="\n".join(bad))


def verify_text(edit_type: str, instruction: str) -> str:
    """The prompt that asks whether an instruction is valid, and what the edited picture shows."""
    return _text("verify.txt").format(edit_type=edit_type, instruction=instruction)


def caption_text() -> str:
    """The prompt that asks what the picture shows; its answer is free text."""
    return _text("caption.txt")


def proposal_schema(edit_types: Sequence[str]) -> dict[str, Any]:
    """JSON schema of the edits: `EDIT_FIELDS` of each, in their order."""
    text = {"type": "string"}
    edit = {
        "type": "object",
        "properties": {
            "edit_type": {"type": "string", "enum": list(edit_types)},
            "object": text,
            "instruction": text,
        },
        "required": list(EDIT_FIELDS),
        "additionalProperties": False,
    }
    edits = {"type": "array", "items": edit, "minItems": NUM_PROPOSALS, "maxItems": NUM_PROPOSALS}
    return {"type": "object", "properties": {"edits": edits}, "required": ["edits"], "additionalProperties": False}


def verify_schema() -> dict[str, Any]:
    """JSON schema of the verdict."""
    return {
        "type": "object",
        "properties": {
            "reason": {"type": "string"},
            "is_valid": {"type": "boolean"},
            "edited_caption": {"type": "string"},
        },
        "required": list(VERDICT_FIELDS),
        "additionalProperties": False,
    }


def build_proposal_chat(
    image: bytes, edit_types: Sequence[str], examples: Mapping[str, str] | None = None
) -> tuple[list[dict], dict]:
    """Messages and answer schema that ask for one edit of each type of an encoded picture."""
    return _about(image, proposal_text(edit_types, examples)), proposal_schema(edit_types)


def build_verify_chat(image: bytes, edit_type: str, instruction: str) -> tuple[list[dict], dict]:
    """The same for whether an instruction is valid."""
    return _about(image, verify_text(edit_type, instruction)), verify_schema()


def build_caption_chat(image: bytes) -> tuple[list[dict], None]:
    """The same for what the picture shows."""
    return _about(image, caption_text()), None


def _about(image: bytes, text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
