"""How far SDEdit and FlowEdit leave the source, chosen where each does best: on a validation split that no figure
is taken from. The strength is SDEdit's own; FlowEdit's is its start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.errors import UserError
from cluster.folder import Folder

TUNED = {"sdedit": "sdedit_strengths", "flowedit": "flowedit_starts"}  # methods, and their fields of EditConfig
SCORES_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("method", pa.string()),
        ("strength", pa.float64()),
        ("edit_success", pa.bool_()),
        ("preservation", pa.bool_()),
        ("whole_scene_right", pa.bool_()),
    ]
)
STRENGTHS_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("strength", pa.float64()),
        ("num_items", pa.int32()),
        ("edit_success", pa.float64()),
        ("preservation", pa.float64()),
        ("whole_scene_right", pa.float64()),
        ("chosen", pa.bool_()),
    ]
)


def score_edit(
    item_id: str,
    method: str,
    strength: float,
    edit: Image.Image | Sequence[Image.Image],
    metadata: str,
    stage: str = "edit",
) -> dict:
    """The oracle's answers about one edit (of a clip: its frames) of the scene world by one of the methods `TUNED`.

    Raises UserError if the item isn't of that world.
    """
    from stages.starter.scoring import score_item

    is_picture = isinstance(edit, Image.Image)
    edited = np.asarray(edit) if is_picture else np.stack([np.asarray(frame) for frame in edit])
    try:
        result = score_item(metadata, edited)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{stage}: the oracle can't score item {item_id!r} ({' '.join(str(error).split())[:200]}). "
            f"It knows the scene world alone; elsewhere --set '{stage}.{TUNED[method]}=[0.7]'."
        ) from None
    return {
        "item_id": item_id,
        "method": method,
        "strength": strength,
        "edit_success": result.edit_success,
        "preservation": result.preservation,
        "whole_scene_right": result.whole_scene_right,
    }


def compare_strengths(out: Folder, shards: Mapping[str, tuple[str, float]]) -> pa.Table:
    """The means of every strength over the tables `shards` (name -> method and strength), each method's best marked.

    Best is the highest share of whole scenes right, then of edits done, then the lowest strength.
    """
    rows = []
    for method, strength in sorted(set(shards.values())):
        tables = [out.read_table(name) for name, key in shards.items() if key == (method, strength)]
        table = pa.concat_tables(tables)
        means = {name: float(np.mean(table[name].to_numpy())) for name in SCORES_SCHEMA.names[3:]}
        rows.append({"method": method, "strength": strength, "num_items": len(table)} | means)

    def best_of(method: str) -> dict:
        mine = [row for row in rows if row["method"] == method]
        return max(mine, key=lambda row: (row["whole_scene_right"], row["edit_success"], -row["strength"]))

    marked = [row | {"chosen": row is best_of(row["method"])} for row in rows]
    return pa.Table.from_pylist(marked, STRENGTHS_SCHEMA)


def chosen_strengths(table: Sequence[Mapping]) -> dict[str, float]:
    """The strength of every method that `compare_strengths` marked."""
    return {row["method"]: row["strength"] for row in table if row["chosen"]}
