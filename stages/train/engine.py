"""The training loop: one frozen base, the LoRAs that a method trains, the student's average, any number of ranks.

Everything that a step does is a function of (seed, step, state): the rows, every draw, the arithmetic. So a
run that was cut anywhere and goes on ends as one that was not, and ranks change only the order of sums.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist
from torch import nn

from cluster.errors import UserError
from cluster.folder import Folder
from stages.train import flow
from stages.train.adapters import Adapter, Adapters
from stages.train.backbones.backbone import backbone_of
from stages.train.backbones.wan import Experts
from stages.train.data import BatchOrder, EncodedData, SharedOrder
from stages.train.export import FILES, read_lora, save_lora
from stages.train.figures import TrainingDiverged, norm_name, reduced
from stages.train.live import LiveData
from stages.train.methods import byg, flow_grpo, np_edit, sft, video4edit
from stages.train.roles import Batch, Draws, Judge, Roles, TextEmbeds
from stages.train.schedule import learning_rate_at
from stages.train.settings import TrainConfig
from stages.train.sharding import load_root, run_in
from stages.train.teacher import with_hidden_states

EXPORTED = "adapter"
"""The folder of a training's artifact that holds what it trained."""

METHODS: dict[str, ModuleType] = {
    "byg": byg,
    "flow_grpo": flow_grpo,
    "np_edit": np_edit,
    "sft": sft,
    "video4edit": video4edit,
}


class Trainer:
    """The state of a training run and its step.

    Args:
        config: `batch_size` must be a multiple of the number of ranks.
        data: the encoded rows with the method's fields.
        device: of this rank.
        judge: for a method that asks one.
    """

    def __init__(
        self, config: TrainConfig, data: EncodedData | LiveData, device: torch.device, judge: Judge | None = None
    ) -> None:
        self.rank, self.world_size = 0, 1
        if dist.is_initialized():
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        if config.batch_size % self.world_size:
            raise UserError(
                f"A batch_size of {config.batch_size} can't be shared by {self.world_size} ranks alike: "
                "choose a num_workers that divides it."
            )
        self.config, self.data, self.device = config, data, device
        self.method, self.settings = METHODS[config.method], getattr(config, config.method)
        shares = getattr(config, "type_shares", None)
        if shares is None:
            self.order = BatchOrder(len(data), config.batch_size, config.seed)
        else:
            self.order = SharedOrder(data.labels["edit_type"], shares, config.batch_size, config.seed)
        share = config.batch_size // self.world_size
        self.my_rows = slice(self.rank * share, (self.rank + 1) * share)

        self.backbone = backbone_of(config.model, f"{config.stage}.model")
        self.root, networks = load_root(config, device, config.trains_all)
        self.transformer = networks.transformer
        self.parts = {"": ""}
        """Of the network, each with adapters of its own, by what their names end in."""
        self.boundary: float | None = None
        self._expert = ""  # of this step, as in `parts`
        if isinstance(self.transformer, Experts):
            self._divide(self.transformer)
        self._prepare()
        self.roles = Roles(
            student=self.role("student"),
            rollout=self.role("ema"),
            frozen=self.role(None),
            backward=self._backward,
            auxiliary=self.role("auxiliary") if "auxiliary" in self.method.TRAINED else None,
            judge=judge,
        )
        if networks.teacher is not None:
            hidden = with_hidden_states(config, self.transformer, networks.teacher, data.grid)
            self.roles.student_hidden, self.roles.teacher_hidden = hidden
        self.step = 0
        """Steps done."""
        self.history: list[tuple[int, str, float]] = []
        """(step, figure, value) of every step; only what is the same whenever it is done again."""

    def _prepare(self) -> None:
        """Makes what is trained, and its optimizers."""
        self.adapters = Adapters(self.transformer)
        self.trained: dict[str, Adapter] = {}
        self.optimizers: dict[str, torch.optim.AdamW] = {}
        self.averages: dict[str, Adapter] = {}
        """Of the students; without an average the student itself."""
        for end, part in self.parts.items():
            for name in self.method.TRAINED:
                self.trained[name + end], self.optimizers[name + end] = self._new_trained(name, part)
            own = self.trained["student" + end]
            self.averages["student" + end] = self._new_adapter("ema", part) if self.config.ema_decay else own
        self.student, self.ema = self.trained["student"], self.averages["student"]
        self._touched: list[str] = []  # the adapters that this step has trained

    def _divide(self, experts: Experts) -> None:
        """Gives each of two experts adapters and optimizers of its own, which have turns.

        A step's times lie on one side of the boundary, so that it trains one LoRA; the side is drawn for all ranks
        at once, each as often as the method's times would lie there. Sampling passes through both.

        Raises UserError for a method that can't do with a part of the times.
        """
        shifts = self.settings.time_shifts
        if shifts is None:
            raise UserError(
                f"{self.config.stage}: {self.config.model} has two experts, and {self.config.method} trains at all "
                f"times at once. Name a model with one transformer with --set {self.config.stage}.model=..."
            )
        self.parts = dict(zip(("", "_2"), experts.PARTS, strict=True))
        self.boundary = experts.boundary_ratio
        self.high_noise_share = math.fsum(flow.logit_normal_share(self.boundary, s) for s in shifts) / len(shifts)

    def _new_adapter(self, name: str, part: str) -> Adapter:
        config, targets = self.config, self.backbone.LORA_TARGETS
        return self.adapters.add(name, config.rank, config.lora_alpha, targets, config.seed, part)

    def _new_trained(self, name: str, part: str) -> tuple[Adapter, torch.optim.AdamW]:
        adapter, config = self._new_adapter(name, part), self.config
        adapter.require_gradient()
        adapter.flat.grad = adapter.gradient
        optimizer = torch.optim.AdamW(
            [adapter.flat],
            lr=config.learning_rate,
            betas=config.betas,
            eps=1e-8,
            weight_decay=config.weight_decay,
            foreach=False,
        )
        moments = {name: torch.zeros_like(adapter.flat) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[adapter.flat] = {"step": torch.zeros(())} | moments
        return adapter, optimizer

    def _backward(self, loss: torch.Tensor, name: str = "student") -> None:
        """The student's loss is refused under another adapter; any other adapter's brings its own with it."""
        if name + self._expert not in self._touched:
            self._touched.append(name + self._expert)
        own = contextlib.nullcontext() if name == "student" else self.adapters.use(name)
        with own:
            self.adapters.backward(loss, name)

    def role(self, adapter: str | None) -> Callable[..., torch.Tensor]:
        """The base under one adapter, as a velocity."""

        def velocity(
            x_t: torch.Tensor, t: torch.Tensor, text: TextEmbeds, reference: torch.Tensor | None
        ) -> torch.Tensor:
            with self.using(adapter):
                return self.backbone.velocity(
                    self._network(adapter),
                    x_t,
                    t,
                    text,
                    reference,
                    self.data.grid,
                    self.config.guidance_scale,
                    self.config.reference_positions,
                )

        return velocity

    def _network(self, adapter: str | None) -> nn.Module:
        """The transformer that takes a role: the one base, under whichever adapter."""
        return self.transformer

    def using(self, adapter: str | None) -> contextlib.AbstractContextManager:
        """Inside, the base works under this adapter; without an average the student is its own."""
        return self.adapters.use("student" if adapter == "ema" and self.ema is self.student else adapter)

    def run(self, work: Callable[[], None]) -> None:
        """Does work that calls the base's roles. On every rank at once, with as many forwards on each."""
        run_in(self.root, work)

    def batch(self, rows: list[int]) -> Batch:
        """Rows of the data, on this rank's device."""
        return self.data.batch(rows, self.device, getattr(torch, self.config.dtype))

    def train_step(self) -> dict[str, float]:
        """One step. Returns its figures, means over all ranks, and adds them to the history.

        Raises TrainingDiverged, on all ranks alike and before anything is updated.
        """
        step, config = self.step, self.config
        rows = self.order.rows(step)
        batch = self.batch(rows[self.my_rows])
        draws = Draws(config.seed, step, config.batch_size, self.my_rows)
        if self.boundary is not None:
            is_high = draws.chance(self.high_noise_share)
            self._expert = "" if is_high else "_2"
            draws.t_range = (self.boundary, 1.0) if is_high else (0.0, self.boundary)
        self._forget_gradients()
        figures: dict[str, torch.Tensor] = {}

        def work() -> None:
            with self.using("student"):
                figures.update(self.method.step(self.settings, self.roles, batch, draws, step))

        self.run(work)
        norms = self._gradient_norms()
        values = reduced(figures, self.world_size) | {norm_name(name): norm for name, norm in norms.items()}
        if not all(map(math.isfinite, values.values())) or max(norms.values()) > config.stop_gradient_norm:
            raise TrainingDiverged(step, values, self.batch(rows), config.stop_gradient_norm)
        with torch.no_grad():
            self._update(norms)
        self.step += 1
        self.history += [(self.step, name, value) for name, value in values.items()]
        return values

    def _forget_gradients(self) -> None:
        for adapter in self.trained.values():
            adapter.gradient.zero_()
        self._touched.clear()

    def _gradient_norms(self) -> dict[str, float]:
        """Averages the gradients over the ranks, in place; the norm of each that this step has made."""
        for name in self._touched:
            if self.world_size > 1:
                dist.all_reduce(self.trained[name].gradient)
                self.trained[name].gradient.div_(self.world_size)
        return {name: self.trained[name].gradient.norm().item() for name in self._touched}

    def _update(self, norms: dict[str, float]) -> None:
        """One step of each optimizer whose adapter has a gradient, and of the average."""
        for name, norm in norms.items():
            if norm > self.config.max_gradient_norm:
                self.trained[name].gradient.mul_(self.config.max_gradient_norm / norm)
            self.optimizers[name].param_groups[0]["lr"] = self.learning_rate
            self.optimizers[name].step()
            average = self.averages.get(name, self.trained[name])
            if average is not self.trained[name]:
                average.flat.lerp_(self.trained[name].flat.detach(), 1 - self.config.ema_decay)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return learning_rate_at(self.step, self.config)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All that changes from step to step, by `<part>/<path of the LoRA tensor>`; views, in float32."""
        parts: dict[str, torch.Tensor] = {}
        for end in self.parts:
            if self.ema is not self.student:
                parts["ema" + end] = self.averages["student" + end].flat
        steps = {}
        for name, adapter in self.trained.items():
            moments = self.optimizers[name].state[adapter.flat]
            before = "" if name == "student" else f"{name}_"
            parts |= {name: adapter.flat.detach()} | {f"{before}{m}": moments[m] for m in ("exp_avg", "exp_avg_sq")}
            steps[f"{name}/num_updates"] = moments["step"]
        return steps | {  # all adapters have the same shapes: two experts are built alike
            f"{part}/{path}": view
            for part, flat in parts.items()
            for path, view in Adapter.views(flat, self.student.shapes).items()
        }

    def load_state(self, tensors: dict[str, torch.Tensor], step: int, history: list[tuple[int, str, float]]) -> None:
        """Goes on from a state that `state_tensors` gave after `step` steps."""
        with torch.no_grad():
            self._load_tensors(tensors)
        self.step, self.history = step, list(history)

    def _load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, view in self.state_tensors().items():
            view.copy_(tensors[name])

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return self.student.flat.numel() * len(self.parts)

    def start_from(self, folder: Path) -> None:
        """Student and average start from a LoRA that was exported, instead of from nothing.

        Raises UserError if it doesn't fit.
        """
        for end, part in self.parts.items():
            student, average = self.trained["student" + end], self.averages["student" + end]
            lora = read_lora(folder, student.shapes, self.config.lora_alpha, FILES[part])
            with torch.no_grad():
                for adapter in (student, average):
                    for path, tensor in adapter.tensors.items():
                        tensor.copy_(lora[path])

    def export(self, out: Folder) -> None:
        """Writes the average to `adapter/`, as the backbone's pipeline loads it, of two experts one file each (FILES).

        On every rank at once.
        """
        if self.rank == 0:
            config = self.config
            for end, part in self.parts.items():
                tensors = self.averages["student" + end].tensors
                save_lora(out.sub(EXPORTED), tensors, config.rank, config.lora_alpha, self.backbone, FILES[part])
