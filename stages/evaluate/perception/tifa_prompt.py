"""TIFA's two calls (Hu et al. 2023), in our own words, with Yes/No questions alone.

One call sees the edit's caption and writes questions about it, to each of which Yes is right. The other sees the
edited picture and one question.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import re

PROMPT_VERSION = "v1"
MAX_QUESTIONS_TOKENS, MAX_ANSWER_TOKENS = 512, 8
YES, NO = "Yes", "No"

_FOLDER = pathlib.Path(__file__).parent / PROMPT_VERSION


@functools.cache
def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8").strip()


def prompt_hash(answer_prompt: str = "") -> str:
    """Identifies the words of both prompts, the second one being given or our own: sha256, 16 hex digits."""
    words = "\0".join((_text("questions.txt"), answer_prompt or _text("answer.txt")))
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def build_questions_chat(caption: str, num_questions: int) -> tuple[list[dict], dict]:
    """Messages and answer schema of the call that writes questions about a caption."""
    text = _text("questions.txt").format(caption=caption, num_questions=num_questions)
    items = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": num_questions}
    schema = {
        "type": "object",
        "properties": {"questions": items},
        "required": ["questions"],
        "additionalProperties": False,
    }
    return [{"role": "user", "content": [{"type": "text", "text": text}]}], schema


def build_answer_chat(image: bytes, question: str, answer_prompt: str = "") -> list[dict]:
    """Messages of the call that answers a question about a picture (PNG), in the words given or our own."""
    text = (answer_prompt or _text("answer.txt")).replace("{question}", question)
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


def read_questions(text: str, num_questions: int) -> list[str] | None:
    """The questions of a reply, without doubled ones; None if it has none or isn't of the form."""
    try:
        questions = json.loads(text)["questions"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(questions, list) or not all(isinstance(q, str) and q.strip() for q in questions):
        return None
    return list(dict.fromkeys(q.strip() for q in questions))[:num_questions] or None


def read_answer(text: str) -> str | None:
    """`Yes` or `No`, by the reply's first word; None where that is neither."""
    word = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    return word[1].capitalize() if word else None
