"""A request to a chat model and its reply, as every engine takes and gives them."""

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ChatRequest:
    """One conversation to continue.

    key: the caller's own name for it, carried to the reply.
    messages: as OpenAI writes them, but a picture is `{"type": "image", "image": bytes}` (PNG, JPEG or WebP).
    schema: a JSON schema that the answer must follow, or None for free text.
    seed: makes sampling at a temperature repeatable, whatever else the engine is busy with.
    logprobs: how many of the likeliest first tokens to return with their log-probabilities.
    """

    key: str
    messages: list[dict[str, Any]]
    schema: dict[str, Any] | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class ChatReply:
    """What came of a request. With `error` (this request's own fault, `image: ...` or `request: ...`) no
    text.

    finish_reason: `stop`, or `length` if the answer was cut off. logprobs: {token: log-probability} of the
    first token. cached_tokens: of the prompt's, those that the engine still knew from earlier requests.
    """

    key: str
    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: dict[str, float] | None = field(default=None)
    error: str | None = None
    cached_tokens: int = 0


def request_seed(*parts: object) -> int:
    """A seed of 31 bits from what identifies a request, the same in every process."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
