"""The caption stage against bare vLLM, side by side: rows per second over the same requests.

`python -m benchmarks.caption [--num-rows 1024] [--num-repetitions 5]` prints one JSON line. Each repetition takes
pictures that no engine has seen. The stage asks about them as a pipeline would: tables of ingest, the engine in a Ray
actor, rules, retries, shards, report, manifest. Then `vllm.LLM.chat`, in a process of its own, gets exactly the
requests that the stage sent, all at once, with the same sampling parameters and engine arguments. Both have answered
a first lot before the clock starts. `ratio` is the median of the repetitions' ratios. The fewer rows, the more the
last rows weigh, whose retries find nobody to share a batch with.

`--num-threads` are bare vLLM's; the actor has the one that Ray gives it. On a GPU, a model of real shape with random
weights: `--model-shape qwen3-vl-8b`. `--record FILE` keeps replies and pace for `benchmarks.caption_scale`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.bare_vllm import Answers, BareVLLM
from benchmarks.recorded import Recording, record
from benchmarks.samples import make_samples
from benchmarks.shapes import SHAPES, shaped_config
from cluster.artifacts import Artifact, commit
from cluster.chat import ChatReply, ChatRequest
from cluster.config import find_profile, identity, read_profile
from cluster.dag import Context, new_run_id
from cluster.folder import Folder
from cluster.lease import Lease
from cluster.session import open_session
from cluster.vllm import Engine, get_engine
from pipelines.cli import PROFILES
from stages.caption import work
from stages.caption.stage import CaptionConfig, caption_images
from stages.starter.world import IMAGE_SIZE

_WARMUP_ROWS = 64


class Overheard(Engine):
    """An engine that keeps what it was asked and said, beside it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.requests: list[ChatRequest] = []
        self.replies: list[ChatReply] = []

    def generate(self, requests: Iterable[ChatRequest | None]) -> Iterator[ChatReply]:
        def passed_on() -> Iterator[ChatRequest | None]:
            for request in requests:
                if request is not None:
                    self.requests.append(request)
                yield request

        for reply in self._engine.generate(passed_on()):
            self.replies.append(reply)
            yield reply


def stage_context(root: Path, name: str, run_id: str) -> Context:
    """A context of one artifact of the caption stage."""
    out, scratch = Folder(root / "caption" / name), root / "scratch"
    scratch.mkdir(exist_ok=True)
    return Context("caption", name, run_id, str(root), out, scratch, Lease.take(out, run_id).owner)


def starter_config(**changes: Any) -> CaptionConfig:
    """The caption stage as the starter profile has it."""
    values = read_profile(find_profile("starter", PROFILES)).values["caption"]
    return CaptionConfig.model_validate(values | changes)


def run_stage(config: CaptionConfig, context: Context, samples: Artifact, engine: Engine) -> float:
    """Seconds of the stage over the samples, from its call to its manifest."""
    work.get_engine = lambda settings, context: engine  # that it would find itself: this one may be overheard
    started = time.perf_counter()
    caption_images({"ingest": samples}, config, context)
    commit(
        context.out, stage="caption", version="1", fingerprint=context.fingerprint,
        config=config.model_dump(mode="json"), identity=identity(config), parents={}, run_id=context.run_id,
        code_version="benchmark", rows=context.rows, figures=context.figures,
    )  # fmt: skip
    return time.perf_counter() - started


@dataclasses.dataclass(frozen=True)
class Repetition:
    """What the stage asked and was told, and what bare vLLM was; seconds of both; the machine's load before."""

    overheard: Overheard
    answers: Answers
    stage_seconds: float
    load: float


def repeat(config: CaptionConfig, num_rows: int, num_repetitions: int, bare: BareVLLM, size: int) -> list[Repetition]:
    """The stage, then bare vLLM, so many times after a first that doesn't count; pictures of `size` pixels."""
    run_id, found = new_run_id(), []
    with tempfile.TemporaryDirectory(prefix="bench-caption-") as temporary:
        root = Path(temporary)
        session = open_session(run_id)
        try:
            for number in range(num_repetitions + 1):
                context = stage_context(root, f"{number:016x}", run_id)
                num = num_rows if number else min(num_rows, _WARMUP_ROWS)
                folder = Folder(root / f"ingest/{number}")
                samples = make_samples(folder, num, first=number * num_rows, size=size)
                engine, load = Overheard(get_engine(config.engine, context)), os.getloadavg()[0]
                seconds = run_stage(config, context, samples, engine)
                found.append(Repetition(engine, bare.chat(engine.requests), seconds, load))
        finally:
            session.close()
    return found[1:]


def figures(repetitions: list[Repetition], num_rows: int) -> dict[str, Any]:
    """Rows per second of both, their ratio, and what tells whether they did the same."""
    stage = statistics.median(each.stage_seconds for each in repetitions)
    bare = statistics.median(each.answers.seconds for each in repetitions)
    ratios = [each.answers.seconds / each.stage_seconds for each in repetitions]
    requests = [len(each.overheard.requests) for each in repetitions]
    replies = [reply for each in repetitions for reply in each.overheard.replies]
    prompt = sum(reply.prompt_tokens for reply in replies)
    num_same = sum(
        (request.key, text) in said
        for each in repetitions
        for said in [{(reply.key, reply.text) for reply in each.overheard.replies}]
        for request, text in zip(each.overheard.requests, each.answers.texts, strict=True)
    )
    return {
        "stage_rows_per_s": round(num_rows / stage, 2),
        "vllm_rows_per_s": round(num_rows / bare, 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "num_rows": num_rows,
        "requests_per_row": round(statistics.mean(requests) / num_rows, 3),
        "same_answers": round(num_same / sum(requests), 4),
        "prompt_tokens_per_request": round(prompt / len(replies), 1),
        "stage_cached_share": round(sum(reply.cached_tokens for reply in replies) / prompt, 4),
        "vllm_cached_share": round(sum(each.answers.cached_tokens for each in repetitions) / prompt, 4),
        "load_before": [round(each.load, 1) for each in repetitions],
        "num_cores": os.cpu_count(),
    }


def recording_of(repetitions: list[Repetition]) -> Recording:
    pairs = []
    for repetition in repetitions:
        of_key: dict[str, list[ChatRequest]] = {}
        for request in repetition.overheard.requests:
            of_key.setdefault(request.key, []).append(request)
        # a row has one request on its way at a time
        pairs += [(of_key[reply.key].pop(0), reply) for reply in repetition.overheard.replies]
    return record(pairs, [step for repetition in repetitions for step in repetition.answers.steps])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rows", type=int, default=1024)
    parser.add_argument("--num-repetitions", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--model-shape", choices=SHAPES)
    parser.add_argument("--picture-size", type=int, default=IMAGE_SIZE, help="pixels of a side")
    parser.add_argument("--record", type=Path)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-model-") as temporary:
        config = starter_config()
        if flags.model_shape:
            config = shaped_config(flags.model_shape, Path(temporary))
        bare = BareVLLM(config.engine, flags.num_threads)
        try:
            repetitions = repeat(config, flags.num_rows, flags.num_repetitions, bare, flags.picture_size)
        finally:
            bare.close()
    if flags.record:
        recording_of(repetitions).write(flags.record)
    print(json.dumps(figures(repetitions, flags.num_rows) | {"model_shape": flags.model_shape} | bare.info))


if __name__ == "__main__":
    main()
