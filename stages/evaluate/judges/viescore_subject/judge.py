"""VIEScore's subject task, by which DreamBooth's items are judged: does the picture follow its prompt, and is the
subject the reference's?
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar

from stages.evaluate.judges.judge import EditToJudge, Prompts, own_prompts
from stages.evaluate.judges.viescore.judge import QUALITY, VIEScore
from stages.evaluate.judges.viescore.prompt import FOLDER as VIESCORE_FOLDER

FOLDER = pathlib.Path(__file__).parent / "v1"


@dataclasses.dataclass(frozen=True)
class SubjectVIEScore(VIEScore):
    """SC sees [reference, picture] and the prompt, and gives [prompt following, identity]; PQ is VIEScore's.

    The picture keeps its size: it is no edit of the reference.
    """

    prompts: Prompts = dataclasses.field(
        default_factory=lambda: own_prompts({"sc": FOLDER / "sc.txt", "pq": VIESCORE_FOLDER / "pq.txt"})
    )

    name: ClassVar[str] = "viescore_subject"
    scores: ClassVar[Mapping[str, tuple[str, str]]] = {
        "sc": ("judge_prompt_following", "judge_identity"), "pq": QUALITY,
    }  # fmt: skip
    resizes: ClassVar[bool] = False

    def sc_text(self, edit: EditToJudge) -> str:
        """With DreamBooth's own prompt where the item has one, else with the instruction."""
        return self.prompts.fill("sc", prompt=str(edit.about.get("prompt") or edit.instruction))
