"""Wan2.2's two experts: each trains a LoRA of its own at its own times, and both sample."""

import math
from pathlib import Path

import pytest
import torch

from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.sampler import Sampler
from stages.train import flow
from stages.train.backbones import wan
from stages.train.checkpoint import Checkpoints
from stages.train.data import EncodedData
from stages.train.engine import EXPORTED, Trainer
from stages.train.export import FILES
from stages.train.methods import byg
from stages.train.methods.settings import VideoByGConfig
from stages.train.roles import Draws
from stages.train.settings import TrainByGVideoConfig
from stages.train.stage import identity_of
from tests.stages.train.test_engine import assert_alike, differences, ranks, trained
from tests.stages.train.test_wan_training import GRID, encoded_clips  # noqa: F401

CPU = torch.device("cpu")
BOUNDARY = 0.875
STUDENTS = ("student", "student_2")


@pytest.fixture
def clips(encoded_clips: Path) -> EncodedData:  # noqa: F811
    return EncodedData.load(encoded_clips, byg.LATENTS, byg.TEXTS)


@pytest.fixture
def config(tiny_wans) -> TrainByGVideoConfig:
    """Each expert at every second step or so: a shift of 7 puts half of the times above the boundary."""
    method = VideoByGConfig(
        identity_warmup=0, identity_probability=0.3, num_rollout_steps=4, forward_shift=7, reverse_shift=7
    )
    return TrainByGVideoConfig(
        model=str(tiny_wans["t2v"]), rank=4, num_steps=6, batch_size=2, learning_rate=1e-2, byg=method, seed=1
    )


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_step_trains_one_expert_at_its_times_and_sampling_crosses_both(config, clips, ema_decay):
    trainer = Trainer(config.model_copy(update={"ema_decay": ema_decay}), clips, CPU)
    seen: dict[str, list[torch.Tensor]] = {part: [] for part in wan.Experts.PARTS}
    with_gradient: dict[str, bool] = {}

    def watch(module, args, kwargs, part):
        seen[part].append(kwargs["timestep"])
        with_gradient[part] = with_gradient.get(part, False) or torch.is_grad_enabled()

    for part in seen:
        network = getattr(trainer.transformer, part)
        network.register_forward_pre_hook(
            lambda module, args, kwargs, part=part: watch(module, args, kwargs, part), with_kwargs=True
        )
    turns = []
    for _ in range(8):
        with_gradient.clear()
        before = {name: adapter.flat.detach().clone() for name, adapter in trainer.trained.items()}
        averages = {name: adapter.flat.detach().clone() for name, adapter in trainer.averages.items()}
        figures = trainer.train_step()
        moved = [name for name in STUDENTS if not torch.equal(before[name], trainer.trained[name].flat)]
        assert len(moved) == 1 and moved == trainer._touched
        followed = [name for name in STUDENTS if not torch.equal(averages[name], trainer.averages[name].flat)]
        assert followed == moved
        part = wan.Experts.PARTS[STUDENTS.index(moved[0])]
        assert [name for name, has in with_gradient.items() if has] == [part]
        if "loss_cycle" in figures:
            assert set(with_gradient) == set(wan.Experts.PARTS)  # the rollout
        turns += moved
    assert set(turns) == set(STUDENTS)
    assert min(t.min() for t in seen["transformer"]) >= 1000 * BOUNDARY
    assert max(t.max() for t in seen["transformer_2"]) < 1000 * BOUNDARY
    assert (trainer.ema is trainer.student) == (ema_decay == 0)


def test_without_an_average_the_student_of_the_moment_samples(config, clips):
    trainer = trained(config, clips, 4)
    batch, t = trainer.batch([0, 1]), torch.tensor([0.95, 0.95])
    source, text = batch.latents["source"], batch.texts["instruction"]
    with torch.no_grad():
        for times in (t, t - 0.5):
            arguments = (source.flip(0), times, text, source)
            rollout = trainer.roles.rollout(*arguments)
            assert torch.equal(rollout, trainer.roles.student(*arguments))
            assert not torch.equal(rollout, trainer.roles.frozen(*arguments))
    assert not any(name.startswith("ema") for name in trainer.state_tensors())


def test_a_run_in_two_parts_equals_one_in_one_part_to_the_bit(config, clips, tmp_path):
    whole, first = trained(config, clips, 6), trained(config, clips, 3)
    checkpoints = Checkpoints(Folder(tmp_path), identity_of(config))
    checkpoints.save(first.step, first.state_tensors(), first.history)
    second = Trainer(config, clips, CPU)
    step, tensors, history = checkpoints.load()
    second.load_state(tensors, step, history)
    while second.step < 6:
        second.train_step()
    assert differences(whole.state_tensors(), second.state_tensors()) == 0
    assert whole.history == second.history
    updates = [int(whole.state_tensors()[f"{name}/num_updates"]) for name in STUDENTS]
    assert sum(updates) == 6 and min(updates) > 0


def test_both_exported_loras_give_the_same_velocities_in_diffusers_and_in_the_sampler(config, clips, tmp_path):
    trainer = trained(config, clips, 6)
    trainer.export(Folder(tmp_path))
    folder = tmp_path / EXPORTED
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES[part] for part in wan.Experts.PARTS)
    pipeline = wan.PIPELINE.from_pretrained(config.model)
    pipeline.load_lora_weights(folder, weight_name=FILES["transformer"])
    pipeline.load_lora_weights(folder, weight_name=FILES["transformer_2"], load_into_transformer_2=True)
    sampler = Sampler(config.model, {"byg_video": folder}, num_frames=5)
    again = Trainer(config, clips, CPU)
    again.start_from(folder)
    batch = trainer.batch([0, 1])
    source, text = batch.latents["source"], batch.texts["instruction"]
    for time, part in ((0.95, "transformer"), (0.4, "transformer_2")):
        arguments = (source.flip(0), torch.full((2,), time), text, source)
        with torch.no_grad():
            ours, base, restarted = trainer.role("ema")(*arguments), trainer.role(None)(*arguments), again.role("ema")
            theirs = wan.velocity(getattr(pipeline, part), *arguments, GRID)
            with sampler.adapters.use("byg_video"):
                sampled = wan.velocity(sampler.transformer, *arguments, GRID)
            assert (ours - base).abs().max() > 1e-3
            assert (ours - theirs).abs().max() < 1e-5 and (ours - sampled).abs().max() < 1e-5
            assert torch.equal(ours, restarted(*arguments))


def test_zero3_on_two_ranks_equals_one_plain_process(config, clips, encoded_clips, tmp_path):  # noqa: F811
    settings = {"num_steps": 4, "sharding": "zero3", "persistence_threshold": 0, "num_workers": 2}
    facts = ranks(config.model_copy(update=settings), encoded_clips, tmp_path, 2)
    assert facts["held"] < 0.6 * facts["whole"]
    assert_alike(trained(config, clips, 4), tmp_path, num_stray=8)


def test_where_no_node_lies_in_the_priors_range_the_prior_counts_nothing(config, clips):
    method = config.byg.model_copy(update={"prior_t_range": (0.15, 0.6), "identity_probability": 0.0})
    trainer = Trainer(config.model_copy(update={"byg": method}), clips, CPU)
    priors = {"student": [], "student_2": []}
    for _ in range(8):
        figures = trainer.train_step()
        priors[trainer._touched[0]].append(figures["loss_prior_forward"])
        assert figures["loss_cycle"] > 0
    assert set(priors["student"]) == {0.0} and min(priors["student_2"]) > 0


def test_truncated_times_are_the_distributions_own_in_that_range_on_every_rank():
    def draw(num, generator):
        return flow.logit_normal(num, generator, 3.0)

    for t_range in ((0.0, BOUNDARY), (BOUNDARY, 1.0)):
        found = []
        for rows in (slice(0, 2000), slice(2000, 4000)):
            draws = Draws(0, 0, 4000, rows)
            draws.t_range = t_range
            found.append(draws.times(draw, "cpu"))
        found = torch.cat(found)
        assert flow.is_within(found, t_range).all()
        many = draw(400_000, torch.Generator().manual_seed(5))
        wanted = many[flow.is_within(many, t_range)]
        points = torch.linspace(0.1, 0.9, 9)
        assert torch.allclose(found.quantile(points), wanted[:100_000].quantile(points), atol=0.02)
    draws = Draws(0, 0, 4, slice(0, 4))
    draws.t_range = (0.0, 0.5)
    assert (draws.times(lambda num, g: torch.full((num,), 0.9), "cpu") < 0.5).all()  # what it never gives


def test_the_share_of_times_above_a_boundary_is_what_draws_give():
    for shift in (0.5, 1.0, 7.0):
        drawn = flow.logit_normal(200_000, torch.Generator().manual_seed(0), shift)
        share = (drawn >= BOUNDARY).double().mean().item()
        assert flow.logit_normal_share(BOUNDARY, shift) == pytest.approx(share, abs=0.004)
    assert math.isclose(flow.logit_normal_share(BOUNDARY, 7.0), 0.5)


def test_the_nearest_node_is_one_of_the_range():
    nodes = torch.tensor([1.0, 0.9, 0.6, 0.3])
    t = torch.tensor([0.95, 0.7, 0.1])
    assert flow.nearest_node(t, nodes).tolist() in ([0, 2, 3], [1, 2, 3])
    assert flow.nearest_node(t, nodes, (BOUNDARY, 1.0)).tolist()[1:] == [1, 1]
    assert flow.nearest_node(t, nodes, (0.0, BOUNDARY)).tolist() == [2, 2, 3]
    with pytest.raises(ValueError, match="none of the nodes"):
        flow.nearest_node(t, nodes, (0.65, 0.85))


def test_a_method_that_needs_all_times_at_once_is_refused(np_edit_config, clips, tiny_wans):
    config = np_edit_config.model_copy(update={"model": str(tiny_wans["t2v"])})
    with pytest.raises(UserError, match="train_np_edit: .* has two experts, and np_edit trains at all times"):
        Trainer(config, clips, CPU)


def test_the_papers_settings_are_the_defaults_and_a_checkpoint_knows_its_experts(config, tiny_wans):
    defaults = TrainByGVideoConfig()
    assert (defaults.rank, defaults.num_steps, defaults.learning_rate, defaults.ema_decay) == (64, 750, 1e-4, 0.0)
    assert defaults.byg.identity_probability == 0.10 and defaults.byg.identity_warmup == 200
    assert defaults.stage == "train_byg_video"
    assert identity_of(config)["experts"] == 2
    assert "experts" not in identity_of(config.model_copy(update={"model": str(tiny_wans["i2v"])}))
