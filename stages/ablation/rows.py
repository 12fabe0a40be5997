"""What each ablation compares: a row is one switch of a method, with the paper's figures beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Metric = Literal["edit_success", "preservation", "whole_scene_right"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One training: what differs from the full method, and what the paper has for it, by our metric."""

    title: str
    switches: Mapping[str, Any]
    paper: Mapping[Metric, float]
    encoded: str | None = None
    """The stage whose rows it learns from, where that is another one than the full method's."""


@dataclasses.dataclass(frozen=True)
class Table:
    """All rows of one ablation, and what the paper's figures are."""

    method: str
    rows: Mapping[str, Row]
    paper: str


def _byg(title: str, success: float, preservation: float, **switches: bool) -> Row:
    return Row(title, switches, {"edit_success": success, "preservation": preservation})


def _overall(title: str, overall: float | None, encoded: str | None = None, **switches: Any) -> Row:
    return Row(title, switches, {} if overall is None else {"whole_scene_right": overall}, encoded)


BYG = Table(
    "ByG",
    {
        "full": _byg("ours, full", 8.317, 7.617),
        "no_gradient_routing": _byg("without gradient routing", 8.917, 7.183, gradient_routing=False),
        "no_cycle": _byg("without cycle loss", 8.983, 7.233, cycle=False),
        "no_directional": _byg("without directional loss", 8.400, 7.233, directional=False),
        "no_bootstrap": _byg("without bootstrapping", 5.517, 7.050, bootstrap=False),
        "no_mse": _byg("without regularization (MSE)", 0.633, 9.767, mse=False),
        "no_identity_steps": _byg("without random identity steps", 8.413, 7.450, identity_steps=False),
    },
    "table 4 (VIEScore of a 72B judge, 0 to 10, on real pictures)",
)
NP_EDIT = Table(
    "NP-Edit",
    {
        "full": _overall("ours, full", 6.10),
        "only_dmd": _overall("distribution matching alone", 4.93, vlm=False),
        "only_vlm": _overall("the judge's loss alone", 1.93, dmd=False),
        "no_identity_question": _overall("without the identity question", 5.76, identity_question=False),
        "vocabulary": _overall("cross-entropy over all words", 5.89, vocabulary=True),
        "one_step": _overall("one sampling step", None, times=(1.0,)),
    },
    "table 3 (VIEScore's overall on GEdit-Bench, 0 to 10)",
)
VIDEO4EDIT = Table(
    "Video4Edit",
    {
        "full": _overall("ours, full", 6.71),
        "no_distillation": _overall("without distillation", 6.05, distillation=False),
        "no_tail": _overall("without tail supervision", 6.28, tail=False),
        "no_evolution_captions": _overall(
            "teacher without evolution captions", 6.45, "rollout_instructions", evolution_captions=False
        ),
        "paper_terms": _overall("the paper's two terms alone, no distilled velocity", None, lambda_velocity=0.0),
    },
    "table 6 (VIEScore's overall on GEdit-Bench, 0 to 10)",
)
