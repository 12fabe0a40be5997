"""A FLUX of one double and one single block with random weights, and random encoded rows for it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from pathlib import Path

import pytest
import torch

from cluster.folder import Folder
from stages.starter import vlm_questions
from stages.train.data import EncodedData, rows_shard, texts_shard, write_rows, write_texts
from stages.train.methods import byg, np_edit, sft
from stages.train.settings import TrainByGConfig, TrainNPEditConfig, TrainSFTConfig
from stages.train.vlm.questions import QuestionTemplates
from tests.tiny_flux import tiny_flux  # noqa: F401
from tests.tiny_sd3 import tiny_sd3  # noqa: F401
from tests.tiny_wan import tiny_wans  # noqa: F401

GRID = (2, 2)
NUM_ROWS = 10
FIELDS = ("src_caption", "tgt_caption", "instruction", "reverse_instruction", "nothing")


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
        removals = [row % 3 == 0 for row in rows]
        labels = {
            "edit_type": ["remove" if is_removal else "color" for is_removal in removals],
            "object": ["red circle" if is_removal else None for is_removal in removals],
        }
        ids = [f"row{row}" for row in rows]
        write_rows(folder, rows_shard(shard), ids, latents, columns, GRID, labels)
    return path


@pytest.fixture
def data(encoded_folder: Path) -> EncodedData:
    return EncodedData.load(encoded_folder, sft.LATENTS, byg.TEXTS)


@pytest.fixture
def labelled_data(encoded_folder: Path) -> EncodedData:
    return EncodedData.load(encoded_folder, np_edit.LATENTS, np_edit.TEXTS, np_edit.LABELS)


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


@pytest.fixture
def np_edit_config(byg_config: TrainByGConfig) -> TrainNPEditConfig:
    """NP-Edit that warms up for a step, then gives student and auxiliary model a turn each, two of them unrolled."""
    method = np_edit.NPEditConfig(
        identity_warmup=1, num_auxiliary_updates=1, single_step_turns=1, times=(0.5,), nothing_probability=0
    )
    templates = QuestionTemplates(
        edit_done=vlm_questions.EDIT_DONE, rest_same=vlm_questions.REST_SAME, has_object=vlm_questions.HAS_OBJECT
    )
    shared = byg_config.model_dump(exclude={"byg", "method"})
    return TrainNPEditConfig(**shared, np_edit=method, questions=templates)
