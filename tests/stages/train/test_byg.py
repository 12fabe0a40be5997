"""What ByG's mathematics owes: values, gradients, roles (methods.md names each of these)."""

import pytest
import torch

from stages.train import flow
from stages.train.adapters import Adapters
from stages.train.backbones import flux
from stages.train.engine import Trainer
from stages.train.methods import byg, sft
from stages.train.roles import Batch, Draws, Roles, joined

CPU = torch.device("cpu")


class Net:
    """A small network with text and reference in float64, in the place of the backbone."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        shapes = {"x": (6, 6), "reference": (6, 6), "text": (5, 6), "t": (6,), "out": (6, 6)}
        self.weights = {
            name: (0.5 * torch.randn(shape, generator=draw, dtype=torch.float64)).requires_grad_()
            for name, shape in shapes.items()
        }

    def __call__(self, x_t, t, text, reference):
        w = self.weights
        hidden = x_t @ w["x"] + (text["embeds"] @ w["text"])[:, None] + t.double()[:, None, None] * w["t"]
        if reference is not None:
            hidden = hidden + torch.tanh(reference @ w["reference"])
        return torch.tanh(hidden) @ w["out"]


def batch_of(num: int, fields: tuple[str, ...] = byg.TEXTS) -> Batch:
    draw = torch.Generator().manual_seed(5)
    texts = {name: {"embeds": torch.randn(num, 5, generator=draw, dtype=torch.float64)} for name in fields}
    return Batch(
        [str(i) for i in range(num)],
        {"source": torch.randn(num, 3, 6, generator=draw, dtype=torch.float64)},
        texts,
    )


def coupled_loss(config: byg.ByGConfig, student: Net, ema: Net, frozen: Net, batch: Batch, draws: Draws):
    """Algorithm 1 written down as one graph with the straight-through estimate of eq. 4."""
    source, text = batch.latents["source"], batch.texts
    nodes = flow.sampling_nodes(config.num_rollout_steps)
    wanted = draws.times(lambda n, g: flow.logit_normal(n, g, config.forward_shift), "cpu")
    low, high = config.prior_t_range
    node = flow.nearest_node(wanted.clamp(low, high), nodes[:-1])
    t, noise = nodes[node], draws.normal(source)
    t_reverse = draws.times(lambda n, g: flow.logit_normal(n, g, config.reverse_shift), "cpu")
    noise_reverse = draws.normal(source)
    with torch.no_grad():
        state, visited = noise, [noise]
        for here, there in zip(nodes[:-1], nodes[1:], strict=True):
            state = state + (there - here) * ema(state, here.expand(len(state)), text["instruction"], source)
            visited.append(state)
        x_t = torch.stack([visited[index][row] for row, index in enumerate(node.tolist())])
        clean = visited[-1]
        x_reverse = flow.noised(source, noise_reverse, t_reverse)
        v_src, v_tgt = (frozen(x_t, t, text[name], None) for name in ("src_caption", "tgt_caption"))
        r_src, r_tgt = (frozen(x_reverse, t_reverse, text[name], None) for name in ("tgt_caption", "src_caption"))
    velocity = student(x_t, t, text["instruction"], source)
    estimate = x_t - t.double()[:, None, None] * velocity
    condition = estimate + (clean - estimate).detach()
    assert torch.allclose(condition, clean)  # its value is the clean edit
    reverse = student(x_reverse, t_reverse, text["reverse_instruction"], condition)
    cycle = (reverse - (noise_reverse - source)).square().mean()
    prior = byg.prior_loss(config, velocity, v_src, v_tgt, t) + byg.prior_loss(config, reverse, r_src, r_tgt, t_reverse)
    return config.lambda_cycle * cycle + config.lambda_prior * prior


@pytest.mark.parametrize("settings", [{}, {"lambda_cycle": 2.0, "lambda_prior": 0.3, "prior_t_range": (0.1, 0.8)}])
def test_decoupled_gradients_equal_those_of_one_graph(settings):
    config = byg.ByGConfig(num_rollout_steps=4, **settings)
    student, ema, frozen, batch = Net(0), Net(1), Net(2), batch_of(8)
    parameters = list(student.weights.values())
    wanted = torch.autograd.grad(
        coupled_loss(config, student, ema, frozen, batch, Draws(3, 0, 8, slice(0, 8))), parameters
    )
    roles = Roles(student, ema, frozen, lambda loss: loss.backward())
    byg.edit_step(config, roles, batch, Draws(3, 0, 8, slice(0, 8)))
    for name, ours, theirs in zip(student.weights, parameters, wanted, strict=True):
        assert (ours.grad - theirs).abs().max() < 1e-6 * theirs.abs().max(), name  # the losses are float32
    assert all(weight.grad is None for net in (ema, frozen) for weight in net.weights.values())


def test_without_gradient_routing_the_gradient_is_another():
    gradients = []
    for routing in (True, False):
        student, batch = Net(0), batch_of(8)
        roles = Roles(student, Net(1), Net(2), lambda loss: loss.backward())
        config = byg.ByGConfig(num_rollout_steps=4, gradient_routing=routing)
        byg.edit_step(config, roles, batch, Draws(3, 0, 8, slice(0, 8)))
        gradients.append(student.weights["reference"].grad)
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


def test_two_halves_of_a_batch_give_the_gradient_of_the_whole():
    config, student = byg.ByGConfig(num_rollout_steps=4), Net(0)
    roles, batch = Roles(student, Net(1), Net(2), lambda loss: loss.backward()), batch_of(8)
    byg.edit_step(config, roles, batch, Draws(3, 0, 8, slice(0, 8)))
    whole = student.weights["x"].grad.clone()
    student.weights["x"].grad = None
    for rows in (slice(0, 4), slice(4, 8)):
        half = Batch(
            batch.ids[rows],
            {name: tensor[rows] for name, tensor in batch.latents.items()},
            {name: {"embeds": text["embeds"][rows]} for name, text in batch.texts.items()},
        )
        byg.edit_step(config, roles, half, Draws(3, 0, 8, rows))
    assert torch.allclose(student.weights["x"].grad / 2, whole, rtol=1e-5, atol=1e-8)


def inputs(data, num: int = 4):
    batch = data.batch(range(num))
    t = torch.rand(num, generator=torch.Generator().manual_seed(2))
    return torch.randn_like(batch.latents["source"]), t, batch.texts["instruction"], batch.latents["source"]


def randomized(trainer: Trainer) -> Trainer:
    """B of both adapters away from zero, as after some training."""
    for seed, adapter in enumerate((trainer.student, trainer.ema)):
        noise = torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            adapter.flat.copy_(0.2 * noise)
    return trainer


def test_adapters_are_separate_models(byg_config, data):
    trainer = randomized(Trainer(byg_config, data, CPU))
    arguments = inputs(data)
    with torch.no_grad():
        outputs = {name: trainer.role(name)(*arguments) for name in ("student", "ema", None)}
        assert (outputs["student"] - outputs["ema"]).abs().max() > 1e-2
        with trainer.adapters.use("student"):  # a nested role leaves the outer one active
            trainer.roles.rollout(*arguments)
            assert trainer.adapters.active == "student"
        assert trainer.adapters.active is None
    for name in ("student", "ema"):  # each equals a model of its own whose weights hold the adapter
        merged = Trainer(byg_config, data, CPU)
        adapter = getattr(trainer, name)
        for path, tensor in adapter.tensors.items():
            if path.endswith("lora_A.weight"):
                b = adapter.tensors[path.replace("lora_A", "lora_B")]
                layer = merged.transformer.get_submodule(path.removesuffix(".lora_A.weight"))
                layer.base_layer.weight.add_(adapter.scale * b.detach() @ tensor.detach())
        with torch.no_grad():
            assert (merged.role(None)(*arguments) - outputs[name]).abs().max() < 1e-5
    with torch.no_grad():
        assert torch.equal(Trainer(byg_config, data, CPU).role(None)(*arguments), outputs[None])


def test_backward_under_another_adapter_is_refused(byg_config, data):
    trainer = Trainer(byg_config, data, CPU)
    loss = trainer.roles.student(*inputs(data)).square().mean()
    with trainer.adapters.use("ema"), pytest.raises(RuntimeError, match="'student' while 'ema' is active"):
        trainer.roles.backward(loss)
    with pytest.raises(KeyError, match="no adapter 'teacher'"), trainer.adapters.use("teacher"):
        pass


def test_checkpointing_changes_nothing(byg_config, data):
    gradients = []
    for checkpointing in (False, True):
        config = byg_config.model_copy(update={"gradient_checkpointing": checkpointing})
        trainer = randomized(Trainer(config, data, CPU))
        for _ in range(2):
            trainer.train_step()
        assert any(name == "loss_cycle" for _, name, _ in trainer.history)
        gradients.append(trainer.student.gradient.clone())
    assert gradients[0].abs().max() > 1e-4
    assert torch.equal(*gradients)


@pytest.mark.parametrize("loss", ["identity", "cycle", "prior", "sft"])
def test_every_lora_tensor_gets_gradient_from_each_loss(byg_config, sft_config, data, loss):
    trainer = randomized(Trainer(sft_config if loss == "sft" else byg_config, data, CPU))
    batch, draws = trainer.batch([0, 1, 2, 3]), Draws(0, 0, 4, slice(0, 4))
    with trainer.adapters.use("student"):
        if loss == "identity":
            byg.identity_step(byg_config.byg, trainer.roles, batch, draws)
        elif loss == "sft":
            sft.step(sft_config.sft, trainer.roles, batch, draws, 0)
        else:
            weights = {"cycle": {"lambda_prior": 0.0}, "prior": {"lambda_cycle": 0.0, "cycle": False}}[loss]
            byg.edit_step(byg_config.byg.model_copy(update=weights), trainer.roles, batch, draws)
    for path, tensor in trainer.student.tensors.items():
        assert tensor.grad.abs().max() > 0, path


def test_frozen_queries_see_neither_adapter_nor_reference(byg_config, data):
    trainer = randomized(Trainer(byg_config, data, CPU))
    x_t, t, text, _ = inputs(data)
    doubled = joined([text, text])
    with torch.no_grad(), trainer.adapters.use("student"):
        whole = trainer.roles.frozen(torch.cat([x_t, x_t]), torch.cat([t, t]), doubled, None)
    plain = flux.velocity(trainer.transformer, x_t, t, text, None, data.grid, byg_config.guidance_scale)
    assert torch.allclose(whole.chunk(2)[1], plain, atol=1e-6)


def test_adapters_start_equal_and_change_nothing(byg_config, data):
    trainer = Trainer(byg_config, data, CPU)
    assert torch.equal(trainer.student.flat, trainer.ema.flat)
    arguments = inputs(data)
    with torch.no_grad():
        assert torch.equal(trainer.role("student")(*arguments), trainer.role(None)(*arguments))


def test_adapters_need_a_layer_to_go_on(byg_config, data):
    with pytest.raises(ValueError, match="no linear layer named nowhere"):
        Adapters(Trainer(byg_config, data, CPU).transformer).add("other", 2, 2.0, ["nowhere"], 0)
