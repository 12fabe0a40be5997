"""ImgEdit-Bench's judge: one call with a rubric for the edit's type, and three whole numbers from 1 to 5."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar

from cluster.chat import ChatReply
from stages.evaluate.judges.judge import Call, EditToJudge, Prompts, cut_off, image_part, own_prompts, text_part

FOLDER = pathlib.Path(__file__).parent / "v1"
EDIT_TYPES = ("extract", "style", "add", "adjust", "background", "replace", "remove", "action", "compose")
CALL = "imgedit"
NUM_SCORES, MIN_SCORE, MAX_SCORE = 3, 1, 5
MAX_TOKENS = 512
MAX_DIGITS = 9  # a judge that repeats itself writes numbers of thousands


def _own() -> Prompts:
    prompts = own_prompts({name: FOLDER / f"{name}.txt" for name in ("frame", *EDIT_TYPES)})
    frame = prompts.texts["frame"]
    texts = {name: frame.replace("{rubric}", prompts.texts[name]) for name in EDIT_TYPES}
    return dataclasses.replace(prompts, texts=texts)


@dataclasses.dataclass(frozen=True)
class ImgEdit:
    """An item's score is the mean of its three numbers, to two decimals.

    Our own words follow the pictures. The official ones precede them, as they say "below".
    """

    prompts: Prompts = dataclasses.field(default_factory=_own)

    name: ClassVar[str] = "imgedit"
    scores: ClassVar[tuple[str, ...]] = ("judge_imgedit_first", "judge_imgedit_second", "judge_imgedit_third")
    overall: ClassVar[str] = "judge_imgedit"
    columns: ClassVar[tuple[str, ...]] = (*scores, overall)
    text_columns: ClassVar[Mapping[str, str]] = {}
    resizes: ClassVar[bool] = False
    edit_types: ClassVar[frozenset[str] | None] = frozenset(EDIT_TYPES)

    def calls(self, edit: EditToJudge) -> list[Call]:
        pictures = [image_part(edit.source), image_part(edit.edited)]
        if self.prompts.official:
            content = [text_part(self.prompts.fill(edit.edit_type, edit_prompt=edit.instruction)), *pictures]
        else:
            content = [*pictures, text_part(self.prompts.fill(edit.edit_type, instruction=edit.instruction))]
        return [Call(CALL, content, None, MAX_TOKENS)]

    def read(self, call: str, reply: ChatReply) -> dict[str, float] | str:
        numbers = cut_off(reply) or parse(reply.text)
        if isinstance(numbers, str):
            return numbers
        return dict(zip(self.scores, map(float, numbers), strict=True))

    def score(self, columns: Mapping[str, float]) -> dict[str, float]:
        numbers = [columns[name] for name in self.scores if name in columns]
        return {self.overall: round(sum(numbers) / NUM_SCORES, 2)} if len(numbers) == NUM_SCORES else {}


def parse(text: str) -> list[int] | str:
    """The three numbers of an answer, in its order, or the reason why it is unscored.

    A number is a line `NAME: INTEGER`, as the official script has it; that takes any number of them.
    Reasons: `no_score`, `not_three_scores`, `score_out_of_range`.
    """
    answer = text.rsplit("</think>", 1)[-1].split("<think>", 1)[0]
    parts = [line.strip().split(": ") for line in answer.splitlines()]
    numbers = [int(part[1][:MAX_DIGITS]) for part in parts if len(part) == 2 and part[1].isdecimal()]
    if not numbers:
        return "no_score"
    if len(numbers) != NUM_SCORES:
        return "not_three_scores"
    if not all(MIN_SCORE <= number <= MAX_SCORE for number in numbers):
        return "score_out_of_range"
    return numbers
