"""The judges by the name of their task, with our own words or the official ones."""

from __future__ import annotations

from stages.evaluate.judges.imgedit.judge import ImgEdit
from stages.evaluate.judges.judge import Judge
from stages.evaluate.judges.official import imgedit_prompts, viescore_prompts
from stages.evaluate.judges.viescore.judge import VIEScore
from stages.evaluate.judges.viescore_subject.judge import SubjectVIEScore
from stages.evaluate.judges.yes_no.judge import YesNo


def get_judge(task: str, checkout: str | None = None) -> Judge:
    """The judge of a `judge_task`; with a checkout of its benchmark's repository in the official words.

    Raises:
        UserError: the checkout lacks what is needed, or the task has no official words.
    """
    match task:
        case "viescore":
            return VIEScore(viescore_prompts(checkout)) if checkout else VIEScore()
        case "viescore_subject":
            return SubjectVIEScore(viescore_prompts(checkout, subject=True)) if checkout else SubjectVIEScore()
        case "imgedit":
            return ImgEdit(imgedit_prompts(checkout)) if checkout else ImgEdit()
        case "yes_no":
            return YesNo()
    raise ValueError(f"there is no judge {task!r}")
