"""A finished run with real pictures of the scene world and made-up methods, for the report to show."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster import record
from cluster.artifacts import Artifact, commit, read_artifact
from cluster.folder import Folder
from cluster.lease import this_process
from stages.evaluate.discrimination import discrimination
from stages.evaluate.metrics import pixel_metrics, scene_oracle
from stages.evaluate.summary import SCORES_SCHEMA, compare, judge_agreement, summarise
from stages.starter.world import Edit, render, sample_edit, sample_light, sample_scene

RUN_ID = "20260102-101500-abcdef"
CONFIGS = {"train_byg": {"init_adapter": "models/warmup"}}
STAGES = {  # name: what it needs, and the seconds it took
    "scenes": ((), 4.2),
    "ingest": (("scenes",), 6.8),
    "caption": (("ingest",), 142.0),
    "encode": (("caption",), 9.1),
    "train_byg": (("encode",), 311.0),
    "train_sft": (("scenes",), 128.0),
    "edit": (("scenes", "train_byg", "train_sft"), 41.0),
    "evaluate": (("scenes", "edit"), 38.5),
}
SHARE_RIGHT = {
    "byg": 0.62, "sft": 0.8, "flowedit": 0.4, "sdedit": 0.2, "regenerate": 0.12, "untrained": 0.02, "copy": 0.0,
}  # fmt: skip


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def make_edit(method: str, edit: Edit, generator: np.random.Generator) -> np.ndarray:
    """A picture as the method could have made it."""
    if method == "copy":
        return render(edit.source)
    target = edit.target
    right = generator.random() < SHARE_RIGHT[method]
    if method == "untrained":
        picture = 0.5 * render(edit.source) + 0.5 * render(sample_scene(generator))
    elif right:
        picture = render(target)
    elif method in ("regenerate", "sdedit") or generator.random() < 0.5:
        picture = render(dataclasses.replace(target, light=sample_light(generator)))
    else:
        picture = render(edit.source)
    noisy = picture + generator.normal(0, 3, picture.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def make_scores(edits: dict[str, Edit], images: dict[tuple[str, str], np.ndarray]) -> pa.Table:
    generator = np.random.default_rng(7)
    rows = []
    for (item_id, method), image in images.items():
        edit = edits[item_id]
        row = {"item_id": item_id, "source_id": item_id, "method": method, "edit_type": edit.edit_type}
        row |= pixel_metrics(image, render(edit.source))
        row |= scene_oracle(image, render(edit.source), edit.to_json())
        if generator.random() < 0.01:
            row["unscored"] = "judge: no_json"
            row["judge_sc_text"] = "I'd say </template><script>document.title = 'run'</script> & \"so on\""
        else:
            for metric, truth in (("judge_success", "edit_success"), ("judge_over_editing", "preservation")):
                agrees = generator.random() < 0.92
                row[metric] = float(generator.integers(7, 11) if row[truth] == agrees else generator.integers(0, 4))
            row["judge_naturalness"], row["judge_artifacts"] = 8.0, float(generator.integers(6, 10))
            semantic = min(row["judge_success"], row["judge_over_editing"])
            row["judge_overall"] = math.sqrt(semantic * min(row["judge_naturalness"], row["judge_artifacts"]))
            pairs = ((row["judge_success"], row["judge_over_editing"]), (8.0, row["judge_artifacts"]))
            row["judge_sc_text"], row["judge_pq_text"] = (
                json.dumps({"score": pair, "reasoning": "It is as it should be."}) for pair in pairs
            )
        rows.append(row)
    return pa.Table.from_pylist(rows, SCORES_SCHEMA)


def history() -> pa.Table:
    generator = np.random.default_rng(3)
    rows = []
    for step in range(0, 1201, 2):
        decay = math.exp(-step / 300)
        for name, start, end in (
            ("loss/prior", 0.9, 0.35), ("loss/cycle", 0.6, 0.2), ("loss/identity", 0.5, 0.1),
            ("loss/total", 2.0, 0.7), ("grad_norm/prior", 2.0, 0.8), ("lr", 0.002, 0.0005),
        ):  # fmt: skip
            value = (end + (start - end) * decay) * float(generator.lognormal(0, 0.15))
            rows.append({"step": step, "name": name, "value": value})
        if step % 100 == 0:
            success = 0.8 / (1 + math.exp(-(step - 500) / 110))
            kept = 0.9 - 0.25 * math.exp(-(((step - 520) / 200) ** 2))
            rows.append({"step": step, "name": "val/edit_success", "value": success})
            rows.append({"step": step, "name": "val/preservation", "value": kept})
            rows.append({"step": step, "name": "val/whole_scene_right", "value": success * kept})
    return pa.Table.from_pylist(rows)


def build_run(root: str, num_items: int = 60, instruction: str | None = None) -> dict[str, Artifact]:
    """Writes the artifacts and the record of a run under `root`; `instruction` replaces that of the first
    item.
    """
    generator = np.random.default_rng(11)
    edits = {f"{index:04d}": sample_edit(sample_scene(generator), generator) for index in range(num_items)}
    if instruction is not None:
        edits["0000"] = dataclasses.replace(edits["0000"], instruction=instruction)
    images = {
        (item_id, method): make_edit(method, edit, generator)
        for method in SHARE_RIGHT
        for item_id, edit in edits.items()
    }
    scores = make_scores(edits, images)
    options = {"seed": 0, "confidence": 0.95, "num_resamples": 500}
    tables = {
        "scenes": {
            "benchmark.parquet": pa.Table.from_pylist(
                [
                    {"item_id": i, "source_id": i, "image": png(render(e.source)), "metadata": e.to_json()}
                    | {"edit_type": e.edit_type, "instruction": e.instruction}
                    for i, e in edits.items()
                ]
            )
        },
        "ingest": {
            "dead_letters/00000.parquet": pa.Table.from_pylist(
                [{"outcome": "failed", "reason": f"duplicate: of {n}"} for n in range(3)]
            )
        },
        "caption": {
            "tuples.parquet": pa.Table.from_pylist(
                [{"outcome": "ok", "reason": None}] * 900
                + [{"outcome": "filtered", "reason": "target_not_new"}] * 71
                + [{"outcome": "failed", "reason": "no_json"}] * 4
            )
        },
        "train_byg": {"history.parquet": history()},
        "edit": {
            "edits.parquet": pa.Table.from_pylist(
                [
                    {"item_id": item_id, "method": method, "image": png(image), "seconds": 0.02}
                    for (item_id, method), image in images.items()
                ]
            )
        },
        "evaluate": {
            "scores.parquet": scores,
            "figures/summary.parquet": summarise(scores, **options),
            "figures/comparisons.parquet": compare(scores, **options),
            "figures/agreement.parquet": judge_agreement(scores),
            "figures/discrimination.parquet": discrimination(scores, **options),
        },
    }
    artifacts, records = {}, {}
    for name, (needs, seconds) in STAGES.items():
        fingerprint = f"{name}-0123456789"
        folder = Folder(root).sub(f"{name}/{fingerprint}")
        for table_name, table in tables.get(name, {}).items():
            folder.write_table(table_name, table)
        commit(
            folder, stage=name, version="1", fingerprint=fingerprint, config=CONFIGS.get(name, {}), identity={},
            run_id=RUN_ID, code_version="test", parents={need: f"{need}-0123456789" for need in needs}, seconds=seconds,
            rows=200,
        )  # fmt: skip
        artifacts[name] = read_artifact(Folder(root), name, fingerprint)
        status = "cached" if name == "scenes" else "ran"
        records[name] = record.StageRecord(status=status, seconds=seconds, fingerprint=fingerprint)
    records["report"] = record.StageRecord(status="running")
    run = record.RunRecord(
        run_id=RUN_ID,
        profile="starter",
        started=time.time(),
        updated=time.time(),
        driver=this_process(),
        stages=records,
    )
    record.write_run(Folder(root), run)
    record.write_incident(Folder(root), RUN_ID, "caption", "The engine's process ended; it was started again.")
    return artifacts


def main() -> None:
    import sys

    from stages.report.data import gather
    from stages.report.page import render_page

    root, out = sys.argv[1:3]
    inputs = build_run(root, num_items=int(sys.argv[3]) if len(sys.argv) > 3 else 60)
    data = gather(inputs, root, RUN_ID, 24)
    with open(out, "w", encoding="utf-8") as file:
        file.write(render_page(data, "pairless"))
    print(json.dumps({"methods": data.methods, "gallery": len(data.gallery)}))


if __name__ == "__main__":
    main()
