"""The customize stage: pictures of one thing, and settings in which it could be shown anew (NP-Edit, appendix D)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from pydantic import Field, field_validator

from cluster.artifacts import Artifact
from cluster.dag import Context
from cluster.errors import UserError, one_line
from cluster.folder import Folder
from stages.caption.answers import ReadingRule, field_rules, read_fields
from stages.caption.asking import Asked, Asking, AskingConfig, asking_sources, with_outcome
from stages.caption.conversation import Call, Conversation, Reading
from stages.caption.customization import prompt
from stages.caption.customization.rules import (
    ObjectRule,
    SettingRule,
    check_object,
    check_settings,
    not_applicable,
)
from stages.caption.order import ordered
from stages.caption.stage import read_samples
from stages.caption.words import plain_name
from stages.caption.work import ask

EDIT_TYPE = "customization"
CUSTOMIZATION_SCHEMA = with_outcome(
    [
        ("sample_id", pa.string()),
        ("edit_type", pa.string()),
        ("src_caption", pa.string()),
        ("instruction", pa.string()),
        ("tgt_caption", pa.string()),
        ("reverse_instruction", pa.string()),
        ("object", pa.string()),
        ("setting", pa.string()),
    ]
)


class CustomizeConfig(AskingConfig):
    """Which model chooses pictures and thinks of settings, and how these become texts to train on."""

    instruction_template: str = Field(
        "Generate the main object shown in the first image in a different setting and pose: {setting}",
        description="Of {setting}, at training and later alike.",
    )
    source_template: str = Field("A picture of the {object}", description="The source's caption, of {object}.")
    caption_template: str = Field("{object} {setting}", description="The target's, of {object} and {setting}.")
    setting_temperatures: tuple[float, ...] = Field(
        (1.0, 1.0, 0.8, 0.6), min_length=1, description="For settings, which are to differ for things of one name."
    )
    example: str | None = Field(None, description="A picture that is fit, path or URL, shown before each.")
    max_tokens: int = Field(256, ge=1)

    @field_validator("instruction_template", "source_template", "caption_template")
    @classmethod
    def _has_places(cls, value: str, info) -> str:
        places = {
            "instruction_template": ("{setting}",),
            "source_template": ("{object}",),
            "caption_template": ("{object}", "{setting}"),
        }
        if missing := [place for place in places[info.field_name] if place not in value]:
            raise ValueError(f"it has no {' and no '.join(missing)}")
        return value


def customize_sources(config: CustomizeConfig) -> Sequence[str]:
    """Outside files that the result depends on: the model's folder, the words of the prompts, the example."""
    return [*asking_sources(config, prompt), *([config.example] if config.example else [])]


def customize_images(inputs: Mapping[str, Artifact], config: CustomizeConfig, context: Context) -> None:
    """Fills `tuples/` with a row for each setting of each fit picture, and `dead_letters/` with the other pictures.

    The rows have the columns of edit tuples, with the `edit_type` "customization", and their `setting`. A picture
    without one thing that can be told from others is filtered, which is no error.

    Raises:
        UserError: there are no samples, the example or the model can't be loaded, or more than `error_rate_limit` of
            the pictures came to nothing though they may be fit.
    """
    ask(ask_settings(inputs, config, context), config, context)


def ask_settings(inputs: Mapping[str, Artifact], config: CustomizeConfig, context: Context) -> Asking:
    """What `customize_images` asks."""
    samples = read_samples(inputs["ingest"], context)
    example = _read_example(config.example) if config.example else None

    def rows(keys: Sequence[str]) -> Iterator[Asked]:
        for key in keys:
            begin = functools.partial(_conversation, samples.read(key)["image"], example, config)
            yield Asked(key, begin, {"edit_type": EDIT_TYPE})

    asking = Asking(
        key="sample_id", keys=samples.keys, rows=rows, table="tuples", unit="image", schema=CUSTOMIZATION_SCHEMA,
        prompt_hash=prompt.prompt_hash(),
        rules=((), (*field_rules(str, bool), *ObjectRule), (*field_rules(list), ReadingRule.NOT_TEXT, *SettingRule)),
        unfit=frozenset({ObjectRule.NOT_UNIQUE}),
    )  # fmt: skip
    return ordered(asking, config, prompt)


def _read_example(path: str) -> bytes:
    try:
        return Folder(path).read_bytes("")
    except OSError as error:
        raise UserError(f"customize.example: {path} can't be read: {one_line(error)}") from None


def _conversation(image: bytes, example: bytes | None, config: CustomizeConfig) -> Conversation:
    name = (yield Call(*prompt.build_object_chat(image, example), _read_object))["object"]

    def read_settings(text: str) -> Reading:
        fields = read_fields(text, {"backgrounds": list})
        if isinstance(fields, str):
            return Reading(None, [fields])
        reasons = check_settings(fields["backgrounds"], name, prompt.NUM_BACKGROUNDS)
        return Reading(fields, reasons, not_applicable(reasons))

    asked = Call(*prompt.build_backgrounds_chat(name), read_settings, config.setting_temperatures)
    settings = (yield asked)["backgrounds"]
    return [_row(name, " ".join(setting.split()).rstrip(" ."), config) for setting in settings]


def _read_object(text: str) -> Reading:
    fields = read_fields(text, {"reason": str, "is_unique": bool, "object": str}, may_be_empty=("reason", "object"))
    if isinstance(fields, str):
        return Reading(None, [fields])
    name = plain_name(fields["object"])
    reasons = check_object(fields["is_unique"], name)
    return Reading({"object": name}, reasons, not_applicable(reasons))


def _row(name: str, setting: str, config: CustomizeConfig) -> dict[str, str]:
    def filled(template: str) -> str:
        return template.replace("{object}", name).replace("{setting}", setting)

    return {
        "src_caption": filled(config.source_template),
        "instruction": filled(config.instruction_template),
        "tgt_caption": filled(config.caption_template),
        "reverse_instruction": "",  # the way back is not known: nothing tells where the thing was seen before
        "object": name,
        "setting": setting,
    }
