"""A FLUX of one double and one single block with random weights, and random encoded rows for it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from pathlib import Path

import pytest
import torch

from cluster.folder import Folder
from stages.train.data import EncodedData, rows_shard, texts_shard, write_rows, write_texts
from stages.train.methods import byg, sft
from stages.train.settings import TrainByGConfig, TrainSFTConfig

GRID = (2, 2)
NUM_ROWS = 10
FIELDS = ("src_caption", "tgt_caption", "instruction", "reverse_instruction")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FluxPipeline's folder."""
    from diffusers import FluxTransformer2DModel

    from stages.starter.autoencoder import new_autoencoder
    from stages.starter.generator import TRANSFORMER, Generator, as_pipeline

    torch.manual_seed(0)
    generator = Generator()
    generator.transformer = FluxTransformer2DModel(**TRANSFORMER | {"num_layers": 1, "num_single_layers": 1})
    folder = tmp_path_factory.mktemp("flux")
    as_pipeline(generator, new_autoencoder()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random rows in two shards, and their texts in two."""
    path = tmp_path_factory.mktemp("encoded")
    folder, draw = Folder(path), torch.Generator().manual_seed(1)
    texts = [f"text {index}" for index in range(7)]
    for shard, part in enumerate((texts[:4], texts[4:])):
        embeds = {
            "prompt_embeds": torch.randn(len(part), 5, 64, generator=draw),
            "pooled_prompt_embeds": torch.randn(len(part), 64, generator=draw),
        }
        write_texts(folder, texts_shard(shard), part, embeds)
    for shard, rows in enumerate((range(6), range(6, NUM_ROWS))):
        latents = {name: torch.randn(len(rows), 4, 64, generator=draw) for name in ("source", "target")}
        columns = {name: [texts[(3 * row + place) % 7] for row in rows] for place, name in enumerate(FIELDS)}
        write_rows(folder, rows_shard(shard), [f"row{row}" for row in rows], latents, columns, GRID)
    return path


@pytest.fixture
def data(encoded_folder: Path) -> EncodedData:
    return EncodedData.load(encoded_folder, sft.LATENTS, byg.TEXTS)


@pytest.fixture
def byg_config(flux_folder: Path) -> TrainByGConfig:
    """ByG whose first step is one of identity and whose others are mostly edits."""
    method = byg.ByGConfig(identity_warmup=1, num_rollout_steps=3)
    return TrainByGConfig(
        model=str(flux_folder),
        rank=4,
        num_steps=6,
        batch_size=4,
        learning_rate=1e-2,
        ema_decay=0.9,
        byg=method,
    )


@pytest.fixture
def sft_config(byg_config: TrainByGConfig) -> TrainSFTConfig:
    return TrainSFTConfig(**byg_config.model_dump(exclude={"byg", "method"}))
