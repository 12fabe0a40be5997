"""All weights trained under ZeRO-3, against a bare loop in one process with torch's own optimizer."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from pydantic import ValidationError

from cluster.config import identity
from cluster.folder import Folder
from stages.train.backbones import wan_i2v
from stages.train.checkpoint import Checkpoints
from stages.train.data import BatchOrder, EncodedData
from stages.train.methods import video4edit
from stages.train.roles import Draws, Roles
from stages.train.settings import TrainByGConfig, TrainSFTConfig, TrainVideo4EditConfig
from stages.train.stage import identity_of, train
from tests.stages.ingest.context import make_context
from tests.stages.train.test_engine import ranks
from tests.stages.train.test_stage import artifact
from tests.stages.train.test_video4edit_training import GRID, benchmark, config, data, rollouts  # noqa: F401

NUM_STEPS = 3


@pytest.fixture
def full(config) -> TrainVideo4EditConfig:  # noqa: F811
    """A weight decay and a bound on the gradient that both matter."""
    settings = {
        "weights": "full", "sharding": "zero3", "num_workers": 2, "num_steps": NUM_STEPS, "learning_rate": 1e-3,
        "max_gradient_norm": 0.05, "weight_decay": 0.1, "learning_rate_warmup": 1,
    }  # fmt: skip
    return config.model_copy(update=settings)


def bare_loop(full: TrainVideo4EditConfig, data: EncodedData) -> tuple[dict[str, torch.Tensor], list[float]]:  # noqa: F811
    """State after all steps, and the losses and norms, by nothing but torch, diffusers and the method."""
    networks = [
        WanTransformer3DModel.from_pretrained(model, subfolder="transformer").eval()
        for model in (full.model, full.teacher_model)
    ]
    student, teacher = networks
    average = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}

    def shown_by(transformer):
        return lambda x_t, t, text, reference: wan_i2v.velocity_and_hidden_states(
            transformer, x_t, t, text, reference, GRID, (0, 1)
        )

    roles = Roles(
        None, None, None, lambda loss: loss.backward(),
        student_hidden=shown_by(student), teacher_hidden=shown_by(teacher),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(student.parameters(), betas=full.betas, weight_decay=full.weight_decay)
    order, figures = BatchOrder(len(data), full.batch_size, full.seed), []
    for step in range(NUM_STEPS):
        left = min(1.0, (NUM_STEPS - step) / (0.95 * NUM_STEPS))
        rate = min(1.0, (step + 1) / 2) * (1 - math.cos(math.pi * left)) / 2
        optimizer.param_groups[0]["lr"] = rate * full.learning_rate
        optimizer.zero_grad()
        draws = Draws(full.seed, step, full.batch_size, slice(0, full.batch_size))
        losses = video4edit.step(full.video4edit, roles, data.batch(order.rows(step)), draws, step)
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), full.max_gradient_norm)
        assert norm > full.max_gradient_norm
        figures.append([losses["loss_kd"].item(), losses["loss_tail"].item(), norm.item()])
        optimizer.step()
        for name, parameter in student.named_parameters():
            average[name].lerp_(parameter.detach(), 1 - full.ema_decay)
    state = {f"ema/{name}": tensor for name, tensor in average.items()}
    for name, parameter in student.named_parameters():
        state[f"student/{name}"] = parameter.detach()
        state |= {f"{key}/{name}": optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")}
    return state, figures


def assert_alike(wanted: dict[str, torch.Tensor], out: Path, full: TrainVideo4EditConfig) -> list[list[float]]:
    """Equal but for rounding, of which AdamW makes whole steps where a gradient is nothing else; the figures."""
    step, tensors, history = Checkpoints(Folder(out), identity_of(full)).load()
    assert step == NUM_STEPS and tensors.pop("student/num_updates") == NUM_STEPS
    assert tensors.keys() == wanted.keys()
    num_apart = 0
    for name, tensor in wanted.items():
        is_moment = name.startswith("exp_avg")
        apart = (tensor - tensors[name]).abs() > (1e-7 if is_moment else 1e-2 * full.learning_rate)
        assert not (is_moment and apart.any()), name
        num_apart += int(apart.sum())
    assert num_apart < 1e-3 * sum(tensor.numel() for tensor in wanted.values())
    names = ("loss_kd", "loss_tail", "gradient_norm")
    return [[value for at, key, value in history if key == name] for name in names]


@pytest.mark.parametrize(
    "changes", [{}, {"offload_optimizer": True, "gradient_checkpointing": True}], ids=["plain", "offloaded"]
)
def test_two_ranks_equal_a_bare_loop(full, data, rollouts, tmp_path, changes):  # noqa: F811
    facts = ranks(full.model_copy(update=changes), rollouts, tmp_path, 2)
    assert facts["held"] < 0.6 * facts["whole"]
    wanted, figures = bare_loop(full, data)
    found = assert_alike(wanted, tmp_path, full)
    assert list(zip(*found, strict=True)) == [pytest.approx(row, rel=1e-4) for row in figures]
    exported = WanTransformer3DModel.from_pretrained(tmp_path / "transformer").state_dict()
    for name, tensor in exported.items():
        assert (tensor - wanted[f"ema/{name}"]).abs().max() < 1e-2 * full.learning_rate, name


def test_a_run_goes_on_with_another_number_of_ranks(full, data, rollouts, tmp_path):  # noqa: F811
    """Two steps on one rank, the third on two, which cut every tensor elsewhere."""
    first, whole = tmp_path / "first", tmp_path / "whole"
    for folder in (first, whole):
        folder.mkdir()
    ranks(full, rollouts, whole, 2)
    # the rate of each step hangs on how many there are, so the first part must know of all three
    ranks(full.model_copy(update={"num_workers": 1}), rollouts, first, 1, stop=2)
    ranks(full, rollouts, first, 2, resume=True)
    step, tensors, history = Checkpoints(Folder(whole), identity_of(full)).load()
    tensors.pop("student/num_updates")
    assert_alike(tensors, first, full)
    _, _, resumed = Checkpoints(Folder(first), identity_of(full)).load()
    assert [row[:2] for row in resumed] == [row[:2] for row in history]
    assert [row[2] for row in resumed] == pytest.approx([row[2] for row in history], rel=1e-4)


def test_what_cannot_be_trained_whole_is_refused(full):
    with pytest.raises(ValidationError, match="needs sharding: zero3"):
        TrainVideo4EditConfig(weights="full")
    with pytest.raises(ValidationError, match="weights"):
        TrainByGConfig(weights="full", sharding="zero3")
    assert TrainSFTConfig(weights="full", sharding="zero3").trains_all and not TrainSFTConfig().trains_all
    assert identity(full) == identity(full.model_copy(update={"offload_optimizer": True}))
    assert identity_of(full) != identity_of(full.model_copy(update={"weights": "lora"}))


def test_the_stage_leaves_a_transformer_and_previews_of_the_average(local_ray, full, data, rollouts, tmp_path):  # noqa: F811
    context = make_context(tmp_path, "train_video4edit")
    settings = {"device": "cpu", "preview_every": 2, "num_preview_steps": 2, "ema_decay": 0.5}
    inputs = {"rollout": artifact(rollouts), "validation": artifact(Path(benchmark(tmp_path / "benchmark").url))}
    train(inputs, full.model_copy(update=settings), context)
    assert context.out.list(recursive=True) == [
        "history.parquet", "previews/step-000002.png", "previews/step-000003.png", "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    # a preview swaps the average in: had it stayed, or changed the student, the training would have gone elsewhere
    history = context.out.read_table("history.parquet").to_pandas()
    _, figures = bare_loop(full.model_copy(update=settings), data)
    assert history[history.name == "loss_kd"].value.tolist() == pytest.approx([row[0] for row in figures], rel=1e-4)
