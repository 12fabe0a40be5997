"""Small studies with real pictures: prepared from a finished run, or of clips."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster import record
from cluster.artifacts import commit
from cluster.folder import Folder
from cluster.lease import this_process
from stages.evaluate.study.definition import BETTER, MEDIA, Check, Item, Origin, Question, Study, write_study
from stages.evaluate.study.prepare import KEEP, prepare
from stages.evaluate.study.vote_log import Vote, make_vote
from stages.train.backbones.clip_files import write_clip

RUN_ID = "20260102-101500-abcdef"
METHODS = ("byg", "sft")
QUESTION = Question(key="better", text=BETTER)
SETTINGS = {
    "stage": "evaluate", "methods": METHODS, "title": "A small study", "questions": [QUESTION], "ties": False,
    "seed": 5, "num_items": None, "num_per_rater": None, "num_checks": None, "min_checks_right": 0.8,
}  # fmt: skip


def prepared(run: str, out: Path, **changes: object) -> Study:
    return prepare(run, out, **(SETTINGS | changes))


def made_up(num_items: int, num_checks: int = 0, **changes: object) -> Study:
    """A study without pictures, for what doesn't look at them."""

    def name(*parts: object) -> str:
        return hashlib.sha256(repr(parts).encode()).hexdigest() + ".png"

    items = tuple(
        Item(
            item_id=f"item-{index:03d}", source_id=f"source-{index}", edit_type=("add", "style")[index % 2],
            instruction=f"edit {index}", reference=name(index), outputs={m: name(index, m) for m in METHODS},
        )
        for index in range(num_items)
    )  # fmt: skip
    checks = tuple(
        Check(
            check_id=f"check-{index}", instruction=KEEP, reference=name("c", index), right=name("c", index),
            wrong=name("w", index),
        )
        for index in range(num_checks)
    )  # fmt: skip
    fields = {
        "title": "A small study", "methods": METHODS, "questions": (QUESTION,), "ties": False, "seed": 5,
        "num_per_rater": num_items, "min_checks_right": 0.8, "num_expected": num_items, "num_missing": 0,
        "num_identical": 0, "items": items, "checks": checks,
        "origin": Origin(run_id="run", stage="evaluate", fingerprint="0" * 16),
    }  # fmt: skip
    return Study(**(fields | changes))


def write_made_up(folder: Path, study: Study) -> None:
    """With a picture of one colour for every name."""
    (folder / MEDIA).mkdir(parents=True)
    for index, name in enumerate(sorted(study.media)):
        Image.new("RGB", (8, 8), (index % 256, 90, 120)).save(folder / MEDIA / name)
    write_study(folder, study)


def write_clips(folder: Path) -> Study:
    """A study of one clip in which a square moves, edited in two ways."""
    study = made_up(1)
    (folder / MEDIA).mkdir(parents=True)

    def clip(colour: int) -> str:
        frames = []
        for place in range(8):
            pixels = np.full((64, 96, 3), 235, np.uint8)
            pixels[20:44, 10 * place : 10 * place + 20, colour] = 30
            frames.append(Image.fromarray(pixels))
        data = write_clip(frames)
        name = hashlib.sha256(data).hexdigest() + ".webp"
        (folder / MEDIA / name).write_bytes(data)
        return name

    outputs = dict(zip(METHODS, (clip(1), clip(2)), strict=True))
    item = study.items[0].model_copy(update={"reference": clip(0), "outputs": outputs})
    study = study.model_copy(update={"items": (item,)})
    write_study(folder, study)
    return study


def vote(rater: str, trial: int, choice: str = "A", study: str = "s", **changes: object) -> Vote:
    fields = {
        "study": study, "rater": rater, "trial": trial, "key": f"item-{trial:03d}", "is_check": False,
        "question": "better", "choice": choice, "chosen": dict(zip(("A", "B"), METHODS, strict=True)).get(choice),
        "A": METHODS[0], "B": METHODS[1], "milliseconds": 1500,
    }  # fmt: skip
    return make_vote(**(fields | changes))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_run(path: Path, items: list[dict], edits: list[dict]) -> str:
    """What a finished run leaves of its edits; returns where its summary is."""
    root = Folder(path)
    for stage, tables, parents in (
        ("benchmark", {"benchmark.parquet": items}, {}),
        ("edit", {"edits.parquet": edits}, {}),
        ("evaluate", {}, {"benchmark": "f", "edit": "f"}),
    ):
        folder = root.sub(f"{stage}/f")
        for name, rows in tables.items():
            folder.write_table(name, pa.Table.from_pylist(rows))
        commit(
            folder, stage=stage, version="1", fingerprint="f", config={}, identity={}, run_id=RUN_ID, code_version="c",
            parents=parents, rows=1,
        )  # fmt: skip
    stages = {"evaluate": record.StageRecord(status="ran", fingerprint="f")}
    run = record.RunRecord(
        run_id=RUN_ID, profile="starter", started=0, updated=0, driver=this_process(), status="ok", stages=stages
    )
    record.write_run(root, run)
    record.run_folder(root, RUN_ID).write_json("summary.json", run.model_dump(mode="json"))
    return root.path(f"runs/{RUN_ID}/summary.json")


def noise(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def item(index: int, **changes: object) -> dict:
    row = {"item_id": f"i{index}", "source_id": f"s{index}", "image": png(noise(index)), "edit_type": "add"}
    return row | {"instruction": f"edit {index}", "metadata": "{}", "clip": None} | changes


def edit(index: int, method: str, image: bytes | None, clip: bytes | None = None) -> dict:
    return {"item_id": f"i{index}", "method": method, "image": image, "seconds": 0.1, "clip": clip}
