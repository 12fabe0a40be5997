"""Makes a study of two methods from the edits that a finished run has evaluated."""

from __future__ import annotations

import hashlib
import io
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cluster import record
from cluster.artifacts import Artifact, read_artifact
from cluster.config import nearest
from cluster.errors import RequestError, UserError
from cluster.folder import Folder
from stages.evaluate.study.definition import MEDIA, Check, Item, Origin, Question, Study, write_study
from stages.evaluate.study.order import draw
from stages.evaluate.tables import (
    Benchmark,
    EditsFile,
    check_edits,
    find_benchmark,
    find_edits,
    pairs,
    read_image,
    read_items,
)
from stages.train.backbones.clip_files import read_clip

KEEP = "Leave everything exactly as it is."  # what a check asks for
MIN_DIFFERENCE = 0.05  # of a check's wrong picture from the reference: mean absolute, in parts of the range
COMPARED_SIDE = 64


class Evaluation(NamedTuple):
    """A run's evaluation and what it read."""

    run_id: str
    artifact: Artifact
    inputs: dict[str, Artifact]


def find_evaluation(run: str, stage: str) -> Evaluation:
    """What `stage` of a run evaluated; `run` is the summary of a run, or a root, of which the newest run counts.

    Raises:
        RequestError: there is no such run, or it hasn't finished this stage.
    """
    if run.endswith(".json"):
        parent, _, name = run.rpartition("/")
        root, summary = _root_of(parent or "."), Folder(parent or ".")
        if not summary.exists(name):
            raise RequestError(f"There is no file {run}; give the summary.json of a run, or the root of runs.")
        content = summary.read_json(name)
        stages = {key: value.get("fingerprint") for key, value in content.get("stages", {}).items()}
        found = [(content.get("run_id", ""), stages)]
    else:
        root = Folder(run)
        records = filter(None, (record.read_run(root, run_id) for run_id in record.run_ids(root)[::-1]))
        found = [(r.run_id, {key: value.fingerprint for key, value in r.stages.items()}) for r in records]
    known: dict[str, None] = {}
    for run_id, stages in found:
        known |= dict.fromkeys(key for key, fingerprint in stages.items() if fingerprint and key.startswith("evaluate"))
        artifact = read_artifact(root, stage, stages[stage]) if stages.get(stage) else None
        if artifact is None:
            continue
        inputs = {name: read_artifact(root, name, print_) for name, print_ in artifact.manifest.parents.items()}
        if lost := [name for name, parent in inputs.items() if parent is None]:
            raise RequestError(f"{root.url} no longer has {', '.join(lost)}, which {stage} of run {run_id} scored.")
        return Evaluation(run_id, artifact, inputs)
    raise RequestError(f"{run} has no finished stage {stage!r}; {nearest(stage, known)}")


def _root_of(folder: str) -> Folder:
    """The root that a summary lies under: it is in `ROOT/runs/` (latest.json) or in `ROOT/runs/RUN/`."""
    folder = Folder(folder).url
    for _ in range(2):
        folder, _, name = folder.rpartition("/")
        if name == "runs":
            return Folder(folder)
    raise RequestError(f"A run's summary lies under ROOT/runs/, and {folder} is no such place.")


def prepare(
    run: str,
    out: Path,
    *,
    stage: str,
    methods: tuple[str, str],
    title: str,
    questions: Sequence[Question],
    ties: bool,
    seed: int,
    num_items: int | None,
    num_per_rater: int | None,
    num_checks: int | None,
    min_checks_right: float,
) -> Study:
    """Writes a study's folder. None: all items; all of the study's items; a check for every eight items, at least 4.

    Items are drawn evenly over the edit types, by the seed. The pictures are written anew, without what else their
    files said, so that nothing but the picture can tell one method from the other.

    Raises:
        RequestError: the folder is there already, or the run, the stage or a method isn't.
        UserError: nothing can be compared, or the sources are too alike for checks.
    """
    if out.exists():
        raise RequestError(f"{out} is there already; a study that may have votes is never overwritten.")
    evaluation = find_evaluation(run, stage)
    _, benchmark = find_benchmark(evaluation.inputs)
    known, files = read_items(benchmark), find_edits(evaluation.inputs)
    have = check_edits(files, known)
    for method in methods:
        if method not in have:
            raise RequestError(f"{stage} of {run} has no method {method!r}; {nearest(method, have)}")
    if methods[0] == methods[1]:
        raise RequestError(f"A study compares two methods, and {methods[0]!r} was given twice.")

    media = out / MEDIA
    media.mkdir(parents=True)
    try:
        rows, outputs = _collect(benchmark, files.values(), methods, media)
        both = {item_id: made for item_id, made in outputs.items() if len(made) == 2}
        different = {item_id: made for item_id, made in both.items() if len(set(made.values())) == 2}
        if not different:
            raise UserError(
                f"{methods[0]} and {methods[1]} have no item with two different edits: there is nothing to compare."
            )
        chosen = choose({item_id: rows[item_id]["edit_type"] for item_id in different}, num_items, seed)
        items = tuple(Item(outputs=outputs[item_id], **rows[item_id]) for item_id in chosen)
        per_rater = min(num_per_rater or len(items), len(items))
        wanted = min(max(4, math.ceil(per_rater / 8)), per_rater) if num_checks is None else num_checks
        if wanted > per_rater:
            raise RequestError(f"{wanted} checks among {per_rater} items are too many; --num-checks.")
        study = Study(
            title=title,
            methods=methods,
            questions=tuple(questions),
            ties=ties,
            seed=seed,
            num_per_rater=per_rater,
            min_checks_right=min_checks_right,
            origin=Origin(run_id=evaluation.run_id, stage=stage, fingerprint=evaluation.artifact.fingerprint),
            num_expected=len(known),
            num_missing=len(known) - len(both),
            num_identical=len(both) - len(different),
            items=items,
            checks=make_checks(items, media, wanted, seed),
        )
        for name in {path.name for path in media.iterdir()} - study.media:
            (media / name).unlink()
        write_study(out, study)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return study


def _collect(
    benchmark: Benchmark, files: Iterable[EditsFile], methods: Sequence[str], media: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str]]]:
    """The items that any of the methods edited, as fields of `Item`, and {item: {method: picture}}; all written."""
    rows: dict[str, dict[str, Any]] = {}
    outputs: dict[str, dict[str, str]] = {}
    for file in files:
        if not set(methods) & set(file.folder.read_table(file.name, ["method"])["method"].to_pylist()):
            continue
        for row, edit in pairs(benchmark, file):
            if edit["method"] not in methods:
                continue
            is_clip = row.get("clip") is not None
            output = _write_media(media, edit.get("clip") if is_clip else edit["image"], is_clip)
            reference = _write_media(media, row["clip"] if is_clip else row["image"], is_clip)
            if output and reference:
                names = ("item_id", "source_id", "edit_type", "instruction")
                rows[row["item_id"]] = {name: row[name] for name in names} | {"reference": reference}
                outputs.setdefault(row["item_id"], {})[edit["method"]] = output
    return rows, outputs


def choose(edit_types: Mapping[str, str], num_items: int | None, seed: int) -> list[str]:
    """Ids of items: in turn one of each edit type, within a type as drawn by the seed; None: all of them."""
    by_type: dict[str, list[str]] = {}
    for item_id in sorted(edit_types, key=lambda item_id: draw(seed, "item", item_id)):
        by_type.setdefault(edit_types[item_id], []).append(item_id)
    turns = [
        (place, edit_type, item_id) for edit_type, item_ids in by_type.items() for place, item_id in enumerate(item_ids)
    ]
    return [item_id for _, _, item_id in sorted(turns)][:num_items]


def make_checks(items: Sequence[Item], media: Path, num_checks: int, seed: int) -> tuple[Check, ...]:
    """Pairs whose answer is known whatever any method can do: "leave it as it is", the source against another source.

    The untouched source is right by construction: it is what was asked for, and keeps everything; another source is
    wrong by both of the study's criteria. (A method's edit can't be the right one: no one vouches for it.)

    Raises:
        UserError: no two sources differ visibly.
    """
    drawn = sorted(items, key=lambda item: draw(seed, "check", item.item_id))
    small = {item.reference: _small(media / item.reference) for item in drawn}
    checks: list[Check] = []
    for item in drawn:
        if len(checks) == num_checks:
            break
        if item.reference in {check.reference for check in checks}:
            continue
        others = sorted(drawn, key=lambda other: draw(seed, "wrong", item.item_id, other.item_id))
        for other in others:
            difference = float(np.abs(small[item.reference] - small[other.reference]).mean())
            if other.source_id != item.source_id and difference >= MIN_DIFFERENCE:
                checks.append(
                    Check(
                        check_id=f"check-{len(checks) + 1:02d}",
                        instruction=KEEP,
                        reference=item.reference,
                        right=item.reference,
                        wrong=other.reference,
                    )
                )
                break
    if len(checks) < num_checks:
        raise UserError(
            f"Only {len(checks)} of {num_checks} attention checks can be made: the study has too few sources, or they "
            "look too much alike. Take more items, or ask for fewer checks with --num-checks."
        )
    return tuple(checks)


def _small(path: Path) -> np.ndarray:
    """The picture, or a clip's first frame, `[64, 64, 3]` in 0 to 1."""
    with Image.open(path) as image:
        reduced = image.convert("RGB").resize((COMPARED_SIDE, COMPARED_SIDE), Image.Resampling.BOX)
    return np.asarray(reduced, dtype=np.float64) / 255


def _write_media(media: Path, data: bytes | None, is_clip: bool) -> str | None:
    """Writes a picture as PNG, or a clip as its frames and their times alone; None if it can't be read."""
    try:
        content = _clip(data) if is_clip else _png(data)
    except (OSError, ValueError, SyntaxError):
        return None
    name = hashlib.sha256(content).hexdigest() + (".webp" if is_clip else ".png")
    if not (media / name).exists():
        Folder(media).write_bytes(name, content, durable=False)  # made again if the machine goes down
    return name


def _png(data: bytes | None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(read_image(data or b""))).save(buffer, "PNG")
    return buffer.getvalue()


def _clip(data: bytes | None) -> bytes:
    frames = read_clip(data)
    with Image.open(io.BytesIO(data or b"")) as image:
        durations = []
        for index in range(len(frames)):
            image.seek(index)
            image.load()
            durations.append(image.info.get("duration", 0))
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, lossless=True)
    return buffer.getvalue()
