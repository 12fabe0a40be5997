"""The caption stage: a vision-language model writes an edit tuple for every image (ByG, data engine)."""

import collections
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from cluster.artifacts import Artifact
from cluster.chat import ChatReply, ChatRequest, request_seed
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.shards import name_shards
from cluster.vllm import Engine, EngineSettings, get_engine
from stages.caption.edits import prompt
from stages.caption.edits.rules import check, find_object
from stages.caption.offers import offer_types, shard_seed
from stages.caption.report import check_error_rate, write_report

TUPLES_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("edit_type", pa.string()),
        ("src_caption", pa.string()),
        ("instruction", pa.string()),
        ("tgt_caption", pa.string()),
        ("reverse_instruction", pa.string()),
        ("object", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("attempts", pa.int32()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("prompt_version", pa.string()),
        ("prompt_hash", pa.string()),
        ("model", pa.string()),
    ]
)
_MIN_ROWS_FOR_GATE = 64


class CaptionConfig(StageConfig):
    """Which model writes the tuples, what it is asked, and what is done with bad answers."""

    engine: EngineSettings = EngineSettings(model="stages/starter/models/qwen3vl")
    prompt_version: Literal["v1"] = "v1"
    edit_types: tuple[str, ...] = Field(
        ("color", "replace", "background", "remove", "add", "style"),
        description="Names of v1/edit_types.txt.",
    )
    num_offered: int = Field(3, ge=1, description="Edit types that each image may choose from.")
    target_styles: tuple[str, ...] | None = Field(None, description="Instead of the prompt's own list of styles.")
    to_photo_probability: float = Field(0.5, ge=0, le=1, description="For images that aren't photographs.")
    temperatures: tuple[float, ...] = Field((0.0, 0.6, 0.8, 1.0), min_length=1, description="One for each attempt.")
    max_tokens: int = Field(512, ge=1)
    shard_size: int = Field(256, ge=1, description="Images in one logical shard.")
    seed: int = 0
    error_rate_limit: float = runtime(
        0.5, ge=0, le=1, description="Share of images without a tuple that fails the stage."
    )

    @field_validator("edit_types")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = prompt.edit_types()
        unknown = [name for name in value if name not in known]
        if unknown or not value or len(set(value)) != len(value):
            raise ValueError(f"choose some of {', '.join(known)}, each once")
        return value


def caption_sources(config: CaptionConfig) -> Sequence[str]:
    """Outside files that the result depends on: the model's folder and the words of the prompt."""
    return [*config.engine.source(), str(pathlib.Path(prompt.__file__).parent / config.prompt_version)]


def caption_images(inputs: Mapping[str, Artifact], config: CaptionConfig, context: Context) -> None:
    """Fills `tuples/` with good rows and `dead_letters/` with the others and their reasons, in one schema.

    Each image is asked about up to len(temperatures) times, at a rising temperature, until an answer can be
    parsed and keeps the rules. `rules.json` tells how often each rule was broken, with examples.

    Raises:
        UserError: there are no samples, the model can't be loaded, or more than `error_rate_limit` of the
            images have no tuple.
    """
    samples = Samples(inputs["ingest"].folder)
    if not samples.ids:
        raise UserError("caption: there are no samples: every image of the ingest stage became a dead letter.")
    context.log_input("samples", inputs["ingest"].fingerprint, len(samples.ids))
    shards = name_shards(samples.ids, config.shard_size, prefix="tuples/")
    pending = {name: ids for name, ids in shards.items() if not context.out.exists(name)}
    if pending:
        work = CaptionWork(samples, config, context, len(samples.ids), sum(map(len, pending.values())))
        work.run(get_engine(config.engine, context), pending)
    write_report(list(shards), config.error_rate_limit, context)


class Samples:
    """The samples of an ingest artifact: ids in the order of the files, pixels read when they are needed."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._place: dict[str, tuple[str, int]] = {}
        self._loaded: tuple[str, pa.Table] | None = None
        for name in folder.list(".parquet", recursive=True):
            if name.startswith("samples/"):
                for row, sample_id in enumerate(folder.read_table(name, ["sample_id"])["sample_id"].to_pylist()):
                    self._place.setdefault(sample_id, (name, row))
        self.ids = list(self._place)

    def read(self, sample_id: str) -> dict[str, Any]:
        """The row's `image` and `metadata`; quick where neighbours are read one after the other."""
        name, row = self._place[sample_id]
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = (name, self._folder.read_table(name, ["image", "metadata"]))
        return self._loaded[1].slice(row, 1).to_pylist()[0]


@dataclass
class _State:
    """An image whose tuple isn't settled."""

    shard: str
    image: bytes
    offered: tuple[str, ...]
    target_styles: tuple[str, ...] | None
    attempts: int = 0
    row: dict[str, Any] = field(default_factory=dict)


class CaptionWork:
    """Feeds the shards' images to the engine without a pause between shards and commits every shard when it
    is whole.
    """

    def __init__(self, samples: Samples, config: CaptionConfig, context: Context, total: int, num_pending: int):
        self._samples, self._config, self._context = samples, config, context
        self._total, self._num_before = total, total - num_pending
        self._states: dict[str, _State] = {}
        self._retries: collections.deque[ChatRequest] = collections.deque()
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}
        self._broken: dict[str, list[dict[str, Any]]] = {}
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._reasons: collections.Counter[str] = collections.Counter()

    def run(self, engine: Engine, shards: Mapping[str, Sequence[str]]) -> None:
        for name in shards:
            self._rows[name], self._broken[name] = {}, []
        for reply in engine.generate(self._requests(shards)):
            state = self._states[reply.key]
            if not self._settle(state, reply):
                self._retries.append(self._request(reply.key, state))
                continue
            del self._states[reply.key]
            self._keep(reply.key, state, shards)

    def _requests(self, shards: Mapping[str, Sequence[str]]) -> Iterator[ChatRequest | None]:
        for shard, ids in shards.items():
            metadata = [self._samples.read(sample_id)["metadata"] for sample_id in ids]
            config = self._config
            offers = offer_types(
                metadata, config.edit_types, config.num_offered, config.to_photo_probability,
                shard_seed(config.seed, ids),
            )  # fmt: skip
            for sample_id, (offered, styles) in zip(ids, offers, strict=True):
                while self._retries:
                    yield self._retries.popleft()
                image = self._samples.read(sample_id)["image"]
                self._states[sample_id] = _State(shard, image, offered, styles or config.target_styles)
                yield self._request(sample_id, self._states[sample_id])
        while self._states:
            yield self._retries.popleft() if self._retries else None

    def _request(self, sample_id: str, state: _State) -> ChatRequest:
        messages, schema = prompt.build_chat(state.image, state.offered, state.target_styles)
        temperature = self._config.temperatures[state.attempts]
        seed = request_seed(self._config.seed, sample_id, state.attempts)
        return ChatRequest(sample_id, messages, schema, self._config.max_tokens, temperature, seed)

    def _settle(self, state: _State, reply: ChatReply) -> bool:
        """Judges an answer and puts the row together; says whether it is final."""
        state.attempts += 1
        fields: dict[str, str] = {}
        if reply.error is not None:
            outcome, reasons = "failed", [reply.error]
        elif isinstance(parsed := prompt.parse(reply.text), str):
            truncated = reply.finish_reason == "length"
            outcome, reasons = ("truncated" if truncated else "failed"), [parsed]
        else:
            fields = parsed
            reasons = check(fields, state.offered)
            outcome = "filtered" if reasons else "ok"
        if reasons:
            self._broken[state.shard].append(
                {
                    "sample_id": reply.key,
                    "attempt": state.attempts,
                    "reasons": reasons,
                    "answer": reply.text[:2000],
                }
            )
        state.row = dict.fromkeys(TUPLES_SCHEMA.names) | fields | {
            "sample_id": reply.key,
            "object": find_object(fields["edit_type"], fields["instruction"]) if fields else None,
            "outcome": outcome,
            "reason": "; ".join(reasons) or None,
            "attempts": state.attempts,
            "finish_reason": reply.finish_reason,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "prompt_version": self._config.prompt_version,
            "prompt_hash": prompt.prompt_hash(),
            "model": self._config.engine.model,
        }  # fmt: skip
        # A request's own fault comes again each time; anything else may go better at the next temperature.
        return outcome == "ok" or reply.error is not None or state.attempts == len(self._config.temperatures)

    def _keep(self, sample_id: str, state: _State, shards: Mapping[str, Sequence[str]]) -> None:
        rows = self._rows[state.shard]
        rows[sample_id] = state.row
        self._outcomes[state.row["outcome"]] += 1
        self._reasons.update((state.row["reason"] or "").split("; ") if state.row["reason"] else ())
        num_done = self._outcomes.total()
        self._context.progress(self._num_before + num_done, self._total, "images", ok=self._outcomes["ok"] / num_done)
        if num_done >= _MIN_ROWS_FOR_GATE:
            check_error_rate(self._outcomes, self._reasons, self._config.error_rate_limit)
        if len(rows) == len(shards[state.shard]):
            self._commit(state.shard, shards[state.shard])

    def _commit(self, shard: str, ids: Sequence[str]) -> None:
        """The table of good rows goes last: where it is, the shard is done."""
        rows = [self._rows[shard][sample_id] for sample_id in ids]
        out, name = self._context.out, shard.removeprefix("tuples/")
        broken = sorted(self._broken.pop(shard), key=lambda item: (item["sample_id"], item["attempt"]))
        out.write_json(f"rules/{name.removesuffix('.parquet')}.json", broken)
        if bad := [row for row in rows if row["outcome"] != "ok"]:
            out.write_table(f"dead_letters/{name}", pa.Table.from_pylist(bad, TUPLES_SCHEMA))
        good = [row for row in rows if row["outcome"] == "ok"]
        out.write_table(shard, pa.Table.from_pylist(good, TUPLES_SCHEMA))
        del self._rows[shard]
        num_done = self._num_before + self._outcomes.total()
        shares = {f"share_{name}": count / self._outcomes.total() for name, count in self._outcomes.items()}
        self._context.log_metrics(shares, step=num_done)
