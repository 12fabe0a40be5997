"""An engine that replays answers, and samples to ask it about."""

import collections
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.artifacts import Artifact
from cluster.chat import ChatReply, ChatRequest
from cluster.dag import Context
from cluster.folder import Folder
from cluster.vllm import Engine
from tests.artifacts import committed

NUM_SAMPLES = 30


class ReplayEngine(Engine):
    """Answers by a function of (request, how many requests its row had before), in an order that its seed decides, so
    many of them on their way at a time; may stop after some replies.
    """

    def __init__(
        self,
        answer: Callable[[ChatRequest, int], str | ChatReply],
        seed: int = 0,
        stop_after: int | None = None,
        num_in_flight: int = 7,
    ):
        self._answer, self._order = answer, np.random.default_rng(seed)
        self._stop_after, self._num_in_flight = stop_after, num_in_flight
        self.requests: list[ChatRequest] = []

    def generate(self, requests: Iterable[ChatRequest | None]) -> Iterator[ChatReply]:
        source, flying, exhausted, num_replies = iter(requests), [], False, 0
        before: collections.Counter[str] = collections.Counter()
        while True:
            while not exhausted and len(flying) < self._num_in_flight:
                request = next(source, "end")
                exhausted = request == "end"
                if exhausted or request is None:
                    break
                flying.append(request)
                self.requests.append(request)
            if not flying:
                assert exhausted
                return
            request = flying.pop(self._order.integers(len(flying)))
            answer = self._answer(request, before[request.key])
            before[request.key] += 1
            num_replies += 1
            if num_replies == self._stop_after:
                raise KeyboardInterrupt
            yield answer if isinstance(answer, ChatReply) else ChatReply(request.key, answer, "stop", 50, 40)


def text_of(request: ChatRequest) -> str:
    """All that a request says in words."""
    content = request.messages[-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def images_of(request: ChatRequest) -> list[bytes]:
    content = request.messages[-1]["content"]
    return [] if isinstance(content, str) else [part["image"] for part in content if part["type"] == "image"]


def make_samples(tmp_path: Path) -> Artifact:
    """Thirty small pictures in two files of samples, and a table of dead letters that nobody may read."""
    folder = Folder(tmp_path / "ingest" / "feed")
    for part in range(2):
        rows = [_sample(i) for i in range(part * 15, part * 15 + 15)]
        folder.write_table(f"samples/{part:05d}.parquet", pa.Table.from_pylist(rows))
    folder.write_table("dead_letters/00000.parquet", pa.table({"sample_id": ["dead"]}))
    return committed(folder, "ingest")


def _sample(i: int) -> dict:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"sample_id": f"{i:016x}", "image": buffer.getvalue(), "metadata": "{}", "outcome": "ok"}


def rows_of(context: Context, folder: str) -> list[dict]:
    names = [name for name in context.out.list(".parquet", recursive=True) if name.startswith(f"{folder}/")]
    return [row for name in names for row in context.out.read_table(name).to_pylist()]


def files_of(context: Context) -> dict[str, str]:
    return {name: context.out.sha256(name) for name in context.out.list("", recursive=True)}
