"""SDEdit's strength, chosen where SDEdit does best: on a validation split that no figure is taken from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.errors import UserError
from cluster.folder import Folder

SCORES_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("strength", pa.float64()),
        ("edit_success", pa.bool_()),
        ("preservation", pa.bool_()),
        ("whole_scene_right", pa.bool_()),
    ]
)
STRENGTHS_SCHEMA = pa.schema(
    [
        ("strength", pa.float64()),
        ("num_items", pa.int32()),
        ("edit_success", pa.float64()),
        ("preservation", pa.float64()),
        ("whole_scene_right", pa.float64()),
        ("chosen", pa.bool_()),
    ]
)


def score_edit(item_id: str, strength: float, image: Image.Image, metadata: str) -> dict:
    """The oracle's answers about one edit of the scene world.

    Raises UserError if the item isn't of that world.
    """
    from stages.starter.oracle import score
    from stages.starter.world import Edit

    try:
        result = score(Edit.from_json(metadata), np.asarray(image))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"edit: the oracle can't score item {item_id!r} ({' '.join(str(error).split())[:200]}). "
            "It knows the scene world alone; elsewhere --set 'edit.sdedit_strengths=[0.7]'."
        ) from None
    return {
        "item_id": item_id,
        "strength": strength,
        "edit_success": result.edit_success,
        "preservation": result.preservation,
        "whole_scene_right": result.whole_scene_right,
    }


def compare_strengths(out: Folder, shards: Mapping[str, float]) -> pa.Table:
    """The means of every strength over the tables `shards` (name -> strength), the best one marked.

    Best is the highest share of whole scenes right, then of edits done, then the lowest strength.
    """
    rows = []
    for strength in sorted(set(shards.values())):
        table = pa.concat_tables(out.read_table(name) for name, value in shards.items() if value == strength)
        means = {name: float(np.mean(table[name].to_numpy())) for name in SCORES_SCHEMA.names[2:]}
        rows.append({"strength": strength, "num_items": len(table)} | means)
    best = max(rows, key=lambda row: (row["whole_scene_right"], row["edit_success"], -row["strength"]))
    return pa.Table.from_pylist([row | {"chosen": row is best} for row in rows], STRENGTHS_SCHEMA)


def chosen_strength(table: Sequence[Mapping]) -> float:
    """The strength that `compare_strengths` marked."""
    return next(row["strength"] for row in table if row["chosen"])
