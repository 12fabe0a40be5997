"""The ablation stages: a method with one part taken away at a time, over several seeds.

Every training is one shard: a process of its own that trains, edits the held-out items with the average by the
path that inference takes, and writes their scores. So the trainings run side by side, as many as there are
workers, and a run that was cut goes on with those that are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from cluster.artifacts import Artifact
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.folder import Folder
from cluster.shards import run_shards
from stages.ablation import rows
from stages.ablation.table import page, results, summary_table
from stages.train.backbones.models import resolved_device, resolved_model
from stages.train.settings import TrainByGConfig, TrainConfig, TrainNPEditConfig, TrainVideo4EditConfig
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
    """What is compared. The trainings differ in one switch of the method and in the seed, in nothing else."""

    table: ClassVar[rows.Table]

    rows: tuple[str, ...]
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    train: TrainConfig
    num_items: int = Field(96, ge=1, description="held-out items that every training is scored on")
    metric: Literal["scene"] = "scene"
    num_workers: int = runtime(1, ge=1, description="trainings at once")
    num_gpus: float = runtime(0, ge=0, description="Of each worker.")


class ByGAblationConfig(AblationConfig):
    """ByG's table 4."""

    table = rows.BYG

    rows: tuple[
        Literal[
            "full", "no_gradient_routing", "no_cycle", "no_directional", "no_bootstrap", "no_mse", "no_identity_steps"
        ],
        ...,
    ] = Field(tuple(rows.BYG.rows), min_length=1)
    train: TrainByGConfig = TrainByGConfig()


class NPEditAblationConfig(AblationConfig):
    """NP-Edit's table 3, and one sampling step."""

    table = rows.NP_EDIT

    rows: tuple[Literal["full", "only_dmd", "only_vlm", "no_identity_question", "vocabulary", "one_step"], ...] = Field(
        tuple(rows.NP_EDIT.rows), min_length=1
    )
    train: TrainNPEditConfig = TrainNPEditConfig()


class Video4EditAblationConfig(AblationConfig):
    """Video4Edit's table 6, and the paper's own two terms. Trains a LoRA: each training is one process."""

    table = rows.VIDEO4EDIT

    rows: tuple[Literal["full", "no_distillation", "no_tail", "no_evolution_captions", "paper_terms"], ...] = Field(
        tuple(rows.VIDEO4EDIT.rows), min_length=1
    )
    train: TrainVideo4EditConfig = TrainVideo4EditConfig()


def ablation_sources(config: AblationConfig) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    return train_sources(config.train)


def ablate(inputs: Mapping[str, Artifact], config: AblationConfig, context: Context) -> None:
    """Writes `scores.parquet` (a row per training and item), `figures/ablation.parquet` and `ablation.html`.

    Needs `benchmark` and the stages with encoded rows; rows of the table learn from the first of these, but where they
    name another.

    Raises:
        UserError: data or model don't fit, or a training diverged.
    """
    shards = {f"scores/{row}-seed{seed}.parquet": (row, seed) for seed in config.seeds for row in config.rows}
    encoded = {name: artifact.folder for name, artifact in inputs.items() if name != "benchmark"}
    work = Training(shards, config, encoded, inputs["benchmark"].folder, context)
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
    table = summary_table(scores, config)
    context.out.write_table("figures/ablation.parquet", table)
    context.out.write_bytes("ablation.html", page(table, config).encode())
    context.set_rows(scores.num_rows)
    context.set_figures({"results": results(table)})


@dataclasses.dataclass(frozen=True)
class Training:
    """One training and its scores."""

    shards: Mapping[str, tuple[str, int]]
    config: AblationConfig
    encoded: Mapping[str, Folder]
    benchmark: Folder
    context: Context

    def __call__(self, shard: str) -> None:
        import torch

        from stages.train.engine import METHODS
        from stages.train.live import open_data
        from stages.train.stage import new_trainer

        name, seed = self.shards[shard]
        row, train = self.config.table.rows[name], self.config.train
        settings = getattr(train, train.method).model_copy(update=row.switches)
        changes = {train.method: settings, "seed": seed, "sharding": "none", "num_workers": 1}
        config = train.model_copy(update=changes)
        torch.set_num_threads(config.num_threads)
        method = METHODS[config.method]
        device = torch.device(resolved_device(config.device))
        folder = self.encoded[row.encoded or next(iter(self.encoded))]
        data = open_data(folder.local(), method.LATENTS, method.TEXTS, device, method.LABELS)
        trainer = new_trainer(config, data, device)
        if config.init_adapter:
            trainer.start_from(Path(resolved_model(config.init_adapter)))
        while trainer.step < config.num_steps:
            self.context.check()
            trainer.train_step()
        scores = [{"row": name, "seed": seed} | scores for scores in self._scores(trainer)]
        self.context.out.write_table(shard, pa.Table.from_pylist(scores, SCORES_SCHEMA))

    def _scores(self, trainer: Any) -> list[dict[str, Any]]:
        from stages.starter import world
        from stages.train.preview import Preview, read_items, scene_metric

        items = read_items(self.benchmark, self.config.num_items)
        preview = Preview(trainer, items, None, self.config.train.num_preview_steps)
        scores = []
        for item, edited in zip(items, preview.edits()[0], strict=True):
            found = scene_metric(item, edited)
            done = {name: bool(found[name]) for name in ("edit_success", "preservation")}
            scores.append({"item_id": item.id, "edit_type": world.Edit.from_json(item.metadata).edit_type} | done)
        return scores
