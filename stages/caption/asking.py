"""What an engine asks about which rows, the table that comes of it, and the settings that all engines have."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from cluster.config import StageConfig, runtime
from cluster.vllm import EngineSettings
from stages.caption.conversation import Conversation
from stages.caption.rule import Rule

OUTCOME_COLUMNS = (
    ("outcome", pa.string()),
    ("reason", pa.string()),
    ("attempts", pa.int32()),
    ("finish_reason", pa.string()),
    ("prompt_tokens", pa.int32()),
    ("completion_tokens", pa.int32()),
    ("prompt_version", pa.string()),
    ("prompt_hash", pa.string()),
    ("model", pa.string()),
)


class Fault(Rule):
    """What stands before an answer can be judged at all."""

    IMAGE = "image", "The engine can decode the pictures, and none is too large."
    REQUEST = "request", "The engine can take the request."


class AskingConfig(StageConfig):
    """Which model is asked, how often, and what is done with bad answers."""

    engine: EngineSettings = EngineSettings(model="stages/starter/models/qwen3vl")
    prompt_version: Literal["v1"] = "v1"
    words_first: bool = Field(
        False,
        description="The words that all requests share go before the pictures, as the system's message, where the "
        "engine's prefix cache finds them. The starter's models know the other order.",
    )
    temperatures: tuple[float, ...] = Field((0.0, 0.6, 0.8, 1.0), min_length=1, description="One for each attempt.")
    max_tokens: int = Field(512, ge=1)
    shard_size: int = Field(256, ge=1, description="Rows that are asked about in one logical shard.")
    seed: int = 0
    retries: int = Field(
        0, ge=0, description="How often rows that came to nothing are asked about again, each time one temperature on."
    )
    error_rate_limit: float = runtime(
        0.5, ge=0, le=1, description="Share of rows that came to nothing which fails the stage."
    )

    @model_validator(mode="after")
    def _retries_differ(self) -> AskingConfig:
        if self.retries and self.temperatures[-1] == 0:
            raise ValueError("retries would give the same answers at temperature 0: let temperatures end above it")
        return self

    def earlier(self) -> Sequence[AskingConfig]:
        """With fewer retries: what was good then is good now, and what wasn't is asked about again."""
        return [self.model_copy(update={"retries": retries}) for retries in reversed(range(self.retries))]


def asking_sources(config: AskingConfig, prompt: ModuleType) -> list[str]:
    """Outside files that the result depends on: the model's folder and the words of the prompt."""
    return [*config.engine.source(), str(pathlib.Path(prompt.__file__).parent / config.prompt_version)]


def with_outcome(columns: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    """The schema of an engine's table: its own columns, then what became of the row."""
    return pa.schema([*columns, *OUTCOME_COLUMNS])


@dataclasses.dataclass(frozen=True)
class Asked:
    """A row that is asked about: what begins its conversation, and the columns that it has whatever the answers are."""

    key: str
    begin: Callable[[], Conversation]
    known: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Asking:
    """What an engine asks about which rows, and the table that comes of it.

    key: the column that names a row. keys: all rows, in order. rows: what is asked about the keys of one shard,
    made one after the other, when there is room. table: the folder of good rows. unit: what a row is, in words.
    rules: what is checked of a row before it is asked about, then of the answer to each call, in the calls' order.
    unfit: reasons that are no errors: the answer is right, the row isn't wanted. tally: a column whose values are
    counted for the report. part: the column that numbers the rows of one key where each has an outcome of its own;
    the key has come to something if one of them has.
    """

    key: str
    keys: Sequence[str]
    rows: Callable[[Sequence[str]], Iterator[Asked]]
    table: str
    unit: str
    schema: pa.Schema
    prompt_hash: str
    rules: Sequence[Sequence[Rule]]
    unfit: frozenset[str] = frozenset()
    tally: str | None = None
    part: str | None = None

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """Every rule that a row can break, each once."""
        return tuple(dict.fromkeys([*itertools.chain(*self.rules), *Fault]))
