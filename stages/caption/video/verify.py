"""The verify_clips stage: which generated clips have the style that was meant (ByG, appendix D.2).

The paper's authors looked at every clip; here a vision-language model does, and a person may overrule it.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from pydantic import Field, model_validator

from cluster.artifacts import Artifact
from cluster.dag import Context
from cluster.errors import UserError, one_line
from cluster.folder import Folder
from cluster.vllm import EngineSettings
from stages.caption.answers import ReadingRule, read_yes_or_no
from stages.caption.asking import Asked, Asking, AskingConfig, asking_sources, with_outcome
from stages.caption.conversation import Call, Conversation, Dropped, Reading
from stages.caption.order import ordered
from stages.caption.rows import StoredRows
from stages.caption.rule import Rule
from stages.caption.video import prompt
from stages.caption.video.clips import even_frames
from stages.caption.work import ask

VERIFIED_SCHEMA = with_outcome([("caption_id", pa.string()), ("style", pa.string()), ("decided_by", pa.string())])
_WORDS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class ClipRule(Rule):
    """What a clip must keep."""

    CLIP = "clip", "The clip can be decoded, and it isn't too large."
    DROPPED_BY_PERSON = "dropped_by_person", "No person has said that the clip is to go."
    STYLE_NOT_SEEN = "style_not_seen", "The model sees the style that was meant."


class VerifyClipsConfig(AskingConfig):
    """Which model looks at the clips, at how much of each, and a person's own decisions."""

    engine: EngineSettings = EngineSettings(model="stages/starter/models/qwen3vl", limit_images=4)
    num_frames: int = Field(4, ge=1, le=64, description="Of a clip, evenly spread, that the model is shown.")
    max_tokens: int = Field(16, ge=1)
    overrides: str | None = Field(
        None, description="A CSV file, path or URL, with caption_id,keep (yes or no): it wins over the model."
    )

    @model_validator(mode="after")
    def _frames_fit(self) -> VerifyClipsConfig:
        if self.num_frames > self.engine.limit_images:
            raise ValueError(
                f"num_frames = {self.num_frames} pictures don't go into one request: engine.limit_images is "
                f"{self.engine.limit_images}"
            )
        return self


def verify_clips_sources(config: VerifyClipsConfig) -> Sequence[str]:
    """Outside files that the result depends on: the model's folder, the words of the prompt, a person's decisions."""
    return [*asking_sources(config, prompt), *([config.overrides] if config.overrides else [])]


def verify_clips(inputs: Mapping[str, Artifact], config: VerifyClipsConfig, context: Context) -> None:
    """Fills `verified/` with the ids of the clips to keep, and `dead_letters/` with those of the others and why.

    Clips are the rows of any tables with `caption_id`, `clip` (an animated WebP) and `style`; they aren't copied. A
    clip in another style is filtered, which is no error; one that can't be read has failed.

    Raises:
        UserError: there is no clip, `overrides` can't be read or names a clip that isn't there, the model can't be
            loaded, or more than `error_rate_limit` of the clips can't be judged.
    """
    ask(ask_about_clips(inputs, config, context), config, context)


def ask_about_clips(inputs: Mapping[str, Artifact], config: VerifyClipsConfig, context: Context) -> Asking:
    """What `verify_clips` asks."""
    folder = inputs["clips"].folder
    clips = StoredRows(folder, "caption_id", ("clip", "style"))
    if not clips.keys:
        raise UserError(f"{context.stage}: the tables in {folder.url} hold no clip.")
    decisions = read_overrides(config.overrides, clips.keys) if config.overrides else {}
    context.log_input("clips", inputs["clips"].fingerprint, len(clips.keys))

    def rows(keys: Sequence[str]) -> Iterator[Asked]:
        for key in keys:
            clip = clips.read(key)
            decided_by = "person" if key in decisions else "model"
            begin = functools.partial(_conversation, clip["clip"], clip["style"], decisions.get(key), config.num_frames)
            yield Asked(key, begin, {"style": clip["style"], "decided_by": decided_by})

    asking = Asking(
        key="caption_id", keys=clips.keys, rows=rows, table="verified", unit="clip", schema=VERIFIED_SCHEMA,
        prompt_hash=prompt.prompt_hash(),
        rules=((ClipRule.CLIP, ClipRule.DROPPED_BY_PERSON), (ReadingRule.NEITHER_YES_NOR_NO, ClipRule.STYLE_NOT_SEEN)),
        unfit=frozenset({ClipRule.STYLE_NOT_SEEN, ClipRule.DROPPED_BY_PERSON}), tally="style",
    )  # fmt: skip
    return ordered(asking, config, prompt)


def _conversation(clip: bytes | None, style: str, decision: bool | None, num_frames: int) -> Conversation:
    if decision is False:
        raise Dropped("filtered", ClipRule.DROPPED_BY_PERSON)
    if decision is None:
        try:
            frames = even_frames(clip, num_frames)
        except ValueError as error:
            raise Dropped("failed", f"{ClipRule.CLIP}: {error}") from None
        yield Call(prompt.build_verify_chat(frames, style), None, _read)
    return [{}]


def _read(text: str) -> Reading:
    answer = read_yes_or_no(text)
    if answer is None:
        return Reading(None, [ReadingRule.NEITHER_YES_NOR_NO])
    return Reading({}, [] if answer else [ClipRule.STYLE_NOT_SEEN])


def read_overrides(path: str, known: Sequence[str]) -> dict[str, bool]:
    """A person's decisions by `caption_id`.

    Raises:
        UserError: the file can't be read, lacks a column, or a line has a bad word, an id twice or an unknown one.
    """
    try:
        lines = csv.DictReader(io.StringIO(Folder(path).read_bytes("").decode("utf-8-sig")))
        rows = list(lines)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"verify_clips.overrides: {path} can't be read: {one_line(error)}") from None
    if not {"caption_id", "keep"} <= set(lines.fieldnames or ()):
        raise UserError(f"verify_clips.overrides: the first line of {path} must be caption_id,keep.")
    ids, found = set(known), {}
    for number, row in enumerate(rows, start=2):
        key, word = (row["caption_id"] or "").strip(), (row["keep"] or "").strip().lower()
        problem = None
        if key not in ids:
            problem = "is no caption_id of a clip"
        elif key in found:
            problem = "stands there before"
        elif word not in _WORDS:
            problem = f"has keep = {word!r}, which is neither yes nor no"
        if problem:
            raise UserError(f"verify_clips.overrides: {key!r} in row {number} of {path} {problem}. Correct the row.")
        found[key] = _WORDS[word]
    return found
