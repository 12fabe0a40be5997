"""The caption stage: a vision-language model writes an edit tuple for every image (ByG, data engine)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field, field_validator

from cluster.artifacts import Artifact
from cluster.chat import request_seed
from cluster.dag import Context
from cluster.errors import UserError
from stages.caption.answers import field_rules
from stages.caption.asking import Asked, Asking, AskingConfig, asking_sources, with_outcome
from stages.caption.conversation import Call, Conversation, Reading
from stages.caption.edits import prompt
from stages.caption.edits.rules import EditRule, check, find_object, not_applicable
from stages.caption.offers import PRIORITY, offer_styles, offer_types, shard_seed
from stages.caption.order import ordered
from stages.caption.rows import StoredRows
from stages.caption.work import ask

TUPLES_SCHEMA = with_outcome(
    [
        ("sample_id", pa.string()),
        ("edit_type", pa.string()),
        ("src_caption", pa.string()),
        ("instruction", pa.string()),
        ("tgt_caption", pa.string()),
        ("reverse_instruction", pa.string()),
        ("object", pa.string()),
    ]
)


class CaptionConfig(AskingConfig):
    """Which model writes the tuples, what it is asked, and what is done with bad answers."""

    edit_types: tuple[str, ...] = Field(
        ("color", "replace", "background", "remove", "add", "style"),
        description="Names of v1/edit_types.txt.",
    )
    num_offered: int = Field(
        3, ge=1, description="Edit types that each image may choose from; with 1 all are as even as the offers."
    )
    priorities: dict[str, float] = Field(
        PRIORITY, description="How often a type is offered beside the others; 1 where none stands."
    )
    target_styles: tuple[str, ...] | None = Field(None, description="Instead of the prompt's own list of styles.")
    num_styles: int | None = Field(
        None,
        ge=2,
        description="Styles that a style edit may choose from, each as often; none: all, at the model's taste.",
    )
    to_photo_probability: float = Field(0.5, ge=0, le=1, description="For images that aren't photographs.")

    @field_validator("edit_types")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = prompt.edit_types()
        unknown = [name for name in value if name not in known]
        if unknown or not value or len(set(value)) != len(value):
            raise ValueError(f"choose some of {', '.join(known)}, each once")
        return value

    @field_validator("priorities")
    @classmethod
    def _weighed(cls, value: dict[str, float]) -> dict[str, float]:
        known = prompt.edit_types()
        if bad := [name for name, weight in value.items() if name not in known or not 0 < weight < math.inf]:
            raise ValueError(f"{bad[0]}: each is one of {', '.join(known)}, with a number above 0")
        return value


def caption_sources(config: CaptionConfig) -> Sequence[str]:
    """Outside files that the result depends on: the model's folder and the words of the prompt."""
    return asking_sources(config, prompt)


def caption_images(inputs: Mapping[str, Artifact], config: CaptionConfig, context: Context) -> None:
    """Fills `tuples/` with one edit for each image, and `dead_letters/` with the images that have none.

    Raises:
        UserError: there are no samples, the model can't be loaded, or more than `error_rate_limit` of the
            images have no tuple.
    """
    ask(ask_captions(inputs, config, context), config, context)


def ask_captions(inputs: Mapping[str, Artifact], config: CaptionConfig, context: Context) -> Asking:
    """What `caption_images` asks."""
    samples = read_samples(inputs["ingest"], context)

    def rows(keys: Sequence[str]) -> Iterator[Asked]:
        metadata = samples.read_column("metadata", keys)
        seed, styles = shard_seed(config.seed, keys), config.target_styles or prompt.styles()
        offers = offer_types(
            metadata, config.edit_types, config.num_offered, config.to_photo_probability, seed, config.priorities
        )
        if config.num_styles is None:
            style_offers = [styles] * len(keys)
        else:
            style_offers = offer_styles(len(keys), styles, config.num_styles, request_seed(seed, "styles"))
        for key, (offered, forced), listed in zip(keys, offers, style_offers, strict=True):
            image = samples.read(key)["image"]
            yield Asked(key, functools.partial(_conversation, image, offered, forced or listed))

    asking = Asking(
        key="sample_id", keys=samples.keys, rows=rows, table="tuples", unit="image", schema=TUPLES_SCHEMA,
        prompt_hash=prompt.prompt_hash(), rules=((), (*field_rules(str), *EditRule)), tally="edit_type",
    )  # fmt: skip
    return ordered(asking, config, prompt)


def read_samples(ingest: Artifact, context: Context) -> StoredRows:
    """The samples of an ingest artifact, with `image` and `metadata`. Raises UserError if there are none."""
    samples = StoredRows(ingest.folder, "sample_id", ("image", "metadata"), under="samples/")
    if not samples.keys:
        raise UserError(f"{context.stage}: there are no samples: every image of the ingest stage became a dead letter.")
    context.log_input("samples", ingest.fingerprint, len(samples.keys))
    return samples


def _conversation(image: bytes, offered: Sequence[str], styles: Sequence[str]) -> Conversation:
    def read(text: str) -> Reading:
        fields = prompt.parse(text)
        if isinstance(fields, str):
            return Reading(None, [fields])
        subject = find_object(fields["edit_type"], fields["instruction"])
        reasons = check(fields, offered, styles)
        return Reading(fields | {"object": subject}, reasons, not_applicable(fields["edit_type"], reasons))

    row: Mapping[str, Any] = yield Call(*prompt.build_chat(image, offered, styles), read)
    return [row]
