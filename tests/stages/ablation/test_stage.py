"""Two rows of the ablation, trained for a few steps on real scenes with the starter's own generator."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.artifacts import Artifact
from cluster.folder import Folder
from stages.ablation.stage import ByGAblationConfig, ablate
from stages.starter import world
from stages.starter.stages import BenchmarkConfig, make_benchmark
from stages.train.backbones import flux
from stages.train.data import rows_shard, texts_shard, write_rows, write_texts
from stages.train.methods import byg
from stages.train.methods.settings import ByGConfig
from stages.train.settings import TrainByGConfig
from tests.artifacts import committed
from tests.stages.ingest.context import make_context

MODEL = "stages/starter/models/flux"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    path = tmp_path_factory.mktemp("ablation")
    generator = np.random.default_rng(0)
    edits = [world.sample_edit(world.sample_scene(generator), generator) for _ in range(8)]
    pixels = np.stack([world.render_float(edit.source) for edit in edits])
    encoder = flux.Encoder(MODEL, max_length=16)
    source = encoder.encode_pixels(torch.from_numpy(pixels).float().permute(0, 3, 1, 2) * 2 - 1)
    columns = {field: [getattr(edit, field) for edit in edits] for field in byg.TEXTS}
    texts = sorted({text for column in columns.values() for text in column})
    folder = Folder(path / "encode")
    write_texts(folder, texts_shard(0), texts, encoder.encode_text(texts))
    write_rows(folder, rows_shard(0), [str(i) for i in range(8)], {"source": source}, columns, (4, 4))
    context = make_context(path, "benchmark")
    make_benchmark({}, BenchmarkConfig(num_items=6), context)
    return {"encode": committed(folder, "encode"), "benchmark": committed(context.out, "benchmark")}


def test_a_second_attempt_trains_only_what_is_missing(inputs, tmp_path, local_ray):
    method = ByGConfig(identity_warmup=0, identity_probability=0.0, num_rollout_steps=2)
    train = TrainByGConfig(
        model=MODEL, rank=4, num_steps=2, batch_size=2, num_preview_steps=2, learning_rate=1e-2, byg=method
    )
    config = ByGAblationConfig(rows=("full", "no_cycle"), seeds=(0, 1), train=train, num_items=6)
    context = make_context(tmp_path, "ablation")
    ablate(inputs, config, context)
    scores = context.out.read_table("scores.parquet").to_pylist()
    trainings = [(score["row"], score["seed"]) for score in scores[::6]]
    assert trainings == [("full", 0), ("no_cycle", 0), ("full", 1), ("no_cycle", 1)] and len(scores) == 24
    assert set(context.figures["results"]) == {"full", "no_cycle"}
    assert "without cycle loss" in context.out.read_bytes("ablation.html").decode()

    shards = context.out.list(".parquet", recursive=True)
    kept = {name: Path(context.out.path(name)).stat().st_mtime_ns for name in shards if "seed" in name}
    context.out.remove("scores/no_cycle-seed1.parquet")
    ablate(inputs, config, context)
    assert context.out.read_table("scores.parquet").to_pylist() == scores
    unchanged = [name for name, time in kept.items() if Path(context.out.path(name)).stat().st_mtime_ns == time]
    assert sorted(set(kept) - set(unchanged)) == ["scores/no_cycle-seed1.parquet"]
