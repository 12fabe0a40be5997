"""The evolve stage: a vision-language model tells of every pair how the one picture becomes the other
(Video4Edit, section 3.2).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from cluster.artifacts import Artifact
from cluster.dag import Context
from cluster.errors import UserError
from stages.caption.answers import ReadingRule, field_rules, read_fields
from stages.caption.asking import Asked, Asking, AskingConfig, asking_sources, with_outcome
from stages.caption.conversation import Call, Conversation, Dropped, Reading
from stages.caption.evolution import prompt
from stages.caption.evolution.rules import PolishRule, ProcessRule, check_polish, check_process
from stages.caption.order import ordered
from stages.caption.rows import StoredRows
from stages.caption.rule import Rule
from stages.caption.work import ask

EVOLUTION_SCHEMA = with_outcome(
    [
        ("pair_id", pa.string()),
        ("edit_type", pa.string()),
        ("instruction", pa.string()),
        ("evolution_caption", pa.string()),
    ]
)
COLUMNS = ("edit_type", "instruction", "source_image", "target_image")


class PairRule(Rule):
    """What a pair must have before it is asked about."""

    EMPTY_FIELD = "empty_field", ReadingRule.EMPTY_FIELD.meaning
    UNKNOWN_EDIT_TYPE = "unknown_edit_type", "The pair's edit type is one that the prompt knows."


class EvolveConfig(AskingConfig):
    """Which model tells of the changes, and what is added to its words."""

    polish: bool = Field(True, description="Ask a second time, for better wording of the same.")
    suffix: str = Field(
        "The footage is sharp and rich in detail, and all of the change is smooth and coherent.",
        description="A sentence after every caption; empty for none.",
    )
    max_tokens: int = Field(256, ge=1)


def evolve_sources(config: EvolveConfig) -> Sequence[str]:
    """Outside files that the result depends on: the model's folder and the words of the prompts."""
    return asking_sources(config, prompt)


def evolve_captions(inputs: Mapping[str, Artifact], config: EvolveConfig, context: Context) -> None:
    """Fills `captions/` with an evolution caption for each pair, and `dead_letters/` with the pairs without one.

    Pairs are the rows of any tables with `pair_id` and the columns COLUMNS.

    Raises:
        UserError: there is no pair, the model can't be loaded, or more than `error_rate_limit` of the pairs have no
            caption (one with an edit type that the prompt doesn't know has none).
    """
    ask(ask_evolutions(inputs, config, context), config, context)


def ask_evolutions(inputs: Mapping[str, Artifact], config: EvolveConfig, context: Context) -> Asking:
    """What `evolve_captions` asks."""
    (given,) = inputs.values()
    folder = given.folder
    pairs = StoredRows(folder, "pair_id", COLUMNS)
    if not pairs.keys:
        raise UserError(f"{context.stage}: the tables in {folder.url} hold no pair.")
    context.log_input("pairs", given.fingerprint, len(pairs.keys))

    def rows(keys: Sequence[str]) -> Iterator[Asked]:
        for key in keys:
            pair = pairs.read(key)
            known = {name: pair[name] for name in ("edit_type", "instruction")}
            yield Asked(key, functools.partial(_conversation, pair, config), known)

    process = (*field_rules(str), *ProcessRule)
    asking = Asking(
        key="pair_id", keys=pairs.keys, rows=rows, table="captions", unit="pair", schema=EVOLUTION_SCHEMA,
        prompt_hash=prompt.prompt_hash(), tally="edit_type",
        rules=(PairRule, process, *([(*process, *PolishRule)] if config.polish else [])),
    )  # fmt: skip
    return ordered(asking, config, prompt)


def _conversation(pair: Mapping[str, Any], config: EvolveConfig) -> Conversation:
    instruction = (pair["instruction"] or "").strip()
    if not instruction:
        raise Dropped("failed", f"{PairRule.EMPTY_FIELD}:instruction")
    if pair["edit_type"] not in prompt.edit_types():
        raise Dropped("failed", f"{PairRule.UNKNOWN_EDIT_TYPE}:{pair['edit_type']}")

    def read_process(text: str) -> Reading:
        fields = _read(text)
        if isinstance(fields, str):
            return Reading(None, [fields])
        return Reading(fields, check_process(fields["evolution_caption"], instruction))

    call = prompt.build_chat(pair["source_image"], pair["target_image"], instruction, pair["edit_type"])
    caption = (yield Call(*call, read_process))["evolution_caption"]

    def read_polish(text: str) -> Reading:
        fields = _read(text)
        if isinstance(fields, str):
            return Reading(None, [fields])
        return Reading(fields, check_polish(fields["evolution_caption"], caption, instruction))

    if config.polish:
        caption = (yield Call(*prompt.build_polish_chat(caption), read_polish))["evolution_caption"]
    return [{"evolution_caption": with_sentence(caption, config.suffix)}]


def _read(text: str) -> dict[str, Any] | str:
    return read_fields(text, dict.fromkeys(prompt.FIELDS, str))


def with_sentence(caption: str, sentence: str) -> str:
    """The caption with a sentence after it, and a full stop between them if there is none."""
    if not sentence:
        return caption
    stop = "" if caption.endswith((".", "!", "?")) else "."
    return f"{caption}{stop} {sentence}"
