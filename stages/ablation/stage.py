"""The ablation stage: ByG with one part taken away at a time, over several seeds (ByG, table 4).

Every training is one shard: a process of its own that trains, edits the held-out items with the average by the
path that inference takes, and writes their scores. So the trainings run side by side, as many as there are
workers, and a run that was cut goes on with those that are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from cluster.artifacts import Artifact
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.folder import Folder
from cluster.shards import run_shards
from stages.ablation.table import ROWS, RowName, page, results, summary_table
from stages.train.backbones.models import resolved_device
from stages.train.settings import TrainByGConfig
from stages.train.stage import train_sources

SCORES_SCHEMA = pa.schema(
    [
        ("row", pa.string()),
        ("seed", pa.int32()),
        ("item_id", pa.string()),
        ("edit_type", pa.string()),
        ("edit_success", pa.bool_()),
        ("preservation", pa.bool_()),
    ]
)


class AblationConfig(StageConfig):
    """What is compared. The trainings differ in one switch of `train.byg` and in the seed, in nothing else."""

    rows: tuple[RowName, ...] = Field(tuple(ROWS), min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    train: TrainByGConfig = TrainByGConfig()
    num_items: int = Field(96, ge=1, description="held-out items that every training is scored on")
    metric: Literal["scene"] = "scene"
    num_workers: int = runtime(1, ge=1, description="trainings at once")
    num_gpus: float = runtime(0, ge=0, description="Of each worker.")


def ablation_sources(config: AblationConfig) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    return train_sources(config.train)


def ablate(inputs: Mapping[str, Artifact], config: AblationConfig, context: Context) -> None:
    """Writes `scores.parquet` (a row per training and item), `figures/ablation.parquet` and `ablation.html`.

    Raises:
        UserError: data or model don't fit, or a training diverged.
    """
    shards = {f"scores/{row}-seed{seed}.parquet": (row, seed) for seed in config.seeds for row in config.rows}
    work = Training(shards, config, inputs["encode"].folder, inputs["benchmark"].folder, context)
    run_shards(
        list(shards),
        work,
        context=context,
        num_workers=config.num_workers,
        num_gpus=config.num_gpus,
        unit="trainings",
    )
    scores = pa.concat_tables([context.out.read_table(shard) for shard in shards])
    context.out.write_table("scores.parquet", scores)
    table = summary_table(scores, config.rows)
    context.out.write_table("figures/ablation.parquet", table)
    context.out.write_bytes("ablation.html", page(table, config).encode())
    context.set_rows(scores.num_rows)
    context.set_figures({"results": results(table)})


@dataclasses.dataclass(frozen=True)
class Training:
    """One training and its scores."""

    shards: Mapping[str, tuple[str, int]]
    config: AblationConfig
    encoded: Folder
    benchmark: Folder
    context: Context

    def __call__(self, shard: str) -> None:
        import torch

        from stages.train.engine import METHODS, Trainer
        from stages.train.live import open_data

        row, seed = self.shards[shard]
        train = self.config.train
        byg = train.byg.model_copy(update=ROWS[row].switches)
        config = train.model_copy(update={"byg": byg, "seed": seed, "sharding": "none", "num_workers": 1})
        torch.set_num_threads(config.num_threads)
        method = METHODS[config.method]
        device = torch.device(resolved_device(config.device))
        data = open_data(self.encoded.local(), method.LATENTS, method.TEXTS, device)
        trainer = Trainer(config, data, device)
        while trainer.step < config.num_steps:
            self.context.check()
            trainer.train_step()
        rows = [{"row": row, "seed": seed} | scores for scores in self._scores(trainer)]
        self.context.out.write_table(shard, pa.Table.from_pylist(rows, SCORES_SCHEMA))

    def _scores(self, trainer: Any) -> list[dict[str, Any]]:
        import numpy as np

        from stages.starter import oracle, world
        from stages.train.backbones.pictures import to_images
        from stages.train.preview import Preview, read_items

        items = read_items(self.benchmark, self.config.num_items)
        preview = Preview(trainer, items, None, self.config.train.num_preview_steps)
        tokens = preview.tokens()[0].to(preview.source.dtype)
        images = to_images(preview.encoder.decode_pixels(tokens, preview.height, preview.width))
        rows = []
        for item, image in zip(items, images, strict=True):
            edit = world.Edit.from_json(item.metadata)
            score = oracle.score(edit, np.asarray(image))
            done = {"edit_success": bool(score.edit_success), "preservation": bool(score.preservation)}
            rows.append({"item_id": item.id, "edit_type": edit.edit_type} | done)
        return rows
