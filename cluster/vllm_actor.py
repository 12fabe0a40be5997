"""The process that holds a vLLM engine. Imported in the actor alone; vLLM itself only when the engine is
built.
"""

import asyncio
import functools
import io
import math
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster import record
from cluster.chat import ChatReply, ChatRequest
from cluster.errors import first_cause, one_line
from cluster.folder import Folder
from cluster.vllm_arguments import engine_arguments, sampling_params

_MAX_IMAGE_BYTES = 256 << 20
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
_WATCH_SECONDS = 30.0
_ABANDONED_SECONDS = 60.0


class EngineActor:
    """An engine behind an asynchronous Ray actor.

    One thread builds the engine and steps it, taking in new requests between two steps. On a machine without a GPU
    the engine's core lives in this process, which halves the start and the memory (vLLM's own AsyncLLM starts a second
    process and its workers there, each with all imports), and the same thread renders prompts and pictures, some at a
    time, when a quarter of the batch is free: rendered beside the steps, they would be stepped in smaller batches and
    by a thread that loses the interpreter's lock at each operation. With a GPU the core is a process of its own, as
    vLLM has it, and a second thread renders.

    If the engine fails, the process ends and Ray starts it anew; callers send again what was on its way.
    """

    def __init__(self, settings: Any, log: str, root: str, run_id: str):
        import ray

        self.settings, self._root, self._run_id = settings, Folder(root), run_id
        _redirect_output(log)
        self._handle = ray.get_runtime_context().current_actor
        self._arrivals: queue.SimpleQueue[tuple[_Call, ChatRequest, _Render]] = queue.SimpleQueue()
        self._flying: dict[str, tuple[_Call, ChatRequest]] = {}
        self._num_requests = 0
        self._num_open = 0
        self._last_used = time.monotonic()
        self._retiring = False
        self._ready: Future[dict[str, Any]] = Future()
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="render")
        threading.Thread(target=self._main, name="engine", daemon=True).start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    async def placed(self) -> int:
        """Answers as soon as the process runs, while the engine still loads."""
        return os.getpid()

    async def ready(self) -> dict[str, Any]:
        """Waits for the engine: {device, seconds, pid}. Raises RuntimeError with the cause if it can't be
        built.

        Who waits here uses the engine: else two of them on a machine with room for one would drive each other out
        while they load.
        """
        self._num_open += 1
        try:
            return await asyncio.wrap_future(self._ready)
        finally:
            self._num_open -= 1
            self._last_used = time.monotonic()

    async def retire(self, idle_seconds: float, stage: str = "", reason: str = "") -> bool:
        """Ends the process for good if nothing was asked of it for so long; says whether it does.

        A reason goes into the run's record as an incident of `stage`. Whatever is asked of it before the reply is
        out keeps it alive.
        """
        if self._num_open or time.monotonic() - self._last_used < idle_seconds:
            return False
        if reason and not self._retiring:  # the asker may have given up waiting, so it is written here
            record.write_incident(self._root, self._run_id, stage, reason)
        self._retiring = True
        asyncio.get_running_loop().call_later(1.0, self._leave)
        return True

    def _leave(self) -> None:
        import ray

        if self._num_open:
            self._retiring = False
        else:
            ray.kill(self._handle)

    async def generate(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """Answers requests; a fault of one of them comes back as its reply's `error`.

        Several come at a time because each call costs the engine's thread the interpreter's lock.
        """
        self._num_open += 1
        try:
            if not self._ready.done():  # a restarted process has callers that don't know of it
                await asyncio.wrap_future(self._ready)
            call = _Call(len(requests))
            for request in requests:
                render = functools.partial(self._render, request)
                if self._on_cpu:
                    self._arrivals.put((call, request, render))
                else:
                    self._renderer.submit(self._render_ahead, call, request, render)
            return await asyncio.wrap_future(call.done)
        finally:
            self._num_open -= 1
            self._last_used = time.monotonic()

    def _render_ahead(self, call: "_Call", request: ChatRequest, render: "_Render") -> None:
        rendered: Future[tuple[Any, Any]] = Future()
        try:
            rendered.set_result(render())
        except _BadRequest as error:
            rendered.set_exception(error)
        self._arrivals.put((call, request, rendered.result))

    def _render(self, request: ChatRequest) -> tuple[Any, Any]:
        from vllm.renderers.params import ChatParams

        try:
            messages = [self._message(message) for message in request.messages]
            chat = ChatParams(chat_template_kwargs={"add_generation_prompt": True, "continue_final_message": False})
            _, (prompt,) = self._engine.renderer.render_chat([messages], chat)
            return prompt, sampling_params(request, self._on_cpu)
        except _BadRequest:
            raise
        except Exception as error:  # whatever vLLM says of one request must not reach another
            cause = first_cause(error)
            if getattr(cause, "parameter", "") == "input_tokens":  # its own words advise to shorten the prompt
                limit = self.settings.max_model_len
                words = f"request: {cause.value} tokens of words alone don't fit into max_model_len = {limit}"
                raise _BadRequest(words) from error
            raise _BadRequest(f"request: {one_line(cause)}") from error

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message["content"]
        if isinstance(content, str):
            return {"role": message["role"], "content": self._plain(content)}
        parts = []
        for part in content:
            if part["type"] == "image":
                parts.append({"type": "image_pil", "image_pil": _decode(part["image"], self.settings.max_image_pixels)})
            else:
                parts.append({"type": "text", "text": self._plain(part["text"])})
        return {"role": message["role"], "content": parts}

    def _plain(self, text: str) -> str:
        # A picture's caption may spell a control token; it must stay text.
        for token in self._special_tokens:
            text = text.replace(token, "")
        return text

    def _main(self) -> None:
        """Builds the engine and steps it for ever."""
        start = time.monotonic()
        try:
            self._build()
        except BaseException as error:
            traceback.print_exc()
            self._ready.set_exception(RuntimeError(one_line(error, 600)))
            return
        device = "cpu" if self._on_cpu else "gpu"
        self._ready.set_result({"device": device, "seconds": time.monotonic() - start, "pid": os.getpid()})
        try:
            while True:
                self._take_in()
                for output in self._engine.step():
                    if output.finished:
                        call, request = self._flying.pop(output.request_id)
                        call.add(_reply(request, output))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _take_in(self) -> None:
        """Gives new requests to the engine; waits for one if it has nothing to do."""
        from vllm.exceptions import VLLMClientError

        if len(self._flying) > self._refill_at:
            return
        while not self._flying or (len(self._flying) < self._fill_to and not self._arrivals.empty()):
            call, request, render = self._arrivals.get()
            name = str(self._num_requests)
            self._num_requests += 1
            try:
                self._engine.add_request(name, *render())
                self._flying[name] = (call, request)
            except _BadRequest as error:
                call.add(ChatReply(request.key, error=str(error)))
            except (ValueError, VLLMClientError) as error:
                call.add(ChatReply(request.key, error=f"request: {one_line(error)}"))

    @property
    def _fill_to(self) -> float:
        return self.settings.max_num_seqs if self._on_cpu else math.inf

    @property
    def _refill_at(self) -> float:
        # Prompts rendered some at a time find the caches warm; the batch is large enough meanwhile.
        return self.settings.max_num_seqs * 3 // 4 if self._on_cpu else math.inf

    def _build(self) -> None:
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        self._on_cpu, arguments = engine_arguments(self.settings)
        # How many tokens a step may take depends on who asks: as much as offline use is given.
        self._engine = LLMEngine.from_engine_args(arguments, UsageContext.LLM_CLASS)
        tokenizer = self._engine.renderer.get_tokenizer()
        self._special_tokens = sorted(set(tokenizer.all_special_tokens), key=len, reverse=True)

    def _watch(self) -> None:
        """Ends the process when the run's driver is gone: nobody else would."""
        while True:
            time.sleep(_WATCH_SECONDS)
            try:
                run = record.read_run(self._root, self._run_id)
                if run and (run.is_abandoned() or run.status != "running"):
                    self._handle.retire.remote(_ABANDONED_SECONDS)
            except OSError:
                continue


class _BadRequest(Exception):
    pass


_Render = Callable[[], tuple[Any, Any]]


class _Call:
    """The replies to requests that came together, `done` when all are there. One thread adds them."""

    def __init__(self, num_requests: int) -> None:
        self._num_requests = num_requests
        self._replies: list[ChatReply] = []
        self.done: Future[list[ChatReply]] = Future()

    def add(self, reply: ChatReply) -> None:
        self._replies.append(reply)
        if len(self._replies) == self._num_requests:
            self.done.set_result(self._replies)


def _decode(data: bytes, max_pixels: int) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        if len(data) > _MAX_IMAGE_BYTES:
            raise ValueError(f"{len(data)} bytes are over {_MAX_IMAGE_BYTES}")
        with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(f"{image.width}x{image.height} pixels are over {max_pixels}")
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise _BadRequest(f"image: not a picture in {', '.join(_IMAGE_FORMATS)}") from None
    except Exception as error:  # decoders raise about anything at broken files
        raise _BadRequest(f"image: {one_line(error)}") from error


def _reply(request: ChatRequest, output: Any) -> ChatReply:
    completion = output.outputs[0]
    logprobs = None
    if request.logprobs is not None and completion.logprobs:
        logprobs = {}
        for item in completion.logprobs[0].values():  # parts of a character may share a text: the likeliest counts
            logprobs[item.decoded_token] = max(item.logprob, logprobs.get(item.decoded_token, item.logprob))
    return ChatReply(
        request.key, completion.text, completion.finish_reason or "", len(output.prompt_token_ids or ()),
        len(completion.token_ids), logprobs, cached_tokens=output.num_cached_tokens or 0,
    )  # fmt: skip


def _redirect_output(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
