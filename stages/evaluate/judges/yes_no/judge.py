"""NP-Edit's questions as a judge: how probable is the right answer, Yes or No, as the reply's first token?

The words are those that the starter's small model was taught; a larger model understands them, too.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import ClassVar

from cluster.chat import ChatReply
from stages.evaluate.judges.judge import Call, EditToJudge, Prompts, image_part, own_prompts, text_part

FOLDER = pathlib.Path(__file__).parent / "v1"
QUESTIONS = ("edit_done", "rest_same", "has_object", "new_setting", "same_object")
NUM_LOGPROBS = 20  # what vLLM and OpenAI's servers give at most
RIGHT_ANSWER_NO = frozenset({"has_object"})
COLUMNS = {  # what a question asks about: was the edit done, and was the rest, or the object, kept?
    "edit_done": "judge_p_done",
    "has_object": "judge_p_done",
    "new_setting": "judge_p_done",
    "rest_same": "judge_p_kept",
    "same_object": "judge_p_kept",
}


@dataclasses.dataclass(frozen=True)
class YesNo:
    """Two questions about an edit; its score is the product of both right answers' probabilities, which is
    exp(-loss) of NP-Edit's eq. 4.

    A removal whose object the benchmark names is asked about in the edited picture alone. An item with an object and
    a setting, or with DreamBooth's class and prompt, is a customization.
    """

    prompts: Prompts = dataclasses.field(
        default_factory=lambda: own_prompts({name: FOLDER / f"{name}.txt" for name in QUESTIONS})
    )

    name: ClassVar[str] = "yes_no"
    overall: ClassVar[str] = "judge_p_right"
    columns: ClassVar[tuple[str, ...]] = ("judge_p_done", "judge_p_kept", overall)
    text_columns: ClassVar[Mapping[str, str]] = {}
    resizes: ClassVar[bool] = True
    edit_types: ClassVar[frozenset[str] | None] = None

    def calls(self, edit: EditToJudge) -> list[Call]:
        about = {name: str(value) for name, value in edit.about.items() if isinstance(value, str)}
        named, setting = about.get("object") or about.get("class"), about.get("setting") or about.get("prompt")
        pair, alone = [image_part(edit.source), image_part(edit.edited)], [image_part(edit.edited)]
        if named and setting:
            questions = {"new_setting": pair, "same_object": pair}
        elif named and edit.edit_type == "remove":
            questions = {"has_object": alone, "rest_same": pair}
        else:
            questions = {"edit_done": pair, "rest_same": pair}
        values = {"instruction": edit.instruction, "object": named or "", "setting": setting or ""}
        return [
            Call(name, [*pictures, text_part(self.prompts.fill(name, **values))], None, 1, NUM_LOGPROBS)
            for name, pictures in questions.items()
        ]

    def read(self, call: str, reply: ChatReply) -> dict[str, float] | str:
        if reply.logprobs is None:
            return "no_logprobs"
        yes = p_yes(reply.logprobs)
        if yes is None:
            return "neither_yes_nor_no"
        return {COLUMNS[call]: 1 - yes if call in RIGHT_ANSWER_NO else yes}

    def score(self, columns: Mapping[str, float]) -> dict[str, float]:
        if not {"judge_p_done", "judge_p_kept"} <= columns.keys():
            return {}
        return {self.overall: columns["judge_p_done"] * columns["judge_p_kept"]}


def p_yes(logprobs: Mapping[str, float]) -> float | None:
    """P(Yes) / (P(Yes) + P(No)) of the first token, however it is spelled; None where neither is among the likeliest.

    If only one of them is, the other counts as 0.
    """
    mass = {"yes": 0.0, "no": 0.0}
    for token, logprob in logprobs.items():
        word = token.strip().lower()
        if word in mass:
            mass[word] += math.exp(logprob)
    total = sum(mass.values())
    return mass["yes"] / total if total > 0 else None
