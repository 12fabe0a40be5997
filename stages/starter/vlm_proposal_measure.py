"""Measures the starter's vision-language model that proposes edits and verifies them, on held-out scenes, served by
the real vLLM.

Truth is the scene world's: an instruction is true to a picture if it is one of the edits that its scene admits.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from stages.caption.answers import read_fields
from stages.caption.proposals import prompt
from stages.caption.proposals.rules import check_edits, check_verdict
from stages.starter import vlm_data as data
from stages.starter import vlm_proposal_data as proposing
from stages.starter.vlm_caption_measure import Ask, share, to_png
from stages.starter.vlm_measure import Engine, find_edit
from stages.starter.vlm_tokenizer import proposal_pieces
from stages.starter.world import Edit, Scene, caption, possible_edit_types, render

_CARD = """# A Qwen3-VL of 1.1 million parameters that proposes edits of the scene world and verifies them
`../qwen3vl`, trained on by `python -m stages.starter.pretrain --only qwen3vl_proposals` for the engine of NP-Edit's
instructions (`stages/caption/proposals/`): it writes four edits of a picture, one of each type that is asked for, says
of an instruction whether it is valid for a picture and why, describes the edited picture, and captions a picture.

**It does not take the place of `../qwen3vl`**, which is as it was: every other engine, the judge and all published
figures use that one. This one has its classes and sizes, and its vocabulary with {num_pieces} pieces behind the others.
What it wasn't taught again (to judge pairs, clips, frames, settings) was not measured: take it to be forgotten.

Figures on {num_items} held-out scenes (captions never trained on), served by vLLM with the prompts, schemas and rules
of the stage. Truth is the scene world's: an instruction is true to a picture if it is one of the edits that its scene
admits, so that the object is there and can't be taken for another, a place is free, something changes, and no two
objects become alike. A proposal must name what it is about, too.

{table}

| verify, greedy, of {num_balanced} instructions, half of them valid | |
| --- | --- |
{verify_table}

- Of six types four are asked for, drawn at random. No scene admits both an addition and a removal, as the world has one
  or two objects: {share_impossible} of what is asked for is impossible. Then, as it was taught, the only object is to
  go, or a third one to come, and verify should refuse that. Of all else {true_possible} are true at temperature 0.
- Rules look at words alone. They can't see what is in the picture.
- Invalid instructions are about what isn't there, about a place that is taken, of no effect, of two changes, of another
  type than is said, vague, garbled, or ask for a color that no object has: drawn as in training, for other scenes.
- Whole prompts and reasons are single tokens. After a change of the words in `stages/caption/proposals/` the model must
  be trained anew; a test says so.
"""
TEMPERATURES = (0.0, 0.7, 1.0, 1.5, 2.0)  # the hotter, the more that is wrong
Verdict = dict[str, str | bool]


@dataclasses.dataclass(frozen=True)
class Judged:
    """An instruction for a scene: the edit that it is, if any, and the model's verdict, if it can be read."""

    scene: Scene
    edit_type: str
    instruction: str
    edit: Edit | None
    verdict: Verdict | None

    @property
    def said_valid(self) -> bool:
        return self.verdict is not None and bool(self.verdict["is_valid"])

    @property
    def caption_right(self) -> bool:
        return self.edit is not None and self.said_valid and self.verdict["edited_caption"] == self.edit.tgt_caption


@dataclasses.dataclass(frozen=True)
class Proposal:
    """An edit that was proposed of a scene, which the model gave a caption, and whether it is true."""

    scene: Scene
    edit: Mapping[str, str]
    src_caption: str
    is_true: bool

    @property
    def is_possible(self) -> bool:
        """Whether the scene admits an edit of this type."""
        return self.edit["edit_type"] in possible_edit_types(self.scene)

    def check(self, judged: Judged) -> list[str]:
        """The rules that the verdict breaks."""
        if judged.verdict is None:
            return ["unread"]
        verdict = judged.verdict
        return check_verdict(verdict["is_valid"], verdict["edited_caption"], self.edit, self.src_caption)


def is_true(scene: Scene, row: Mapping[str, str]) -> bool:
    """Whether a proposal is an edit that the scene admits, with the name of what it is about."""
    edit = find_edit(scene, row["edit_type"], row["instruction"])
    return edit is not None and edit.object == row["object"]


def read_edits(text: str) -> list[dict[str, str]]:
    """The proposals of an answer; none where it can't be read."""
    fields = read_fields(text, {"edits": list})
    return [] if isinstance(fields, str) else fields["edits"]


def judge_all(ask: Ask, asked: Sequence[tuple[Scene, str, str]]) -> list[Judged]:
    """The model's verdicts on (scene, edit type, instruction), greedy."""
    pictures = {scene: to_png(render(scene)) for scene, _, _ in asked}
    chats = [prompt.build_verify_chat(pictures[scene], edit_type, words) for scene, edit_type, words in asked]
    fields = {"reason": str, "is_valid": bool, "edited_caption": str}
    answers = [read_fields(text, fields, may_be_empty=("edited_caption",)) for text in ask(chats, 0)]
    return [
        Judged(scene, edit_type, words, find_edit(scene, edit_type, words), None if isinstance(v, str) else v)
        for (scene, edit_type, words), v in zip(asked, answers, strict=True)
    ]


def agreement(judged: Sequence[Judged]) -> dict:
    """Precision and recall of "valid", and how often the edited caption of a valid edit is right in every word."""
    found = [j for j in judged if j.said_valid and j.edit]
    return {
        "num_items": len(judged),
        "share_true": share([j.edit is not None for j in judged]),
        "precision": share([j.edit is not None for j in judged if j.said_valid]),
        "recall": share([j.said_valid for j in judged if j.edit]),
        "caption_exact": share([j.caption_right for j in found]),
    }


def _measure_proposing(ask: Ask, scenes: Sequence[Scene], captions: Sequence[str], temperature: float) -> dict:
    """Four edits of each scene's picture, and greedy verdicts on those that the rules keep."""
    generator = np.random.default_rng(3)
    offers = [proposing.offer_types(generator) for _ in scenes]
    examples = [prompt.choose_examples(offered, number) for number, offered in enumerate(offers)]
    chats = [
        prompt.build_proposal_chat(to_png(render(scene)), offered, shown)
        for scene, offered, shown in zip(scenes, offers, examples, strict=True)
    ]
    reasons: collections.Counter[str] = collections.Counter()
    proposed, kept, wrong, whole = [], [], [], []
    for scene, src_caption, offered, text in zip(scenes, captions, offers, ask(chats, temperature), strict=True):
        edits = read_edits(text)
        whole.append([edit["edit_type"] for edit in edits] == offered)
        for edit, broken in zip(edits, check_edits(edits, offered), strict=True):
            reasons.update(broken)
            found = Proposal(scene, edit, src_caption, is_true(scene, edit))
            proposed.append(found)
            if found.is_possible and not found.is_true:
                wrong.append({"truth": caption(scene), **edit})
            if not broken:
                kept.append(found)
    judged = judge_all(ask, [(p.scene, p.edit["edit_type"], p.edit["instruction"]) for p in kept])
    left = []
    for proposal, verdict in zip(kept, judged, strict=True):
        broken = proposal.check(verdict)
        reasons.update(broken)
        if not broken:
            left.append((proposal.is_true, proposal.is_true and verdict.caption_right))
    num_asked = prompt.NUM_PROPOSALS * len(scenes)  # those of an answer that can't be read are neither true nor kept
    return {
        "num_items": num_asked,
        "types_as_asked_for": share(whole),
        "impossible": share([not p.is_possible for p in proposed]),
        "true_of_possible": share([p.is_true for p in proposed if p.is_possible]),
        "true_before_rules": round(sum(p.is_true for p in proposed) / num_asked, 4),
        "true_after_rules": share([p.is_true for p in kept]),
        "true_after_verify": share([true for true, _ in left]),
        "true_after_verify_with_caption": share([right for _, right in left]),
        "kept_by_rules": round(len(kept) / num_asked, 4),
        "kept_by_verify": round(len(left) / num_asked, 4),
        "verify": agreement(judged),
        "reasons": dict(reasons.most_common()),
        "examples_wrong": wrong[:20],
    }


def _measure_verifying(ask: Ask, scenes: Sequence[Scene]) -> dict:
    """One valid and one invalid instruction for each scene's picture."""
    generator = np.random.default_rng(4)
    asked = [
        (scene, *proposing.draw_instruction(scene, valid, generator, held_out=True))
        for scene in scenes
        for valid in (True, False)
    ]
    judged = judge_all(ask, asked)
    missed = [proposing.judge(j.scene, j.edit_type, j.instruction)[0] for j in judged if j.said_valid != bool(j.edit)]
    return agreement(judged) | {"missed": dict(collections.Counter(missed).most_common())}


def measure_proposals(model_dir: pathlib.Path, device: str = "cpu", num_items: int = 400) -> dict:
    """Shares right on `num_items` held-out scenes: captions, verdicts on valid and invalid instructions, greedy, and
    proposals at `TEMPERATURES` with greedy verdicts on them."""
    generator = np.random.default_rng(8)
    scenes = [data.draw_scene(generator, held_out=True) for _ in range(num_items)]
    ask = Engine(pathlib.Path(model_dir), device).ask
    captions = ask([prompt.build_caption_chat(to_png(render(scene))) for scene in scenes], 0)
    return {
        "num_items": num_items,
        "caption_exact": share([text == caption(scene) for text, scene in zip(captions, scenes, strict=True)]),
        "verify": _measure_verifying(ask, scenes),
        "proposals": {str(t): _measure_proposing(ask, scenes, captions, t) for t in TEMPERATURES},
    }


def write_card(model_dir: pathlib.Path, figures: dict) -> None:
    """Writes the model card `README.md` beside the weights."""
    rows = [
        ("true before the rules", "true_before_rules"),
        ("... of those that the rules keep", "true_after_rules"),
        ("... of those that verify keeps, too", "true_after_verify"),
        ("... with every word of the edited caption right", "true_after_verify_with_caption"),
        ("share that the rules keep", "kept_by_rules"),
        ("share that the rules and verify keep", "kept_by_verify"),
    ]
    of = figures["proposals"]
    table = ["| proposals at temperature | " + " | ".join(of) + " |", "| --- |" + " --- |" * len(of)]
    table += [f"| {name} | " + " | ".join(str(found[key]) for found in of.values()) + " |" for name, key in rows]
    verdicts = [
        ("precision", "precision"),
        ("recall", "recall"),
        ("edited caption of those, every word", "caption_exact"),
    ]
    table += [
        f"| verify's {name} | " + " | ".join(str(found["verify"][key]) for found in of.values()) + " |"
        for name, key in verdicts
    ]
    verify_table = [f"| {name} | {figures['verify'][key]} |" for name, key in verdicts]
    verify_table.append(f"| caption of the picture as it is, every word | {figures['caption_exact']} |")
    greedy = of[str(TEMPERATURES[0])]
    card = _CARD.format(
        num_items=figures["num_items"],
        num_balanced=figures["verify"]["num_items"],
        num_pieces=len(proposal_pieces()),
        table="\n".join(table),
        verify_table="\n".join(verify_table),
        share_impossible=greedy["impossible"],
        true_possible=greedy["true_of_possible"],
    )
    (pathlib.Path(model_dir) / "README.md").write_text(card)
