"""The loop: ranks and sharding change nothing, a run that was cut ends as one that was not."""

import dataclasses
import json
import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cluster.errors import UserError
from cluster.folder import Folder
from stages.train.checkpoint import Checkpoints
from stages.train.data import EncodedData
from stages.train.engine import Trainer
from stages.train.figures import TrainingDiverged, means
from stages.train.settings import TrainByGConfig, TrainConfig, TrainNPEditConfig
from stages.train.stage import identity_of, new_trainer
from tests.stages.train import rank

CPU = torch.device("cpu")
# One process imports what ranks need, and each rank is a fork of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["deepspeed", "diffusers.models.transformers.transformer_flux", "tests.stages.train.rank"]
)


def trained(config: TrainConfig, data: EncodedData, num_steps: int) -> Trainer:
    trainer = new_trainer(config, data, CPU)
    for _ in range(num_steps):
        trainer.train_step()
    return trainer


def ranks(
    config: TrainByGConfig, encoded: Path, out: Path, num_ranks: int, resume: bool = False, stop: int | None = None
) -> dict:
    """Trains in processes of their own, to `stop` or `num_steps`, from `out`'s checkpoint if told so; leaves one there.

    Returns how many of the base's numbers rank 0 held after the last step, and how many there are.
    """
    in_processes(rank.main, num_ranks, config, encoded, out, resume, stop)
    return json.loads((out / "facts.json").read_text())


def in_processes(work: Callable[..., None], num_ranks: int, *args: Any) -> None:
    """Does `work(rank, num_ranks, port, *args)` on every rank, each in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = [PROCESSES.Process(target=work, args=(index, num_ranks, port, *args)) for index in range(num_ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * num_ranks


def differences(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def assert_alike(plain: Trainer, out: Path, num_stray: int = 0) -> None:
    """State and figures equal but for rounding. AdamW makes whole steps of the smallest gradients, hence its bound.

    `num_stray` weights in all may pass it: those whose gradient is nothing but rounding. The moments are held in full.
    """
    step, tensors, history = Checkpoints(Folder(out), identity_of(plain.config)).load()
    assert step == plain.step
    ours = plain.state_tensors()
    assert ours.keys() == tensors.keys()
    for name, tensor in ours.items():
        is_moment = name.startswith("exp_avg")
        bound = 1e-6 if is_moment else 1e-2 * plain.config.learning_rate
        num_apart = int((~((tensor - tensors[name]).abs() < bound)).sum())
        assert num_apart <= (0 if is_moment else num_stray), name
        num_stray -= num_apart
    assert [figure[:2] for figure in history] == [figure[:2] for figure in plain.history]
    for (_, name, wanted), (_, _, value) in zip(plain.history, history, strict=True):
        assert value == pytest.approx(wanted, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_zero3_on_two_ranks_equals_one_plain_process(byg_config, data, encoded_folder, tmp_path, checkpointing):
    settings = {
        "num_steps": 4, "sharding": "zero3", "persistence_threshold": 0, "num_workers": 2,
        "gradient_checkpointing": checkpointing,
    }  # fmt: skip
    facts = ranks(byg_config.model_copy(update=settings), encoded_folder, tmp_path, 2)
    assert facts["held"] < 0.6 * facts["whole"]  # between steps a rank holds about half of the base
    assert_alike(trained(byg_config, data, 4), tmp_path)


def test_a_run_in_two_parts_equals_one_in_one_part_to_the_bit(byg_config, data, tmp_path):
    whole = trained(byg_config, data, 5)
    first = trained(byg_config, data, 2)
    checkpoints = Checkpoints(Folder(tmp_path), identity_of(byg_config))
    checkpoints.save(first.step, first.state_tensors(), first.history)
    second = Trainer(byg_config, data, CPU)
    step, tensors, history = checkpoints.load()
    second.load_state(tensors, step, history)
    while second.step < 5:
        second.train_step()
    assert differences(whole.state_tensors(), second.state_tensors()) == 0
    assert whole.history == second.history
    assert (
        whole.optimizers["student"].state[whole.student.flat]["step"]
        == second.optimizers["student"].state[second.student.flat]["step"]
        == 5
    )


def test_a_run_goes_on_with_another_number_of_ranks(byg_config, data, encoded_folder, tmp_path):
    whole = trained(byg_config, data, 4)
    first = trained(byg_config, data, 2)
    checkpoints = Checkpoints(Folder(tmp_path), identity_of(byg_config))
    checkpoints.save(first.step, first.state_tensors(), first.history)
    ranks(byg_config.model_copy(update={"num_steps": 4}), encoded_folder, tmp_path, 2, resume=True)
    assert_alike(whole, tmp_path)


def test_a_step_updates_student_and_average_alone(byg_config, data):
    trainer = Trainer(byg_config, data, CPU)
    before = {name: tensor.clone() for name, tensor in trainer.transformer.state_dict().items()}
    start = trainer.student.flat.clone()
    trainer.train_step()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.transformer.state_dict().items())
    moved = trainer.student.flat.detach() - start
    assert moved.abs().max() > 0
    assert torch.allclose(trainer.ema.flat - start, (1 - byg_config.ema_decay) * moved, atol=1e-7)


def test_the_gradient_is_scaled_down_to_the_norm(byg_config, data):
    free = Trainer(byg_config.model_copy(update={"max_gradient_norm": 1e3}), data, CPU)
    tight = Trainer(byg_config.model_copy(update={"max_gradient_norm": 1e-3}), data, CPU)
    assert free.train_step() == tight.train_step()  # what is logged is the norm before
    norm = free.student.gradient.norm()
    assert norm > 1e-3
    assert torch.allclose(tight.student.gradient, free.student.gradient * 1e-3 / norm)


@pytest.mark.parametrize("reason", ["nan", "norm"])
def test_a_step_that_diverges_stops_before_it_updates(byg_config, data, reason):
    update = {"stop_gradient_norm": 1e-9} if reason == "norm" else {}
    trainer = Trainer(byg_config.model_copy(update=update), data, CPU)
    if reason == "nan":
        shards = {"source": [tensor * torch.nan for tensor in data.latents.shards["source"]]}
        trainer.data = dataclasses.replace(data, latents=dataclasses.replace(data.latents, shards=shards))
    before = trainer.student.flat.clone()
    with pytest.raises(TrainingDiverged, match="stopped at step 0: .*row") as caught:
        trainer.train_step()
    assert len(caught.value.batch.ids) == byg_config.batch_size
    assert torch.equal(before, trainer.student.flat) and trainer.step == 0


def test_a_batch_that_ranks_cannot_share_is_refused(byg_config, data, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    with pytest.raises(UserError, match="batch_size of 4 can't be shared by 3 ranks"):
        Trainer(byg_config, data, CPU)


def test_supervised_training_learns_the_pairs(sft_config, data):
    config = sft_config.model_copy(update={"batch_size": 10, "rank": 16})
    trainer = Trainer(config, data, CPU)
    for _ in range(60):
        trainer.train_step()
    first, last = (means(trainer.history, step, step + 9)["loss"] for step in (1, 51))
    assert last < 0.8 * first


def test_steps_take_edit_types_by_their_shares(np_edit_config, labelled_data):
    judged = np_edit_config.model_copy(update={"type_shares": {"remove": 1.0}})
    order = Trainer(judged, labelled_data, CPU).order
    types = labelled_data.labels["edit_type"]
    assert {types[row] for step in range(20) for row in order.rows(step)} == {"remove"} != set(types)
    with pytest.raises(ValidationError, match="together are at most 1"):
        TrainNPEditConfig(type_shares={"remove": 0.7, "add": 0.5})


def test_two_trained_adapters_on_two_ranks_equal_one_plain_process(
    np_edit_config, labelled_data, encoded_folder, tmp_path
):
    """By small steps: AdamW makes as long ones of gradients that are nothing but rounding, and the judge's gradient of
    a later step would show them.
    """
    config = np_edit_config.model_copy(update={"learning_rate": 1e-3})
    settings = {"num_steps": 4, "sharding": "zero3", "persistence_threshold": 0, "num_workers": 2}
    ranks(config.model_copy(update=settings), encoded_folder, tmp_path, 2)
    assert_alike(trained(config, labelled_data, 4), tmp_path)


def test_two_trained_adapters_go_on_to_the_bit(np_edit_config, labelled_data, tmp_path):
    whole = trained(np_edit_config, labelled_data, 5)
    first = trained(np_edit_config, labelled_data, 3)
    checkpoints = Checkpoints(Folder(tmp_path), identity_of(np_edit_config))
    checkpoints.save(first.step, first.state_tensors(), first.history)
    second = Trainer(np_edit_config, labelled_data, CPU, first.roles.judge)
    step, tensors, history = checkpoints.load()
    assert (tensors["student/num_updates"], tensors["auxiliary/num_updates"]) == (2, 1)
    second.load_state(tensors, step, history)
    while second.step < 5:
        second.train_step()
    assert differences(whole.state_tensors(), second.state_tensors()) == 0
    assert whole.history == second.history


def test_a_turn_moves_its_own_adapter_alone(np_edit_config, labelled_data):
    trainer = new_trainer(np_edit_config, labelled_data, CPU)
    names = list(trainer.trained)
    for mover in ("student", "student", "auxiliary", "student"):
        before = {name: trainer.trained[name].flat.detach().clone() for name in names}
        trainer.train_step()
        moved = {name for name in names if not torch.equal(before[name], trainer.trained[name].flat)}
        assert moved == {mover}
