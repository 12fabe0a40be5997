"""NP-Edit with all weights trained, an engine a network, against a bare loop on three networks in one process."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from pydantic import ValidationError

from cluster.config import identity
from cluster.folder import Folder
from stages.train.backbones import flux
from stages.train.checkpoint import Checkpoints
from stages.train.data import BatchOrder, EncodedData
from stages.train.methods import np_edit
from stages.train.roles import Draws, Roles
from stages.train.settings import (
    TrainByGConfig,
    TrainCustomizationConfig,
    TrainFlowGRPOConfig,
    TrainNPEditConfig,
    TrainVideo4EditConfig,
)
from stages.train.stage import identity_of, load_judge
from tests.stages.train.conftest import GRID
from tests.stages.train.test_engine import ranks

NUM_STEPS = 6
MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.fixture
def full(np_edit_config) -> TrainNPEditConfig:
    """A warm-up, then turns: student (one step), auxiliary, student (two steps), auxiliary, student (two steps).

    Weight decay and the bound on the gradient both matter. The first of DMD's gradients is 0: both models are the base.
    """
    settings = {
        "weights": "full", "sharding": "zero3", "num_workers": 2, "num_steps": NUM_STEPS, "learning_rate": 1e-3,
        "max_gradient_norm": 0.05, "weight_decay": 0.1, "learning_rate_warmup": 1, "learning_rate_decay": 0.5,
        "np_edit": np_edit_config.np_edit.model_copy(update={"vlm": False, "lambda_dmd": 2.0}),
    }  # fmt: skip
    return np_edit_config.model_copy(update=settings)


def bare_loop(full: TrainNPEditConfig, data: EncodedData) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """State after all steps, and each step's figures, by nothing but torch, diffusers and the method."""
    student, auxiliary, frozen = (
        FluxTransformer2DModel.from_pretrained(full.model, subfolder="transformer").eval() for _ in range(3)
    )
    trained = {"student": student, "auxiliary": auxiliary}
    average = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}

    def velocity_of(transformer):
        return lambda x_t, t, text, reference: flux.velocity(
            transformer, x_t, t, text, reference, GRID, full.guidance_scale, full.reference_positions
        )

    optimizers = {
        name: torch.optim.AdamW(network.parameters(), betas=full.betas, weight_decay=full.weight_decay)
        for name, network in trained.items()
    }
    turn = []

    def backward(loss: torch.Tensor, name: str = "student") -> None:
        turn.append(name)
        loss.backward()

    roles = Roles(
        velocity_of(student), None, velocity_of(frozen), backward, velocity_of(auxiliary),
        load_judge(full, data.grid, torch.device("cpu")),
    )  # fmt: skip
    order, figures = BatchOrder(len(data), full.batch_size, full.seed), []
    for step in range(NUM_STEPS):
        draws = Draws(full.seed, step, full.batch_size, slice(0, full.batch_size))
        losses = np_edit.step(full.np_edit, roles, data.batch(order.rows(step)), draws, step)
        name = turn.pop()
        network, optimizer = trained[name], optimizers[name]
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), full.max_gradient_norm)
        norm_name = "gradient_norm" if name == "student" else "gradient_norm_auxiliary"
        figures.append({key: value.item() for key, value in losses.items()} | {norm_name: norm.item()})
        left = min(1.0, (NUM_STEPS - step) / (0.5 * NUM_STEPS))
        optimizer.param_groups[0]["lr"] = full.learning_rate * min(1.0, (step + 1) / 2) * left
        optimizer.step()
        optimizer.zero_grad()
        if name == "student":
            for key, parameter in student.named_parameters():
                average[key].lerp_(parameter.detach(), 1 - full.ema_decay)
    state = {f"ema/{name}": tensor for name, tensor in average.items()} if full.ema_decay else {}
    for name, before in (("student", ""), ("auxiliary", "auxiliary_")):
        for key, parameter in trained[name].named_parameters():
            moments = optimizers[name].state[parameter]
            state[f"{name}/{key}"] = parameter.detach()
            state |= {f"{before}{moment}/{key}": moments[moment] for moment in MOMENTS}
            state[f"{name}/num_updates"] = moments["step"]
    return state, figures


def assert_alike(wanted: dict[str, torch.Tensor], out: Path, full: TrainNPEditConfig) -> list[dict[str, float]]:
    """Equal but for rounding, of which AdamW makes whole steps where a gradient is nothing else; the figures."""
    step, tensors, history = Checkpoints(Folder(out), identity_of(full)).load()
    assert step == NUM_STEPS and tensors.keys() == wanted.keys()
    num_apart = 0
    for name, tensor in wanted.items():
        is_weight = name.startswith(("student", "auxiliary/", "ema"))
        apart = (tensor - tensors[name]).abs() > (1e-2 * full.learning_rate if is_weight else 1e-7)
        assert is_weight or not apart.any(), name
        num_apart += int(apart.sum())
    assert num_apart < 1e-3 * sum(tensor.numel() for tensor in wanted.values())
    return [{name: value for at, name, value in history if at == step} for step in range(1, NUM_STEPS + 1)]


@pytest.mark.parametrize(
    "changes, settings",
    [
        ({}, {}),
        ({"gradient_checkpointing": True, "offload_optimizer": True}, {"vlm": True}),
        ({"ema_decay": 0.0}, {"times": (1.0,)}),
    ],
    ids=["unrolled", "judged", "single_step"],
)
def test_two_ranks_equal_a_bare_loop(full, labelled_data, encoded_folder, tmp_path, changes, settings):
    full = full.model_copy(update=changes | {"np_edit": full.np_edit.model_copy(update=settings)})
    facts = ranks(full, encoded_folder, tmp_path, 2)
    assert facts["held"] < 0.6 * facts["whole"]
    wanted, figures = bare_loop(full, labelled_data)
    found = assert_alike(wanted, tmp_path, full)
    assert found == [pytest.approx(row, rel=1e-4) for row in figures]
    assert [("gradient_norm" in row, "gradient_norm_auxiliary" in row) for row in found] == [
        (True, False), (True, False), (False, True), (True, False), (False, True), (True, False)
    ]  # fmt: skip
    norms = [value for row in found for name, value in row.items() if "norm" in name]
    assert sum(norm > full.max_gradient_norm for norm in norms) >= NUM_STEPS - 1
    exported = FluxTransformer2DModel.from_pretrained(tmp_path / "transformer").state_dict()
    for name, tensor in exported.items():
        assert (tensor - wanted[f"{'ema' if full.ema_decay else 'student'}/{name}"]).abs().max() < 1e-5, name


def test_a_run_goes_on_with_another_number_of_ranks(full, labelled_data, encoded_folder, tmp_path):
    """Three steps on one rank, with updates of both networks, the others on two, which cut every tensor elsewhere."""
    ranks(full.model_copy(update={"num_workers": 1}), encoded_folder, tmp_path, 1, stop=3)
    ranks(full, encoded_folder, tmp_path, 2, resume=True)
    wanted, figures = bare_loop(full, labelled_data)
    assert assert_alike(wanted, tmp_path, full) == [pytest.approx(row, rel=1e-4) for row in figures]


def test_the_step_has_the_networks_that_it_needs(full):
    assert full.np_edit.networks == ("student", "auxiliary", "frozen")
    assert full.np_edit.model_copy(update={"vlm": True, "dmd": False}).networks == ("student",)
    assert TrainVideo4EditConfig().video4edit.networks == ("student",)
    assert full.np_edit.unrolls and not full.np_edit.model_copy(update={"through_both_steps": False}).unrolls


def test_what_cannot_be_trained_whole_is_refused():
    with pytest.raises(ValidationError, match="needs sharding: zero3"):
        TrainNPEditConfig(weights="full")
    for config in (TrainFlowGRPOConfig, TrainByGConfig):
        with pytest.raises(ValidationError, match="weights"):
            config(weights="full", sharding="zero3")
    full = TrainCustomizationConfig(weights="full", sharding="zero3")
    assert full.trains_all and not TrainCustomizationConfig().trains_all
    assert identity(full) == identity(full.model_copy(update={"offload_optimizer": True}))
    assert identity_of(full) != identity_of(full.model_copy(update={"weights": "lora"}))
