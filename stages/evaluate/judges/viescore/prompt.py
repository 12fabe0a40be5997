"""VIEScore's two calls, as GEdit-Bench asks them, in our own words.

SC (semantic consistency) sees source and edited image and the instruction: [success, over-editing].
PQ (perceptual quality) sees the edited image alone: [naturalness, artifacts]. Whole numbers 0 to 10.
Per item SC and PQ are each the smaller of their two scores, and the overall score is sqrt(SC * PQ).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import re

PROMPT_VERSION = "v1"
MAX_TOKENS = 512
MAX_SCORE = 10

FOLDER = pathlib.Path(__file__).parent / PROMPT_VERSION


@functools.cache
def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8").strip()


def prompt_hash() -> str:
    """Identifies the words of both prompts: sha256 of their files, 16 hex digits."""
    return hashlib.sha256("\0".join((_text("sc.txt"), _text("pq.txt"))).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Scores:
    """The two scores of one call, 0 to 10, and what the judge said about them."""

    first: float
    second: float
    reasoning: str

    @property
    def lower(self) -> float:
        return min(self.first, self.second)


def answer_schema() -> dict:
    """JSON schema of both calls' answer."""
    score = {"type": "integer", "minimum": 0, "maximum": MAX_SCORE}
    return {
        "type": "object",
        "properties": {
            "score": {"type": "array", "items": score, "minItems": 2, "maxItems": 2},
            "reasoning": {"type": "string"},  # max_tokens ends it: a length bound makes the grammar slow
        },
        "required": ["score", "reasoning"],
        "additionalProperties": False,
    }


def sc_text(instruction: str) -> str:
    """The words of the SC call."""
    return _text("sc.txt").format(instruction=instruction)


def pq_text() -> str:
    """The words of the PQ call."""
    return _text("pq.txt").format()


def build_sc_chat(source: bytes, edited: bytes, instruction: str) -> tuple[list[dict], dict]:
    """Messages and answer schema of the SC call; the images are encoded pictures of one size."""
    content = [
        {"type": "image", "image": source},
        {"type": "image", "image": edited},
        {"type": "text", "text": sc_text(instruction)},
    ]
    return [{"role": "user", "content": content}], answer_schema()


def build_pq_chat(edited: bytes) -> tuple[list[dict], dict]:
    """Messages and answer schema of the PQ call."""
    content = [{"type": "image", "image": edited}, {"type": "text", "text": pq_text()}]
    return [{"role": "user", "content": content}], answer_schema()


_OBJECT = re.compile(r"\{[^{}]*\}", re.DOTALL)


def parse(text: str) -> Scores | str:
    """The scores of an answer, or the reason why it is unscored: never 0 and never a guess.

    Takes the last JSON object with a `score` after any thinking, fenced or not.
    Reasons: `no_json`, `no_score`, `score_not_two_numbers`, `score_out_of_range`.
    """
    answer = text.rsplit("</think>", 1)[-1].split("<think>", 1)[0]
    found = []
    for match in _OBJECT.findall(answer):
        try:
            found.append(json.loads(match, strict=False))
        except (ValueError, RecursionError):  # a judge that repeats itself may open brackets without end
            continue
    if not found:
        return "no_json"
    scored = [value for value in found if "score" in value]
    if not scored:
        return "no_score"
    score = scored[-1]["score"]
    numbers = isinstance(score, list) and all(isinstance(s, int | float) and not isinstance(s, bool) for s in score)
    if not numbers or len(score) != 2:
        return "score_not_two_numbers"
    if not all(0 <= s <= MAX_SCORE for s in score):
        return "score_out_of_range"
    return Scores(float(score[0]), float(score[1]), str(scored[-1].get("reasoning", "")).strip())


def overall(semantic: Scores, quality: Scores) -> float:
    """VIEScore's overall of one item: sqrt(min(SC) * min(PQ))."""
    return math.sqrt(semantic.lower * quality.lower)
