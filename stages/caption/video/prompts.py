"""The video_prompts stage: detailed captions lose their style and get one of a few, of which a video generator makes
clips and an editor learns to turn one into another (ByG, appendix D.2).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from cluster.artifacts import Artifact
from cluster.config import StageConfig
from cluster.dag import Context
from cluster.errors import UserError
from stages.caption.answers import ReadingRule, field_rules, read_fields
from stages.caption.asking import Asked, Asking, AskingConfig, asking_sources, with_outcome
from stages.caption.conversation import Call, Conversation, Dropped, Reading
from stages.caption.offers import shard_seed
from stages.caption.order import ordered
from stages.caption.rows import StoredRows
from stages.caption.video import prompt
from stages.caption.video.rules import CleanRule, check_clean
from stages.caption.work import ask

PROMPTS_SCHEMA = with_outcome(
    [
        ("caption_id", pa.string()),
        ("caption", pa.string()),
        ("style", pa.string()),
        ("prompt", pa.string()),
        ("src_caption", pa.string()),
        ("tgt_caption", pa.string()),
        ("instruction", pa.string()),
        ("reverse_instruction", pa.string()),
    ]
)
PLACE = "{caption}"


class StyleWords(StageConfig):
    """How a style is put into a caption, and how an editor is asked for it."""

    template: str = Field(description="With {caption} where the caption goes.")
    instruction: str = Field(min_length=1)

    @field_validator("template")
    @classmethod
    def _has_place(cls, value: str) -> str:
        if PLACE not in value:
            raise ValueError(f"it has no {PLACE}, where the caption goes")
        return value

    def wrapped(self, caption: str) -> str:
        return self.template.replace(PLACE, caption)


class VideoPromptsConfig(AskingConfig):
    """Which model cleans the captions, and the styles that they get."""

    styles: dict[str, StyleWords] = Field(
        {
            "cartoon": StyleWords(
                template="{caption} Everything is drawn as a colorful cartoon.", instruction="Make it a cartoon."
            ),
            "photo-realistic": StyleWords(
                template="{caption} Everything is photo-realistic, as a camera would have filmed it.",
                instruction="Make it photo-realistic.",
            ),
        },
        min_length=2,
        description="By name; a name is also what the clips are checked for.",
    )


def prompts_sources(config: VideoPromptsConfig) -> Sequence[str]:
    """Outside files that the result depends on: the model's folder and the words of the prompts."""
    return asking_sources(config, prompt)


def draw_styles(num: int, styles: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """A style and another one for each of `num` captions; each is the first as often as any other, but for one."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(styles))
    own = generator.permutation(np.resize(order, num))
    drawn = []
    for index in own:
        others = [name for name in styles if name != styles[index]]
        drawn.append((styles[index], others[int(generator.integers(len(others)))]))
    return drawn


def write_video_prompts(inputs: Mapping[str, Artifact], config: VideoPromptsConfig, context: Context) -> None:
    """Fills `prompts/` with a prompt for each caption, and `dead_letters/` with the captions that can't be cleaned.

    `prompt` and `src_caption` are the cleaned caption in its style, `tgt_caption` is it in another one, `instruction`
    asks for that one and `reverse_instruction` for its own. Captions are the rows of any tables with `caption_id` and
    `caption`; each logical shard has all styles equally often.

    Raises:
        UserError: there is no caption, the model can't be loaded, or more than `error_rate_limit` of the captions
            can't be cleaned.
    """
    ask(ask_clean_captions(inputs, config, context), config, context)


def ask_clean_captions(inputs: Mapping[str, Artifact], config: VideoPromptsConfig, context: Context) -> Asking:
    """What `write_video_prompts` asks."""
    (given,) = inputs.values()
    folder = given.folder
    captions = StoredRows(folder, "caption_id", ("caption",))
    if not captions.keys:
        raise UserError(f"{context.stage}: the tables in {folder.url} hold no caption.")
    context.log_input("captions", given.fingerprint, len(captions.keys))

    def rows(keys: Sequence[str]) -> Iterator[Asked]:
        drawn = draw_styles(len(keys), list(config.styles), shard_seed(config.seed, keys))
        for key, (style, other) in zip(keys, drawn, strict=True):
            begin = functools.partial(_conversation, captions.read(key)["caption"], style, other, config)
            yield Asked(key, begin, {"style": style})

    asking = Asking(
        key="caption_id", keys=captions.keys, rows=rows, table="prompts", unit="caption", schema=PROMPTS_SCHEMA,
        prompt_hash=prompt.prompt_hash(), tally="style",
        rules=((ReadingRule.EMPTY_FIELD,), (*field_rules(str), *CleanRule)),
    )  # fmt: skip
    return ordered(asking, config, prompt)


def _conversation(caption: str | None, style: str, other: str, config: VideoPromptsConfig) -> Conversation:
    if not (caption or "").strip():
        raise Dropped("failed", f"{ReadingRule.EMPTY_FIELD}:caption")

    def read(text: str) -> Reading:
        fields = read_fields(text, dict.fromkeys(prompt.FIELDS, str))
        if isinstance(fields, str):
            return Reading(None, [fields])
        return Reading(fields, check_clean(fields["caption"], caption, config.styles))

    clean = (yield Call(*prompt.build_clean_chat(caption), read))["caption"]
    own, target = config.styles[style], config.styles[other]
    return [
        {
            "caption": clean,
            "prompt": own.wrapped(clean),
            "src_caption": own.wrapped(clean),
            "tgt_caption": target.wrapped(clean),
            "instruction": target.instruction,
            "reverse_instruction": own.instruction,
        }
    ]
