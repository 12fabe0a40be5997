"""The training stages: an adapter from encoded rows, with its history."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.artifacts import Artifact
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from stages.train.backbones.models import model_sources, resolved_model
from stages.train.settings import JudgedConfig, TrainConfig

if TYPE_CHECKING:
    import torch

    from stages.train.engine import Trainer


def train_sources(config: TrainConfig) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    others = [getattr(config, field) for field in ("vlm", "teacher_model") if hasattr(config, field)]
    files = [resolved_model(config.init_adapter)] if config.init_adapter else []
    files += [weights] if (weights := getattr(config, "lpips_weights", "")) else []
    return [*(source for model in (config.model, *others) for source in model_sources(model)), *files]


def train(inputs: Mapping[str, Artifact], config: TrainConfig, context: Context) -> None:
    """Trains a LoRA on the encoded rows, on `num_workers` ranks.

    Takes the artifact that has encoded rows, and for previews alone, if there, a validation split. Writes `adapter/` (a
    LoRA as diffusers has it: the average; of two experts one each) or, where all weights are trained, `transformer/`;
    `history.parquet` (step, name, value) and `previews/`. An attempt that was cut goes on from its last checkpoint.

    Raises:
        UserError: data, model or start adapter don't fit, or training diverged.
    """
    from stages.train.workers import run_ranks

    encoded = [artifact for name, artifact in inputs.items() if not name.endswith("validation")]
    if len(encoded) != 1:
        raise UserError(f"{context.stage}: it needs one stage with encoded rows, not {len(encoded)}.")
    validation = next((artifact.folder for name, artifact in inputs.items() if name.endswith("validation")), None)
    work = TrainRank(config, encoded[0].folder, validation, context)
    figures = run_ranks(
        work,
        num_workers=config.num_workers,
        num_threads=config.num_threads,
        device=config.device,
        context=context,
    )
    context.set_rows(figures["num_rows"])
    context.set_figures(figures)


@dataclasses.dataclass(frozen=True)
class TrainRank:
    """What one rank does; returns the figures for the manifest."""

    config: TrainConfig
    encoded: Folder
    validation: Folder | None
    context: Context

    def __call__(self, device: torch.device) -> dict[str, Any]:
        import torch

        from stages.train.checkpoint import Checkpoints
        from stages.train.engine import METHODS
        from stages.train.figures import TrainingDiverged
        from stages.train.live import open_data

        config, context = self.config, self.context
        method = METHODS[config.method]
        data = open_data(self.encoded.local(), method.LATENTS, method.TEXTS, device, method.LABELS)
        trainer = new_trainer(config, data, device)
        checkpoints = Checkpoints(Folder(context.scratch / "checkpoints"), identity_of(config))
        if not resume(trainer, checkpoints, context) and config.init_adapter:
            trainer.start_from(Path(resolved_model(config.init_adapter)))
        started, first = time.monotonic(), trainer.step
        preview = self._preview(trainer)
        while trainer.step < config.num_steps:
            context.check()
            try:
                figures = trainer.train_step()
            except TrainingDiverged as error:
                state = trainer.state_tensors()
                if trainer.rank == 0:
                    save_failure(context.scratch / "failure", state, error)
                raise
            last = trainer.step == config.num_steps
            if preview and (trainer.step % config.preview_every == 0 or last):
                scores, picture = preview()
                trainer.history += [(trainer.step, name, value) for name, value in scores.items()]
                if trainer.rank == 0:
                    self._log_preview(trainer.step, scores, picture)
            if trainer.rank == 0:
                seconds = (time.monotonic() - started) / (trainer.step - first)
                self._log(trainer, figures, seconds)
            if trainer.step % config.checkpoint_every == 0 or last:
                state = trainer.state_tensors()
                if trainer.rank == 0:
                    checkpoints.save(trainer.step, state, trainer.history)
        figures = {
            "num_rows": len(data),
            "num_steps": trainer.step,
            "num_parameters": trainer.num_parameters,
            "seconds_per_step": (time.monotonic() - started) / max(trainer.step - first, 1),
            "peak_memory_gib": peak_memory(device),
            "final": final_figures(trainer, config),
        }
        trainer.export(context.out)
        if trainer.rank == 0:
            write_history(context.out, trainer.history)
            self._register(figures)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return figures

    def _preview(self, trainer: Trainer) -> Any:
        config = self.config
        if not config.preview_every or self.validation is None:
            return None
        from stages.train.preview import METRICS, Preview, read_items

        items = read_items(self.validation, config.num_preview_items, config.num_frames)
        return Preview(trainer, items, METRICS[config.preview_metric], config.num_preview_steps)

    def _log(self, trainer: Trainer, figures: dict[str, float], seconds: float) -> None:
        from stages.train.figures import means

        config, step = self.config, trainer.step
        losses = {name: value for name, value in figures.items() if name.startswith("loss")}
        self.context.progress(step, config.num_steps, "steps", **losses)
        if step % config.log_every == 0 or step == config.num_steps:
            metrics = means(trainer.history, step - config.log_every + 1, step)
            # a preview was logged at its own step
            metrics = {name: v for name, v in metrics.items() if not name.startswith(("preview_", "validation_"))}
            rates = {"learning_rate": trainer.learning_rate, "steps_per_second": 1 / seconds}
            self.context.log_metrics(metrics | rates, step)

    def _log_preview(self, step: int, scores: dict[str, float], picture: bytes) -> None:
        name = f"previews/step-{step:06d}.png"
        self.context.out.write_bytes(name, picture)
        self.context.log_metrics(scores, step)
        self.context.log_artifact(self.context.out.local(name), "previews")

    def _register(self, figures: dict[str, Any]) -> None:
        if not self.config.trains_all:  # whole transformers are too large to be stored twice
            from stages.train.engine import EXPORTED

            params = {"method": self.config.method, "rank": self.config.rank, **figures["final"]}
            self.context.register_adapter(self.context.out.local(EXPORTED), params)


def new_trainer(config: TrainConfig, data: Any, device: torch.device) -> Trainer:
    """The training in its first state, of a LoRA or of all weights."""
    from stages.train.engine import Trainer
    from stages.train.full import FullTrainer

    kind = FullTrainer if config.trains_all else Trainer
    trainer = kind(config, data, device, load_judge(config, data.grid, device))
    if getattr(getattr(config, config.method), "lambda_lpips", 0):
        from stages.train.perceptual import PerceptualDistance

        trainer.roles.perceptual = PerceptualDistance.load(config, data.grid, device)
    return trainer


def load_judge(config: TrainConfig, grid: tuple[int, ...], device: torch.device) -> Any:
    """The judge of a method that asks one, for pictures of `grid` tokens; else None."""
    if not isinstance(config, JudgedConfig) or not getattr(getattr(config, config.method), "vlm", True):
        return None
    from stages.train.vlm.judge import EditJudge

    return EditJudge.load(config, grid, str(device))


def identity_of(config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint must agree in with the training that goes on from it."""
    from stages.train.backbones.backbone import backbone_of, boundary_of

    names = ("method", "model", "rank", "alpha", "batch_size", "seed", "dtype")
    weights = {"weights": "full"} if config.trains_all else {}
    weights |= {"experts": 2} if boundary_of(config.model) is not None else {}
    return {"backbone": backbone_of(config.model).NAME} | weights | {name: getattr(config, name) for name in names}


def resume(trainer: Trainer, checkpoints: Any, context: Context) -> bool:
    """Goes on from the newest good checkpoint, which rank 0 reads for all; whether there was one."""
    import torch.distributed as dist

    state: list[Any] = [None]
    if trainer.rank == 0:
        try:
            state = [checkpoints.load(on_damage=context.incident)]
        except UserError as error:
            state = [error]
    if trainer.world_size > 1:
        dist.broadcast_object_list(state, src=0, device=trainer.device)
    if isinstance(state[0], UserError):
        raise state[0]
    if state[0] is None:
        return False
    step, tensors, history = state[0]
    trainer.load_state(tensors, step, history)
    return True


def final_figures(trainer: Trainer, config: TrainConfig) -> dict[str, float]:
    """The figures' means over the last twentieth of the steps."""
    from stages.train.figures import means

    return means(trainer.history, config.num_steps - max(config.num_steps // 20, 1) + 1, config.num_steps)


def write_history(folder: Folder, history: list[tuple[int, str, float]]) -> None:
    """`history.parquet`: one row per step and figure."""
    import pyarrow as pa

    steps, names, values = zip(*history, strict=True)
    columns = {
        "step": pa.array(steps, pa.int32()),
        "name": pa.array(names, pa.string()),
        "value": pa.array(values, pa.float64()),
    }
    folder.write_table("history.parquet", pa.table(columns))


def save_failure(path: Path, state: dict[str, torch.Tensor], error: Any) -> None:
    """Keeps what a step that diverged worked on: the state before it, and the global batch."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    tensors = {f"latents/{name}": tensor for name, tensor in error.batch.latents.items()}
    for field, embeds in error.batch.texts.items():
        tensors |= {f"texts/{field}/{name}": tensor for name, tensor in embeds.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "batch.safetensors")
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(state, path / "state.safetensors")
    facts = {"step": error.step, "ids": error.batch.ids, "figures": repr(error.figures)}
    Folder(path).write_json("failure.json", facts)


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has used, in GiB: the GPU's, or else the machine's."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
