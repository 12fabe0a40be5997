"""The networks on every rank: whole, or cut over the ranks by DeepSpeed's ZeRO-3."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cluster.errors import UserError
from stages.train.backbones.backbone import load_network, loading
from stages.train.backbones.models import resolved_model
from stages.train.backbones.wan import Experts
from stages.train.settings import TrainConfig, TrainVideo4EditConfig


class Root(nn.Module):
    """A module whose forward is any work with the base, most often a whole training step.

    ZeRO-3 foresees which parameters come next from what happened in the last forward of the root module: so
    the root must be the step, not one of its many forwards.
    """

    def __init__(self, transformer: nn.Module, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.teacher = teacher
        self.work = None

    def forward(self) -> tuple[()]:
        self.work()
        return ()


def run_in(engine: nn.Module, work: Callable[[], None]) -> None:
    """Does the work within a forward of what `load_root` gave. On every rank at once, with as many forwards on each.

    The work may call another engine's root: each engine foresees its own parameters from its own last call.
    """
    root = getattr(engine, "module", engine)
    root.work = work
    engine()


def load_root(config: TrainConfig, device: torch.device, is_trained: bool) -> tuple[nn.Module, Root]:
    """The networks, as (what is to be called for a step, the root within).

    They are the base, with an optimizer for all its weights if it `is_trained`, else frozen, and beside it the teacher
    of a method that has one.

    With `sharding: zero3` it is built under `zero.Init` and filled one tensor at a time, so that no rank ever
    holds it whole. The process group must be there.

    Raises UserError if a model can't be loaded.
    """
    transformer, teacher = _load(config, "model", device, is_trained), None
    if is_trained and isinstance(transformer, Experts):
        raise UserError(
            f"{config.stage}: {config.model} has two experts, and all weights of one transformer alone can be trained. "
            f"Use --set {config.stage}.weights=lora."
        )
    transformer.requires_grad_(is_trained)
    if isinstance(config, TrainVideo4EditConfig):
        teacher = _load(config, "teacher_model", device)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()  # diffusers' default is the non-reentrant kind
    root = Root(transformer, teacher)
    if config.sharding == "none":
        return root, root
    deepspeed = _deepspeed()
    settings = deepspeed_config(config)
    if not (is_trained and getattr(config, config.method).unrolls):
        # A block is gathered and released as a whole: fewer, larger messages, and no hooks on the layers within.
        # DeepSpeed sends the gradients of such a block after each of its forwards: there must be but one to a loss.
        settings["zero_optimization"]["leaf_module"] = {"classes": transformer._no_split_modules}
    for block in root.modules():
        if type(block).__name__ in transformer._no_split_modules:
            block.register_forward_pre_hook(_by_position, with_kwargs=True)
    trained = {}
    if is_trained:
        parameters = list(transformer.parameters())
        # DeepSpeed's own optimizer for offloaded states is compiled at first use; torch's needs nothing
        optimizer = torch.optim.AdamW(
            parameters, config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        trained = {"model_parameters": parameters, "optimizer": optimizer}
        settings["zero_force_ds_cpu_optimizer"] = False
        settings["gradient_clipping"] = config.max_gradient_norm
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        if config.offload_optimizer:
            settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    engine, *_ = deepspeed.initialize(model=root, config=settings, **trained)
    return engine, root


def _load(config: TrainConfig, field: str, device: torch.device, is_trained: bool = False) -> nn.Module:
    """The transformer (or two experts) of the model that a setting names, frozen; `is_trained`: it won't stay so."""
    dtype = getattr(torch, config.dtype)
    named = getattr(config, field)
    model = resolved_model(named)
    with loading(named, f"{config.stage}.{field}") as backbone:

        def load(part: str) -> nn.Module:
            if config.sharding != "none":
                return _sharded_transformer(backbone.TRANSFORMER, _part_folder(model, part), config, is_trained)
            return backbone.TRANSFORMER.from_pretrained(model, subfolder=part, torch_dtype=dtype, use_safetensors=True)

        transformer = load_network(model, load)
    if config.sharding == "none":
        transformer.to(device)
    return transformer.requires_grad_(False).eval()


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """The configuration of an engine that only cuts parameters: no optimizer, no default left unsaid."""
    import torch.distributed as dist

    return {
        "train_micro_batch_size_per_gpu": config.batch_size // dist.get_world_size(),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "prescale_gradients": False,
        "steps_per_print": 1 << 62,
        "wall_clock_breakdown": False,
        "dump_state": False,
        "disable_allgather": False,
        "communication_data_type": None,
        "fp16": {"enabled": False},
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": config.persistence_threshold,
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": False,
            "contiguous_gradients": True,
            "overlap_comm": True,
            "reduce_scatter": True,
            "reduce_bucket_size": 500_000_000,
            "allgather_partitions": True,
            "allgather_bucket_size": 500_000_000,
            "sub_group_size": 1_000_000_000,
            "zero_hpz_partition_size": 1,
            "zero_quantized_weights": False,
            "zero_quantized_gradients": False,
            "round_robin_gradients": False,
            # Keeps no gathered weight alive between a layer's forward and its backward.
            "memory_efficient_linear": True,
        },
    }


def _by_position(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Turns keyword arguments into positional ones.

    DeepSpeed looks for the end of a module's backward at its positional inputs; without any it would keep the
    module's parameters gathered for ever.
    """
    given = inspect.signature(module.forward).bind(*args, **kwargs)
    return given.args, given.kwargs


def _part_folder(model: str, part: str) -> Path:
    if Path(model).is_dir():
        return Path(model) / part
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=[f"{part}/*"])) / part


def _deepspeed() -> Any:
    """The library, kept from compiling its shared-memory operation for CPUs at first use.

    ZeRO-3 doesn't use it; it needs a compiler, and a rank that is killed while it builds leaves a lock behind
    for which every later one waits for ever.
    """
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _sharded_transformer(transformer_class: Any, folder: Path, config: TrainConfig, is_trained: bool) -> nn.Module:
    """A model as `from_pretrained` gives it, cut over the ranks.

    The modules that its class names keep float32 weights beside those of the configuration's dtype. Not so where it
    `is_trained`: DeepSpeed's optimizer takes parameters of one dtype alone, and has them in float32 besides.
    """
    import torch.distributed as dist
    from safetensors import safe_open

    deepspeed = _deepspeed()
    settings, dtype = transformer_class.load_config(folder), getattr(torch, config.dtype)
    overrides = deepspeed.zero.partition_parameters.DEFAULT_TENSOR_OVERRIDES
    if dtype != torch.float32:
        # DeepSpeed would cast every new tensor, those from which rotary frequencies are computed among them.
        overrides = [deepspeed.zero.partition_parameters.DeepSpeedTensorOverride.device]
    # Its dtype comes from the configuration: given as an argument, DeepSpeed takes another one on CPUs.
    with (
        deepspeed.zero.Init(config_dict_or_path=deepspeed_config(config), tensor_overrides=overrides),
        _default_dtype(dtype),
    ):
        transformer = transformer_class.from_config(settings)
    kept = set() if is_trained else set(transformer_class._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        _hold_in(parameter, torch.float32 if kept & set(name.split(".")) else dtype)
    missing = dict(transformer.named_parameters())
    buffers = dict(transformer.named_buffers())  # of which a file has some, whole on every rank
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                if name in buffers:
                    buffers[name].copy_(opened.get_tensor(name))
                    continue
                parameter = missing.pop(name, None)
                if parameter is None:
                    raise ValueError(f"{file} has a tensor {name!r} that the transformer hasn't")
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    if dist.get_rank() == 0:
                        parameter.data.copy_(opened.get_tensor(name))
    if missing:
        raise ValueError(f"{folder} has no tensor {next(iter(missing))!r} (and {len(missing) - 1} more)")
    return transformer


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, tensors of floats are made in this dtype unless they name another, as when diffusers loads a model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _hold_in(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """Casts a parameter that is cut over the ranks: this rank's part, and what stands for the whole."""
    parameter.ds_tensor.data = parameter.ds_tensor.data.to(dtype)
    parameter.data = parameter.data.to(dtype)
