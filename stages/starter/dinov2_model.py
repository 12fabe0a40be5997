"""The starter's DINOv2: the real class, tiny, taught from pictures of the scene world alone.

Self-distillation as in DINO (Caron et al. 2021): a student guesses from one view of a picture what its teacher, the
average of its own past, makes of another one. The teacher's outputs are sharpened, and centred as in DINOv2 (Oquab et
al. 2023), whose KoLeo spreads the class tokens. The views are crops under another dappled light, brighter or darker and
noisy. They are not mirrored, for left and right mean something here.
"""

from __future__ import annotations

import copy
import math
import pathlib
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stages.starter import world
from stages.starter.progress import Progress, TrainingSettings

PATCH_SIZE = 8
HIDDEN_SIZE = 64
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as the published models'


class Dinov2ModelSettings(TrainingSettings):
    """Sizes of DINOv2's training: the defaults take about two minutes on one core."""

    num_steps: int = 500
    learning_rate: float = 4e-3
    weight_decay: float = 0.04
    warmup_steps: int = 100
    batch_size: int = 32  # scenes, each beside its edited scenes
    num_scenes: int = 1024
    num_edits: int = 3
    num_prototypes: int = 256
    area: tuple[float, float] = (0.85, 1.0)  # of a view, as a share of the picture
    light: float = 0.12  # what a view's patches get or lose at most, of the range
    brightness: float = 0.15
    noise: float = 0.02
    student_temperature: float = 0.1
    teacher_temperature: float = 0.025
    teacher_momentum: float = 0.9  # at the beginning; 1 at the end
    num_sinkhorn: int = 3
    koleo: float = 0.3


def new_dinov2():
    """An untrained Dinov2Model of 0.15 M parameters."""
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(
        Dinov2Config(
            hidden_size=HIDDEN_SIZE,
            num_hidden_layers=4,
            num_attention_heads=4,
            mlp_ratio=2,
            image_size=world.IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        )
    )


def new_image_processor():
    """Its BitImageProcessor: pictures keep their 32x32 pixels."""
    from transformers import BitImageProcessor

    size = world.IMAGE_SIZE
    return BitImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )


@torch.no_grad()
def teacher_targets(logits: torch.Tensor, temperature: float, num_iterations: int) -> torch.Tensor:
    """What the student should say of each view, `[G, B, K]`: probabilities over prototypes, without gradient.

    Sinkhorn and Knopp's centring, as in DINOv2: in turn every prototype gets the same share of all views, and every
    view's shares are made to sum to 1. A low temperature sharpens.
    """
    shares = ((logits - logits.amax((0, 1))) / temperature).flatten(0, 1).exp()  # any factor of a prototype cancels
    for _ in range(num_iterations):
        shares = shares / shares.sum(0, keepdim=True)
        shares = shares / shares.sum(1, keepdim=True)
    return shares.view_as(logits)


def dino_loss(student_logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of the student's views with what the teacher makes of the other ones (DINO, eq. 3).

    Logits and targets are those of all views, `[V, B, K]`.
    """
    of_views = -torch.einsum("tbk,sbk->ts", targets, (student_logits / temperature).log_softmax(-1))
    others = ~torch.eye(len(of_views), dtype=torch.bool)
    return of_views[others].mean() / student_logits.shape[1]


def koleo_loss(embeddings: torch.Tensor) -> torch.Tensor:
    """Minus the mean log distance of each unit vector to its nearest one, of embeddings `[B, D]` (DINOv2)."""
    unit = functional.normalize(embeddings, dim=-1)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(-1)
    return -((unit - unit[nearest]).norm(dim=-1) + 1e-8).log().mean()


def momentum_at(step: int, settings: Dinov2ModelSettings) -> float:
    """The teacher's momentum, which rises to 1 along half a cosine."""
    rest = (1 + math.cos(math.pi * step / settings.num_steps)) / 2
    return 1 - (1 - settings.teacher_momentum) * rest


class Head(nn.Module):
    """DINO's head: an MLP to a unit vector, and its cosines with the prototypes."""

    def __init__(self, num_prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(HIDDEN_SIZE, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 32)
        )
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, 32))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.linear(
            functional.normalize(self.mlp(tokens), dim=-1), functional.normalize(self.prototypes, dim=-1)
        )


class Branch(nn.Module):
    """A backbone and its head."""

    def __init__(self, num_prototypes: int) -> None:
        super().__init__()
        self.backbone = new_dinov2()
        self.head = Head(num_prototypes)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class tokens `[B, D]` and logits `[B, K]` of pixels `[B, 3, H, W]` in [0, 1]."""
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        tokens = self.backbone((pixels - mean) / std).last_hidden_state[:, 0]
        return tokens, self.head(tokens)


class SelfDistillation(nn.Module):
    """Student and teacher: all that a checkpoint keeps."""

    def __init__(self, num_prototypes: int) -> None:
        super().__init__()
        self.student = Branch(num_prototypes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)


def views(pictures: torch.Tensor, settings: Dinov2ModelSettings, draw: torch.Generator) -> torch.Tensor:
    """A view of each picture `[B, 3, 32, 32]` in [0, 1]: a square crop at full size, in another light, noisy."""
    num = len(pictures)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return low + (high - low) * torch.rand(num, *shape, generator=draw)

    light = torch.where(uniform(1, world.NUM_PATCHES, world.NUM_PATCHES) < 0.5, -1.0, 1.0)
    light = light.repeat_interleave(world.PATCH_SIZE, 2).repeat_interleave(world.PATCH_SIZE, 3)
    lit = pictures * (1 + uniform(1, 1, 1, low=-1) * settings.brightness) + light * uniform(1, 1, 1) * settings.light
    theta = torch.zeros(num, 2, 3)
    side = uniform(low=settings.area[0], high=settings.area[1]).sqrt()
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = uniform(2, low=-1) * (1 - side)[:, None]  # the middle: the crop lies within the picture
    grid = functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    seen = functional.grid_sample(lit, grid, padding_mode="border", align_corners=False)
    noise = torch.randn(seen.shape, generator=draw) * uniform(1, 1, 1, high=settings.noise)
    return (seen + noise).clamp(0, 1)


def sample_pictures(settings: Dinov2ModelSettings) -> torch.Tensor:
    """Scenes, each beside some of its edited scenes under the same light: uint8 `[N, 1 + E, 3, 32, 32]`.

    Neighbours in a batch are what has to be told apart: for scenes drawn at random, background and style would do.
    """
    generator = np.random.default_rng([settings.seed, 70])
    families = []
    for _ in range(settings.num_scenes):
        scene = world.sample_scene(generator)
        family = {world.caption(scene): scene}
        while len(family) <= settings.num_edits:
            target = world.sample_edit(scene, generator).target
            family[world.caption(target)] = target
        families.append([world.render(member) for member in family.values()])
    return torch.from_numpy(np.array(families)).permute(0, 1, 4, 2, 3)


def draw_views(pictures: torch.Tensor, settings: Dinov2ModelSettings, step: int) -> torch.Tensor:
    """Two views `[2, B (1 + E), 3, 32, 32]` of the pictures of a step, out of `sample_pictures`."""
    draw = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    chosen = pictures[torch.randperm(len(pictures), generator=draw)[: settings.batch_size]].flatten(0, 1)
    return torch.stack([views(chosen.float() / 255, settings, draw) for _ in range(2)])


def training_loss(
    module: SelfDistillation, seen: torch.Tensor, settings: Dinov2ModelSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, the teacher's targets `[2, B, K]`) of two views of each picture, `[2, B, 3, 32, 32]` in [0, 1]."""
    tokens, logits = module.student(seen.flatten(0, 1))
    with torch.no_grad():
        of_teacher = module.teacher(seen.flatten(0, 1))[1].unflatten(0, (2, -1))
    targets = teacher_targets(of_teacher, settings.teacher_temperature, settings.num_sinkhorn)
    loss = dino_loss(logits.unflatten(0, (2, -1)), targets, settings.student_temperature)
    spread = sum(koleo_loss(part) for part in tokens.chunk(2)) / 2
    return loss + settings.koleo * spread, targets


def train_dinov2(
    checkpoint: pathlib.Path, settings: Dinov2ModelSettings | None = None, log: Callable[[str], None] = print
):
    """Trains the model; returns (the teacher's backbone, image processor).

    Goes on from `checkpoint`. Every draw is a function of the step, so a run in two parts equals one in one part.
    """
    settings = settings or Dinov2ModelSettings()
    torch.manual_seed(settings.seed)
    module = SelfDistillation(settings.num_prototypes)
    progress = Progress(checkpoint, module, settings, settings.num_steps)
    pictures = sample_pictures(settings) if not progress.finished else None
    while not progress.finished:
        seen = draw_views(pictures, settings, progress.num_steps)
        loss, targets = training_loss(module, seen, settings)
        loss.backward()
        momentum = momentum_at(progress.num_steps, settings)
        progress.step()
        module.update_teacher(momentum)
        if progress.num_steps % 50 == 0 or progress.finished:
            log(
                f"dinov2 step {progress.num_steps}/{settings.num_steps} loss {loss.item():.3f}, entropy of a "
                f"target {entropy(targets).mean():.2f}, of their mean {entropy(targets.mean((0, 1))):.2f} of "
                f"{math.log(settings.num_prototypes):.2f}, {progress.spent:.0f} s"
            )
        if progress.due:
            progress.save()
    return module.teacher.backbone.eval(), new_image_processor()


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """In nats, over the last axis. All targets alike, or all flat: the two ways in which self-distillation fails."""
    return -torch.xlogy(probabilities, probabilities).sum(-1)
