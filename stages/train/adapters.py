"""LoRA adapters on one shared base: which one is active, and the promise that a backward sees its own.

Activation checkpointing recomputes a forward under the adapter that is active at *backward* time; with the
wrong one the gradient is silently wrong. `Adapters.backward` therefore refuses any adapter but the one being
trained.

Roles change some thirty times a training step, so the layers look the active adapter up in one shared place,
and an adapter's tensors are views of one flat tensor: its optimizer, its average and its all-reduce are one
operation each. They aren't the model's parameters, so ZeRO-3 neither shards nor updates them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn


class Adapter:
    """One adapter: `tensors` by path, all of them views of `flat`, float32."""

    def __init__(self, shapes: dict[str, torch.Size], scale: float, device: torch.device) -> None:
        self.scale = scale
        self.flat = torch.zeros(sum(shape.numel() for shape in shapes.values()), device=device)
        self.tensors = self.views(self.flat, shapes)
        self.gradient: torch.Tensor | None = None

    @staticmethod
    def views(flat: torch.Tensor, shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
        """The parts of a flat tensor, by path."""
        parts = flat.split([shape.numel() for shape in shapes.values()])
        return {path: part.view(shape) for (path, shape), part in zip(shapes.items(), parts, strict=True)}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {path: tensor.shape for path, tensor in self.tensors.items()}

    def require_gradient(self) -> None:
        """Lets gradients flow into the adapter: they add up in the flat `gradient`."""
        self.gradient = torch.zeros_like(self.flat)
        for path, gradient in self.views(self.gradient, self.shapes).items():
            self.tensors[path].requires_grad_().grad = gradient


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapters: `base(x) + scale * x A^T B^T` with those of the active one."""

    def __init__(self, base_layer: nn.Linear, active: list[str | None]) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.adapters: dict[str, tuple[torch.Tensor, torch.Tensor, float]] = {}
        self._active = active

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base_layer(x)
        adapter = self.adapters.get(self._active[0])
        if adapter is None:
            return result
        a, b, scale = adapter
        inner = x.reshape(-1, x.shape[-1]) @ a.to(x.dtype).T
        rows = result.reshape(-1, result.shape[-1])
        return torch.addmm(rows, inner, b.to(x.dtype).T, alpha=scale).view(result.shape)


class Adapters:
    """The LoRA adapters of a model. Exactly one is active, or none: then the model is the frozen base.

    With ZeRO-3 adapters are added after `deepspeed.initialize`, whose hooks stay on the layers within. LoRAs
    that diffusers has loaded into the model (`load_lora_adapter`) before this is made are switched too.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._active: list[str | None] = [None]  # shared with every layer
        self._names: set[str] = set()
        self._foreign = _foreign_layers(model)
        self._activate(None)

    @property
    def active(self) -> str | None:
        return self._active[0]

    def add(
        self, name: str, rank: int, alpha: float, target_modules: Sequence[str], seed: int, part: str = ""
    ) -> Adapter:
        """Adds an adapter whose `B` is zero (so it changes nothing yet) and whose `A` is drawn from `seed`.

        It goes on the linear layers whose path ends in one of `target_modules`; with a `part`, a submodule, on those
        within it, and the paths of its tensors begin there. Two of one name, on two parts, are active together.
        """
        layers = self._layers(target_modules, part)
        shapes = {}
        for path, layer in layers.items():
            shapes[f"{path}.lora_A.weight"] = torch.Size((rank, layer.in_features))
            shapes[f"{path}.lora_B.weight"] = torch.Size((layer.out_features, rank))
        device = next(iter(layers.values())).base_layer.weight.device
        adapter = Adapter(shapes, alpha / rank, device)
        generator = torch.Generator().manual_seed(seed)
        for path, layer in layers.items():
            a, b = adapter.tensors[f"{path}.lora_A.weight"], adapter.tensors[f"{path}.lora_B.weight"]
            bound = layer.in_features**-0.5
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
            layer.adapters[name] = (a, b, adapter.scale)
        self._names.add(name)
        return adapter

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Inside, `name` is active (None: the frozen base); afterwards the one from before again."""
        before = self.active
        self._activate(name)
        try:
            yield
        finally:
            self._activate(before)

    def backward(self, loss: torch.Tensor, name: str) -> None:
        """`loss.backward()`, under the adapter that it belongs to.

        Raises RuntimeError if another one is active.
        """
        if self.active != name:
            raise RuntimeError(
                f"backward of adapter {name!r} while {self.active!r} is active: gradients would be wrong"
            )
        loss.backward()

    def _layers(self, target_modules: Sequence[str], part: str) -> dict[str, LoraLinear]:
        """The targeted layers of a part by their path in it, wrapped now if they weren't."""
        ends = tuple(f".{end}" for end in target_modules)
        layers = {}
        root = self.model.get_submodule(part)
        for path, module in list(root.named_modules()):
            if not f".{path}".endswith(ends):
                continue
            if isinstance(module, nn.Linear):
                parent, _, name = path.rpartition(".")
                module = LoraLinear(module, self._active)
                setattr(root.get_submodule(parent), name, module)
            if isinstance(module, LoraLinear):
                layers[path] = module
        if not layers:
            named = ", ".join(target_modules)
            raise ValueError(f"{type(self.model).__name__} has no linear layer named {named}")
        return layers

    def _activate(self, name: str | None) -> None:
        known = {*self._names, *getattr(self.model, "peft_config", ())}
        if name is not None and name not in known:
            raise KeyError(f"there is no adapter {name!r}")
        for layer in self._foreign:
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name, inference_mode=True)
        self._active[0] = name


def _foreign_layers(model: nn.Module) -> list:
    if not getattr(model, "peft_config", None):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
