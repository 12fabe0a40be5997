"""Video4Edit in the engine: a LoRA on the student, a teacher beside it, whole or cut by ZeRO-3."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.sampler import Sampler
from stages.train.adapters import Adapter
from stages.train.data import EncodedData, rows_shard, texts_shard, write_rows, write_texts
from stages.train.engine import Trainer
from stages.train.export import FILE as ADAPTER_FILE
from stages.train.export import save_lora
from stages.train.methods import video4edit
from stages.train.preview import Preview, read_items
from stages.train.settings import TrainVideo4EditConfig
from stages.train.stage import TrainRank, train_sources
from tests.stages.ingest.context import make_context
from tests.stages.train.test_engine import assert_alike, ranks, trained
from tests.tiny_wan import HIDDEN_SIZE, new_transformer

CPU = torch.device("cpu")
GRID = (2, 2, 3)
TEXTS = [f"text {index}" for index in range(4)]
SHAPES = {
    "rollout": (12, 64), "tail": (6, 64), "source_condition": (12, 80), "pair_condition": (12, 80),
    "source_image_embeds": (257, HIDDEN_SIZE), "pair_image_embeds": (514, HIDDEN_SIZE),
}  # fmt: skip


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four random rows."""
    path = tmp_path_factory.mktemp("rollouts")
    folder, draw = Folder(path), torch.Generator().manual_seed(1)
    write_texts(folder, texts_shard(0), TEXTS, {"prompt_embeds": torch.randn(4, 512, HIDDEN_SIZE, generator=draw)})
    columns = {name: [TEXTS[(row + place) % 4] for row in range(4)] for place, name in enumerate(video4edit.TEXTS)}
    arrays = {name: torch.randn(4, *shape, generator=draw) for name, shape in SHAPES.items()}
    clips = {"rollout": arrays.pop("rollout")}
    write_rows(folder, rows_shard(0), [f"row{row}" for row in range(4)], clips, columns, GRID, extras=arrays)
    return path


@pytest.fixture
def data(rollouts) -> EncodedData:
    return EncodedData.load(rollouts, video4edit.LATENTS, video4edit.TEXTS)


@pytest.fixture
def config(tiny_wans) -> TrainVideo4EditConfig:
    return TrainVideo4EditConfig(
        model=str(tiny_wans["i2v"]),
        teacher_model=str(tiny_wans["flf2v"]),
        rank=4,
        num_steps=4,
        batch_size=2,
        learning_rate=1e-2,
        ema_decay=0.9,
        video4edit={"blocks": 2},
    )


def randomized(trainer: Trainer) -> Trainer:
    numbers = 0.2 * torch.randn(trainer.ema.flat.shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        trainer.ema.flat.copy_(numbers)
        trainer.student.flat.copy_(numbers)
    return trainer


@pytest.mark.parametrize("part", ["distillation", "velocity", "tail"])
def test_each_loss_reaches_every_tensor_before_it(config, data, part):
    others = {
        "distillation": {"tail": False, "lambda_velocity": 0.0},
        "velocity": {"tail": False, "lambda_kd": 0.0},
        "tail": {"distillation": False},
    }[part]
    settings = config.video4edit.model_copy(update=others)
    trainer = randomized(Trainer(config.model_copy(update={"video4edit": settings}), data, CPU))
    trainer.train_step()
    gradients = Adapter.views(trainer.student.gradient, trainer.student.shapes)
    untouched = [path for path, gradient in gradients.items() if not gradient.abs().max() > 0]
    after = ["proj_out.lora_A.weight", "proj_out.lora_B.weight"]  # comes after the last block
    assert untouched == (after if part == "distillation" else [])


def test_checkpointing_changes_nothing(config, data):
    plain = randomized(Trainer(config, data, CPU))
    checkpointed = randomized(Trainer(config.model_copy(update={"gradient_checkpointing": True}), data, CPU))
    assert plain.train_step() == pytest.approx(checkpointed.train_step(), rel=1e-5)
    assert torch.allclose(plain.student.gradient, checkpointed.student.gradient, atol=1e-7)


def test_zero3_on_two_ranks_equals_one_plain_process(config, data, rollouts, tmp_path):
    settings = {
        "num_steps": 3, "sharding": "zero3", "persistence_threshold": 0, "num_workers": 2,
        "gradient_checkpointing": True,
    }  # fmt: skip
    facts = ranks(config.model_copy(update=settings), rollouts, tmp_path, 2)
    assert facts["held"] < 0.6 * facts["whole"]
    assert_alike(trained(config.model_copy(update={"num_steps": 3}), data, 3), tmp_path, num_stray=8)


def benchmark(folder: Path) -> Folder:
    rows = []
    for index, array in enumerate(np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)):
        png = io.BytesIO()
        Image.fromarray(array).save(png, "PNG")
        texts = {"instruction": "red circle", "reverse_instruction": "undo", "metadata": "{}"}
        rows.append({"item_id": str(index), "image": png.getvalue(), **texts})
    Folder(folder).write_table("items.parquet", pa.Table.from_pylist(rows))
    return Folder(folder)


def test_a_preview_is_what_the_editor_makes_of_the_exported_lora(config, data, tmp_path):
    trainer = randomized(Trainer(config, data, CPU))
    preview = Preview(trainer, read_items(benchmark(tmp_path / "benchmark"), 2), None, num_steps=3)
    tokens, losses = preview.tokens()
    assert losses == {}
    save_lora(Folder(tmp_path), trainer.ema.tensors, config.rank, config.lora_alpha, trainer.backbone)
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "num_frames": 5}
    sampler = Sampler(config.model, {"video4edit": tmp_path}, **settings)
    given = sampler.reference([item.image for item in preview.items])
    texts = [item.instruction for item in preview.items]
    ours = sampler.sample(texts, preview.noises[0], 16, 24, **given, adapter="video4edit")
    assert (ours - tokens).abs().max() < 1e-5
    assert (sampler.sample(texts, preview.noises[0], 16, 24, **given) - tokens).abs().max() > 1e-2
    pipeline = WanImageToVideoPipeline.from_pretrained(config.model)
    pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
    assert pipeline.get_active_adapters()


def test_the_stage_leaves_an_adapter_and_previews(config, rollouts, tmp_path):
    context = make_context(tmp_path, "train_video4edit")
    items = benchmark(tmp_path / "benchmark")
    settings = {"preview_every": 2, "num_preview_steps": 2}
    TrainRank(config.model_copy(update=settings), Folder(rollouts), items, context)(CPU)
    assert context.out.list(recursive=True) == [
        f"adapter/{ADAPTER_FILE}", "history.parquet", "previews/step-000002.png", "previews/step-000004.png",
    ]  # fmt: skip
    names = set(context.out.read_table("history.parquet")["name"].to_pylist())
    assert names == {"gradient_norm", "loss_kd", "loss_tail", "loss_velocity"}
    assert train_sources(config) == [config.model, config.teacher_model]


def test_a_teacher_that_cannot_be_compared_is_refused(config, data, tiny_wans, flux_folder, tmp_path):
    with pytest.raises(UserError, match="must both be one of wan_i2v"):
        Trainer(config.model_copy(update={"teacher_model": str(tiny_wans["t2v"])}), data, CPU)
    pipeline = WanImageToVideoPipeline.from_pretrained(tiny_wans["flf2v"])
    pipeline.transformer = new_transformer("flf2v", num_layers=3)
    pipeline.save_pretrained(tmp_path / "deep")
    with pytest.raises(UserError, match="num_layers of 3, the student .* one of 2"):
        Trainer(config.model_copy(update={"teacher_model": str(tmp_path / "deep")}), data, CPU)
    blocks = config.video4edit.model_copy(update={"blocks": 3})
    with pytest.raises(UserError, match="can't be taken from a transformer of 2"):
        Trainer(config.model_copy(update={"video4edit": blocks}), data, CPU)
