"""ByG on clips: the engine trains a Wan as it trains a picture model."""

from pathlib import Path

import pytest
import torch

from cluster.folder import Folder
from stages.train.adapters import Adapter
from stages.train.data import EncodedData, rows_shard, texts_shard, write_rows, write_texts
from stages.train.engine import Trainer
from stages.train.export import FILE as ADAPTER_FILE
from stages.train.export import save_lora
from stages.train.methods import byg
from stages.train.settings import TrainByGConfig
from tests.stages.train.test_engine import assert_alike, ranks, trained
from tests.tiny_wan import HIDDEN_SIZE, save_tiny_wan

CPU = torch.device("cpu")
GRID = (2, 2, 3)
TEXTS = [f"text {index}" for index in range(5)]


@pytest.fixture(scope="module")
def encoded_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six random clips and their texts."""
    path = tmp_path_factory.mktemp("clips")
    folder, draw = Folder(path), torch.Generator().manual_seed(1)
    embeds = {"prompt_embeds": torch.randn(len(TEXTS), 16, HIDDEN_SIZE, generator=draw)}
    write_texts(folder, texts_shard(0), TEXTS, embeds)
    columns = {name: [TEXTS[(row + place) % 5] for row in range(6)] for place, name in enumerate(byg.TEXTS)}
    clips = {"source": torch.randn(6, 12, 64, generator=draw)}
    write_rows(folder, rows_shard(0), [f"row{row}" for row in range(6)], clips, columns, GRID)
    return path


@pytest.fixture
def clips(encoded_clips) -> EncodedData:
    return EncodedData.load(encoded_clips, byg.LATENTS, byg.TEXTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A text-to-video pipeline with one transformer."""
    return save_tiny_wan(tmp_path_factory.mktemp("wan") / "one", "t2v")


@pytest.fixture
def config(byg_config, model) -> TrainByGConfig:
    method = byg.ByGConfig(identity_warmup=0, identity_steps=False, num_rollout_steps=3)
    return byg_config.model_copy(update={"model": str(model), "byg": method})


def randomized(trainer: Trainer) -> Trainer:
    numbers = 0.2 * torch.randn(trainer.ema.flat.shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        trainer.ema.flat.copy_(numbers)
        trainer.student.flat.copy_(numbers)
    return trainer


def test_a_step_reaches_every_tensor_of_the_lora(config, clips):
    plain = randomized(Trainer(config, clips, CPU))
    checkpointed = randomized(Trainer(config.model_copy(update={"gradient_checkpointing": True}), clips, CPU))
    assert plain.batch([0]).grid == GRID
    assert plain.train_step() == pytest.approx(checkpointed.train_step(), rel=1e-5)
    gradients = Adapter.views(plain.student.gradient, plain.student.shapes)
    assert [path for path, gradient in gradients.items() if not gradient.abs().max() > 0] == []
    assert torch.allclose(plain.student.gradient, checkpointed.student.gradient, atol=1e-7)


def test_the_exported_lora_gives_the_same_velocity_in_diffusers(config, clips, tmp_path):
    trainer = randomized(Trainer(config.model_copy(update={"alpha": 7.0}), clips, CPU))
    save_lora(Folder(tmp_path), trainer.ema.tensors, config.rank, 7.0, trainer.backbone)
    pipeline = trainer.backbone.PIPELINE.from_pretrained(config.model)
    pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
    batch, t = trainer.batch([0, 1]), torch.tensor([0.2, 0.8])
    source, text = batch.latents["source"], batch.texts["instruction"]
    with torch.no_grad():
        ours, base = (trainer.role(name)(source.flip(0), t, text, source) for name in ("ema", None))
        theirs = trainer.backbone.velocity(pipeline.transformer, source.flip(0), t, text, source, GRID)
    assert (ours - base).abs().max() > 1e-2
    assert (ours - theirs).abs().max() < 1e-5


def test_zero3_on_two_ranks_equals_one_plain_process(config, clips, encoded_clips, tmp_path):
    settings = {
        "num_steps": 3, "sharding": "zero3", "persistence_threshold": 0, "num_workers": 2,
        "gradient_checkpointing": True,
    }  # fmt: skip
    facts = ranks(config.model_copy(update=settings), encoded_clips, tmp_path, 2)
    assert facts["held"] < 0.6 * facts["whole"]
    assert_alike(trained(config, clips, 3), tmp_path, num_stray=8)
