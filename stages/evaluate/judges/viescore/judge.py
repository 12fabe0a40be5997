"""VIEScore of an edit, as GEdit-Bench asks it: SC about source and edit, PQ about the edit alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from cluster.chat import ChatReply
from stages.evaluate.judges.judge import Call, EditToJudge, Prompts, cut_off, image_part, own_prompts, text_part
from stages.evaluate.judges.viescore.prompt import FOLDER, MAX_TOKENS, Scores, answer_schema, overall, parse

QUALITY = ("judge_naturalness", "judge_artifacts")


@dataclasses.dataclass(frozen=True)
class VIEScore:
    """Two calls with two scores from 0 to 10 each; an item's score is sqrt(min(SC) * min(PQ)).

    Official words are asked as the official script does: the answer is held to no schema.
    """

    prompts: Prompts = dataclasses.field(
        default_factory=lambda: own_prompts({"sc": FOLDER / "sc.txt", "pq": FOLDER / "pq.txt"})
    )

    name: ClassVar[str] = "viescore"
    scores: ClassVar[Mapping[str, tuple[str, str]]] = {"sc": ("judge_success", "judge_over_editing"), "pq": QUALITY}
    overall: ClassVar[str] = "judge_overall"
    text_columns: ClassVar[Mapping[str, str]] = {"sc": "judge_sc_text", "pq": "judge_pq_text"}
    resizes: ClassVar[bool] = True
    edit_types: ClassVar[frozenset[str] | None] = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.scores["sc"], *self.scores["pq"], self.overall)

    def calls(self, edit: EditToJudge) -> list[Call]:
        schema = None if self.prompts.official else answer_schema()
        pictures = [image_part(edit.source), image_part(edit.edited)]
        return [
            Call("sc", [*pictures, text_part(self.sc_text(edit))], schema, MAX_TOKENS),
            Call("pq", [image_part(edit.edited), text_part(self.prompts.fill("pq"))], schema, MAX_TOKENS),
        ]

    def sc_text(self, edit: EditToJudge) -> str:
        return self.prompts.fill("sc", instruction=edit.instruction)

    def read(self, call: str, reply: ChatReply) -> dict[str, float] | str:
        scores = cut_off(reply) or parse(reply.text)
        if isinstance(scores, str):
            return scores
        return dict(zip(self.scores[call], (scores.first, scores.second), strict=True))

    def score(self, columns: Mapping[str, float]) -> dict[str, float]:
        pairs = [[columns[name] for name in names if name in columns] for names in self.scores.values()]
        if not all(len(pair) == 2 for pair in pairs):
            return {}
        semantic, quality = (Scores(*pair, "") for pair in pairs)
        return {self.overall: overall(semantic, quality)}
