"""vLLM as one would call it by hand: pictures decoded, then `LLM.chat` over all requests at once, in a process of its
own.
"""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import os
import time
from collections.abc import Sequence
from typing import Any

from cluster.chat import ChatRequest
from cluster.vllm import EngineSettings


@dataclasses.dataclass(frozen=True)
class Answers:
    """Seconds of decoding and the call, the texts in the order of the requests, prompt tokens and how many were cached.

    steps: of an engine on the CPU, (sequences, tokens, seconds) of each of its steps.
    """

    seconds: float
    texts: Sequence[str]
    prompt_tokens: int
    cached_tokens: int
    steps: Sequence[tuple[int, int, float]]


class BareVLLM:
    """The process. It has the engine arguments and the sampling parameters of the stages' own engine."""

    def __init__(self, settings: EngineSettings, num_threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # read when torch is imported
        self._process = context.Process(target=_serve, args=(settings, theirs), daemon=True)
        self._process.start()
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
        theirs.close()
        self.info: dict[str, Any] = self._receive()

    def chat(self, requests: Sequence[ChatRequest]) -> Answers:
        self._pipe.send(list(requests))
        return self._receive()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(30)
        self._process.kill()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit("bare vLLM died: its error is above") from None


def _serve(settings: EngineSettings, pipe: Any) -> None:
    os.dup2(2, 1)  # what vLLM logs isn't the benchmark's output
    from cluster.vllm_arguments import engine_arguments, sampling_params

    on_cpu, arguments = engine_arguments(settings)
    import torch
    from vllm import LLM

    llm = LLM.from_engine_args(arguments)
    steps = _watched_steps(llm) if on_cpu else []
    config = llm.llm_engine.vllm_config
    pipe.send(
        {
            "num_threads": torch.get_num_threads(),
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "prefix_caching": config.cache_config.enable_prefix_caching,
            "block_size": config.cache_config.block_size,
        }
    )
    while True:
        try:
            requests = pipe.recv()
        except EOFError:
            return
        steps.clear()
        started = time.perf_counter()
        messages = [[_message(message) for message in request.messages] for request in requests]
        params = [sampling_params(request, on_cpu) for request in requests]
        outputs = llm.chat(messages, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        texts = [output.outputs[0].text for output in outputs]
        prompt = sum(len(output.prompt_token_ids) for output in outputs)
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        pipe.send(Answers(seconds, texts, prompt, cached, list(steps)))


def _message(message: dict[str, Any]) -> dict[str, Any]:
    from PIL import Image

    content = message["content"]
    if not isinstance(content, str):
        content = [
            {"type": "image_pil", "image_pil": Image.open(io.BytesIO(part["image"])).convert("RGB")}
            if part["type"] == "image"
            else part
            for part in content
        ]
    return {"role": message["role"], "content": content}


def _watched_steps(llm: Any) -> list[tuple[int, int, float]]:
    """A list that every step of an engine in this process is written to."""
    steps: list[tuple[int, int, float]] = []
    core = llm.llm_engine.engine_core.engine_core
    schedule, step = core.scheduler.schedule, llm.llm_engine.step
    last: list[Any] = [None]

    def scheduled(*args: Any, **kwargs: Any) -> Any:
        last[0] = schedule(*args, **kwargs)
        return last[0]

    def stepped() -> Any:
        started = time.perf_counter()
        outputs = step()
        seconds = time.perf_counter() - started
        steps.append((len(last[0].num_scheduled_tokens), last[0].total_num_scheduled_tokens, seconds))
        return outputs

    core.scheduler.schedule, llm.llm_engine.step = scheduled, stepped
    return steps
