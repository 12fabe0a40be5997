"""Small copies of published benchmarks, in their layouts: few pixels, but all items."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from stages.ingest.benchmarks.listing import published
from tests.stages.ingest.pictures import png

LIVE = ("cat", "cat2", "dog", "dog2", "dog3", "dog5", "dog6", "dog7", "dog8")


def gedit_rows(per_type=None, size=(24, 16)):
    """Rows of stepfun-ai/GEdit-Bench, both languages of an item side by side; keys repeat across the types."""
    rows = []
    for kind, count in published("gedit_en").by_type.items():
        for number in range(count if per_type is None else per_type):
            data = png(number % 7, size)
            for language, text in (("en", f"do {kind} {number}"), ("cn", f"做 {kind} {number}")):
                rows.append(
                    {
                        "task_type": kind, "key": f"{number:032x}", "instruction": text,
                        "instruction_language": language, "input_image": {"bytes": data, "path": None},
                        "input_image_raw": {"bytes": data, "path": None}, "Intersection_exist": number % 3 > 0,
                    }
                )  # fmt: skip
    return rows


def write_gedit(folder, rows):
    (folder / "data").mkdir(parents=True)
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        name = folder / "data" / f"train-{number:05d}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(part), name, row_group_size=50)
    return folder


def write_imgedit(folder, num_pictures=171):
    """`basic_edit.json` with all its entries, and their pictures below singleturn/."""
    entries, number = {}, 0
    for kind, count in published("imgedit").by_type.items():
        for _ in range(count):
            sub = "compose/human" if kind == "compose" else ("animal", "daily object")[number % num_pictures % 2]
            identifier = f"{sub}/{number % num_pictures:09d}.jpg"
            entries[str(number)] = {"id": identifier, "prompt": f" do {kind} {number}. ", "edit_type": kind}
            number += 1
    kept = {}  # as many different pictures as there are in the published set
    for entry in entries.values():
        kept.setdefault(entry["id"], None)
    names = list(kept)[:num_pictures]
    for entry in entries.values():
        if entry["id"] not in names:
            entry["id"] = names[0]
    for index, name in enumerate(names):
        path = folder / "singleturn" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index, (24, 16), "JPEG"))
    (folder / "basic_edit.json").write_text(json.dumps(entries))
    return folder


def write_dreambooth(folder, subjects=30, num_prompts=25, num_pictures=4):
    """A checkout of google/dreambooth, its list in the same form, with prompts of our own."""
    data = folder / "dataset"
    names = [*LIVE, *(f"thing_{index:02d}" for index in range(21))][:subjects]
    lines = ["Classes", "", "subject_name,class"]
    for index, name in enumerate(names):
        lines.append(f"{name},{name[:3] if name in LIVE else 'stuffed toy'}")
        (data / name).mkdir(parents=True)
        for number in range(num_pictures):
            (data / name / f"{number:02d}.jpg").write_bytes(png(10 * index + number, (16, 16), "JPEG"))
    (data / "references_and_licenses.txt").write_text("name,link,license\n")
    lines += ["", "Prompts"]
    for title in ("Object Prompts", "Live Subject Prompts"):
        lines += ["", title, "", "prompt_list = ["]
        word = title.split()[0].lower()
        for number in range(num_prompts):
            comma = "," if number + 1 < num_prompts else ""
            lines.append(f"'a {{0}} {{1}} in {word} place {number}'.format(unique_token, class_token){comma}")
        lines.append("]")
    (data / "prompts_and_classes.txt").write_text("\n".join(lines))
    return folder
