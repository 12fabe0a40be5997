"""Chat models behind an OpenAI-compatible server that somebody else runs, used in the place of an own
engine.
"""

import base64
import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from cluster.chat import ChatReply, ChatRequest
from cluster.dag import Context
from cluster.errors import UserError, one_line

KEY_VARIABLE = "PAIRLESS_ENDPOINT_KEY"
_TRIES = 5
_TIMEOUT_SECONDS = 600.0
_MEDIA_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


class EndpointEngine:
    """Sends requests to `settings.endpoint`, `num_in_flight` at a time.

    Its key is the environment variable PAIRLESS_ENDPOINT_KEY, read in the stage's process and never logged.
    """

    def __init__(self, settings: Any, context: Context):
        import httpx

        self.settings, self._context = settings, context
        key = os.environ.get(KEY_VARIABLE)
        self._client = httpx.Client(
            base_url=settings.endpoint.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT_SECONDS,
            limits=httpx.Limits(max_connections=settings.num_in_flight),
        )
        try:
            self._client.get("models").raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UserError(
                f"The server at {settings.endpoint} doesn't answer as an OpenAI-compatible one: "
                f"{one_line(error)}. Check the setting `endpoint` and, if it asks for a key, {KEY_VARIABLE}."
            ) from None

    def generate(self, requests: Iterable[ChatRequest | None]) -> Iterator[ChatReply]:
        """As `cluster.vllm.Engine.generate`. Raises UserError if the server stops to answer."""
        source, exhausted, num_flying = iter(requests), False, 0
        waiting: queue.SimpleQueue[ChatRequest | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[ChatReply | Exception] = queue.SimpleQueue()
        num_threads = self.settings.num_in_flight
        threads = [threading.Thread(target=self._work, args=(waiting, done), daemon=True) for _ in range(num_threads)]
        for thread in threads:
            thread.start()
        try:
            while True:
                while not exhausted and num_flying < num_threads:
                    request = next(source, _END)
                    if request is None:
                        break
                    if request is _END:
                        exhausted = True
                    else:
                        waiting.put(request)
                        num_flying += 1
                if not num_flying:
                    if exhausted:
                        return
                    raise RuntimeError("The source of requests waits for a reply, but none is on its way.")
                self._context.check()
                with contextlib.suppress(queue.Empty):
                    result = done.get(timeout=1.0)
                    num_flying -= 1
                    if isinstance(result, Exception):
                        raise result
                    yield result
        finally:
            for _ in threads:
                waiting.put(None)

    def _work(self, waiting: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
        while (request := waiting.get()) is not None:
            try:
                done.put(self._ask(request))
            except Exception as error:
                done.put(error)

    def _ask(self, request: ChatRequest) -> ChatReply:
        import httpx

        problem = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(min(2.0**attempt, 30.0))
            try:
                response = self._client.post("chat/completions", json=self._body(request))
            except httpx.TransportError as error:
                problem = one_line(error)
                continue
            if response.status_code == 429 or response.status_code >= 500:
                problem = f"status {response.status_code}: {response.text[:200]}"
                continue
            if response.status_code in (401, 403, 404):
                raise UserError(
                    f"The server at {self.settings.endpoint} refuses model {self.settings.model} "
                    f"with status {response.status_code}: {response.text[:200]}. "
                    f"Check `model` and {KEY_VARIABLE}."
                )
            if response.status_code >= 400:  # this request's own fault
                return ChatReply(request.key, error=f"request: {' '.join(response.text.split())[:300]}")
            try:
                return _reply(request, response.json())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                problem = f"its answer is no chat completion ({one_line(error)}): {response.text[:200]!r}"
        raise UserError(
            f"The server at {self.settings.endpoint} failed {_TRIES} times at one request: {problem}. "
            "Run the same command again when it works; finished shards stay."
        )

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [_message(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
        }
        if request.schema is not None:
            answer = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": answer}
        if request.seed is not None:
            body["seed"] = request.seed
        if request.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        return body


_END: Any = object()


def _message(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if not isinstance(content, str):
        content = [_part(part) for part in content]
    return {"role": message["role"], "content": content}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return {"type": "text", "text": part["text"]}
    data = part["image"]
    media = next((name for magic, name in _MEDIA_TYPES.items() if data.startswith(magic)), "image/png")
    url = f"data:{media};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _reply(request: ChatRequest, answer: dict[str, Any]) -> ChatReply:
    choices, usage = answer["choices"], answer.get("usage") or {}
    if not choices:
        return ChatReply(request.key, error="request: the answer has no choices")
    choice = choices[0]
    tokens = (choice.get("logprobs") or {}).get("content") or []
    logprobs = {item["token"]: item["logprob"] for item in tokens[0]["top_logprobs"]} if tokens else None
    return ChatReply(
        request.key, choice["message"].get("content") or "", choice.get("finish_reason") or "",
        usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), logprobs,
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
    )  # fmt: skip
