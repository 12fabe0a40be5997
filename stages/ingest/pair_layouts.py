"""Published data sets of edit pairs: which columns hold what, and which of our edit types a row is."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

LayoutName = Literal["omniedit", "hqedit", "ultraedit", "magicbrush", "pairs"]
EDIT_TYPES_FILE = Path(__file__).with_name("edit_types.yaml")


@dataclasses.dataclass(frozen=True)
class PairLayout:
    """The names of a data set's columns; in a WebDataset tar they are keys of KEY.json and members KEY.COLUMN.jpg."""

    source_image: str
    target_image: str
    instruction: str  # a text, or a list of texts of which the first counts
    task: str | None = None  # the data set's own name for the kind of edit


LAYOUTS: dict[LayoutName, PairLayout] = {
    "omniedit": PairLayout("src_img", "edited_img", "edited_prompt_list", "task"),  # TIGER-Lab/OmniEdit-Filtered-1.2M
    "hqedit": PairLayout("input_image", "output_image", "edit"),  # UCSC-VLAA/HQ-Edit
    "ultraedit": PairLayout("source_image", "edited_image", "edit_prompt"),  # BleachNick/UltraEdit
    "magicbrush": PairLayout("source_img", "target_img", "instruction"),  # osunlp/MagicBrush
    "pairs": PairLayout("source_image", "target_image", "instruction", "edit_type"),  # as the pairs stage writes them
}


@functools.cache
def _table() -> Mapping[str, Any]:
    return yaml.safe_load(EDIT_TYPES_FILE.read_text(encoding="utf-8"))


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    return [(name, re.compile(pattern)) for rule in _table()["words"] for name, pattern in rule.items()]


def edit_type_of(layout: LayoutName, task: str | None, instruction: str) -> str | None:
    """The row's edit type by `edit_types.yaml`: by its task where that says enough, else by its instruction's words."""
    if layout == "pairs":
        return task
    by_task = _table()["tasks"].get(layout, {}).get((task or "").strip().lower(), "words")
    if by_task != "words":
        return by_task
    text = " ".join(instruction.lower().split())
    return next((name for name, pattern in _patterns() if pattern.search(text)), None)
