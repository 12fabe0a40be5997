"""The propose stage: edits of plain pictures, each verified by a second look (NP-Edit, appendix D)."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from cluster.artifacts import Artifact
from cluster.chat import request_seed
from cluster.dag import Context
from stages.caption.answers import ReadingRule, checked_fields, field_rules, read_fields, without_thinking
from stages.caption.asking import Asked, Asking, AskingConfig, asking_sources, with_outcome
from stages.caption.conversation import Call, Conversation, Dropped, Reading, Refused
from stages.caption.edits import prompt as edits_prompt
from stages.caption.offers import offer_evenly, shard_seed
from stages.caption.order import ordered
from stages.caption.proposals import prompt
from stages.caption.proposals.rules import (
    CaptionRule,
    ProposalRule,
    VerdictRule,
    check_caption,
    check_edits,
    check_verdict,
)
from stages.caption.stage import read_samples
from stages.caption.words import plain_name
from stages.caption.work import ask

PROPOSALS_SCHEMA = with_outcome(
    [
        ("sample_id", pa.string()),
        ("edit_type", pa.string()),
        ("src_caption", pa.string()),
        ("instruction", pa.string()),
        ("tgt_caption", pa.string()),
        ("reverse_instruction", pa.string()),
        ("object", pa.string()),
        ("edit", pa.int32()),  # which of the picture's proposals
        ("verdict", pa.string()),  # why the model calls it valid or not
    ]
)


class ProposeConfig(AskingConfig):
    """Which model proposes and verifies, and which types of edits it is asked for."""

    edit_types: tuple[str, ...] = Field(
        tuple(edits_prompt.edit_types()), description="Names of edits/v1/edit_types.txt; each picture gets some."
    )
    remove_share: float | None = Field(
        None, gt=0, le=1 / prompt.NUM_PROPOSALS, description="Of all that is asked for; none: as any other type."
    )
    caption_key: str | None = Field(
        None, description="Of the samples' metadata: a picture's own caption; none: the model is asked for it."
    )
    proposal_temperatures: tuple[float, ...] = Field(
        (0.7, 0.8, 0.9, 1.0),
        min_length=1,
        description="For proposals, which are to differ for pictures that are alike.",
    )

    @field_validator("edit_types")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = edits_prompt.edit_types()
        unknown = [name for name in value if name not in known]
        if unknown or len(value) < prompt.NUM_PROPOSALS or len(set(value)) != len(value):
            raise ValueError(f"choose {prompt.NUM_PROPOSALS} or more of {', '.join(known)}, each once")
        return value

    @model_validator(mode="after")
    def _can_be_shared(self) -> ProposeConfig:
        if self.remove_share and "remove" not in self.edit_types:
            raise ValueError("remove_share: edit_types has no remove")
        if self.remove_share and len(self.edit_types) == prompt.NUM_PROPOSALS:
            raise ValueError(f"remove_share: of {prompt.NUM_PROPOSALS} edit_types each picture gets all")
        return self


def propose_sources(config: ProposeConfig) -> Sequence[str]:
    """Outside files that the result depends on: the model's folder, the words of the prompts, types and styles."""
    return [*asking_sources(config, prompt), asking_sources(config, edits_prompt)[-1]]


def propose_edits(inputs: Mapping[str, Artifact], config: ProposeConfig, context: Context) -> None:
    """Fills `tuples/` with a row for each edit of a picture that was proposed, called valid and keeps the rules.

    The rows have the columns of edit tuples, `reverse_instruction` empty, and the number of the `edit`. What was
    refused stands in `dead_letters/` in the same columns, each edit with its own reason, and a picture that got no
    edits in one row. An edit that the model calls invalid is no error.

    Raises:
        UserError: there are no samples, the model can't be loaded, or more than `error_rate_limit` of the pictures
            came to nothing though their edits may be valid.
    """
    ask(ask_proposals(inputs, config, context), config, context)


def ask_proposals(inputs: Mapping[str, Artifact], config: ProposeConfig, context: Context) -> Asking:
    """What `propose_edits` asks."""
    samples = read_samples(inputs["ingest"], context)
    shares = {"remove": config.remove_share} if config.remove_share else {}

    def rows(keys: Sequence[str]) -> Iterator[Asked]:
        seed = shard_seed(config.seed, keys)
        offers = offer_evenly(len(keys), config.edit_types, prompt.NUM_PROPOSALS, shares, seed)
        for key, asked_for in zip(keys, offers, strict=True):
            examples = prompt.choose_examples(asked_for, request_seed(config.seed, key, "examples"))
            yield Asked(key, functools.partial(_conversation, samples.read(key), asked_for, examples, config))

    caption_rules = () if config.caption_key else ((CaptionRule.TOO_SHORT, CaptionRule.TOO_LONG),)
    verdict_rules = (*field_rules(str, bool), *VerdictRule)
    asking = Asking(
        key="sample_id", keys=samples.keys, rows=rows, table="tuples", unit="image", schema=PROPOSALS_SCHEMA,
        prompt_hash=prompt.prompt_hash(),
        rules=(
            (CaptionRule.NO_CAPTION,) if config.caption_key else (),
            (*field_rules(list), ReadingRule.NOT_TEXT, *ProposalRule),
            *caption_rules,
            *[verdict_rules] * prompt.NUM_PROPOSALS,
        ),
        unfit=frozenset({VerdictRule.NOT_VALID}), tally="edit_type", part="edit",
    )  # fmt: skip
    return ordered(asking, config, prompt)


def _conversation(
    sample: Mapping[str, Any], asked_for: Sequence[str], examples: Mapping[str, str], config: ProposeConfig
) -> Conversation:
    image = sample["image"]
    caption = _own_caption(sample["metadata"], config.caption_key) if config.caption_key else None
    chat = prompt.build_proposal_chat(image, asked_for, examples)
    try:
        answer = yield Call(*chat, functools.partial(_read_edits, asked_for=asked_for), config.proposal_temperatures)
    except Refused as refused:
        if not (refused.fields and refused.fields["edits"]):
            raise
        answer = refused.fields  # what is good in the last answer is taken
    edits = answer["edits"]
    reasons = check_edits(edits, asked_for)
    if caption is None and not all(reasons):
        caption = (yield Call(*prompt.build_caption_chat(image), _read_caption))["src_caption"]
    rows = []
    for number, (edit, broken) in enumerate(zip(edits, reasons, strict=True)):
        row = edit | {"edit": number, "src_caption": caption}
        if broken:
            rows.append(row | {"outcome": "filtered", "reason": "; ".join(broken)})
            continue
        read = functools.partial(_read_verdict, edit=edit, src_caption=caption)
        try:
            found = yield Call(*prompt.build_verify_chat(image, edit["edit_type"], edit["instruction"]), read)
        except Refused as refused:
            became = {"outcome": refused.outcome, "reason": "; ".join(refused.reasons)}
            rows.append(row | (refused.fields or {}) | became)
        else:  # the way back is not asked for: NP-Edit goes one way
            rows.append(row | found | {"reverse_instruction": ""})
    return rows


def _own_caption(metadata: str | None, key: str) -> str:
    try:
        value = json.loads(metadata or "{}").get(key)
    except (ValueError, AttributeError):
        value = None
    if not isinstance(value, str) or check_caption(value):
        raise Dropped("filtered", CaptionRule.NO_CAPTION)
    return " ".join(value.split())


def _read_edits(text: str, asked_for: Sequence[str]) -> Reading:
    answer = read_fields(text, {"edits": list})
    if isinstance(answer, str):
        return Reading(None, [answer])
    edits = []
    for item in answer["edits"]:
        if not isinstance(item, dict):
            return Reading(None, [f"{ReadingRule.NOT_TEXT}:edits"])
        edit = checked_fields(item, dict.fromkeys(prompt.EDIT_FIELDS, str), may_be_empty=prompt.EDIT_FIELDS)
        if isinstance(edit, str):
            return Reading(None, [edit])
        edits.append(edit | {"edit_type": edit["edit_type"].lower(), "object": plain_name(edit["object"])})
    broken = [
        f"{reason}:{edit['edit_type'][:40]}"
        for edit, reasons in zip(edits, check_edits(edits, asked_for), strict=True)
        for reason in reasons
    ]
    number = [ProposalRule.WRONG_NUMBER] if len(edits) != prompt.NUM_PROPOSALS else []
    return Reading({"edits": edits}, [*number, *broken])


def _read_caption(text: str) -> Reading:
    caption = " ".join(without_thinking(text).split())
    return Reading({"src_caption": caption}, check_caption(caption))


def _read_verdict(text: str, edit: Mapping[str, str], src_caption: str) -> Reading:
    kinds = {"reason": str, "is_valid": bool, "edited_caption": str}
    found = read_fields(text, kinds, may_be_empty=("reason", "edited_caption"))
    if isinstance(found, str):
        return Reading(None, [found])
    fields = {"verdict": found["reason"], "tgt_caption": found["edited_caption"]}
    return Reading(fields, check_verdict(found["is_valid"], found["edited_caption"], edit, src_caption))
