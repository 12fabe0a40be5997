"""Trains the starter's vision-language model: its vision tower first, supervised, then all on questions.

Resumable: progress is checkpointed in `work_dir`, data depends on seed and step alone, and time spent is part
of the checkpoint, so that a killed training goes on where it was and ends with the same schedule.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import shutil

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from stages.starter import vlm_caption_data as captioning
from stages.starter import vlm_data as data
from stages.starter import vlm_proposal_data as proposing
from stages.starter.progress import Progress, TrainingSettings
from stages.starter.vlm_model import (
    GRID,
    HIDDEN_SIZE,
    build_model,
    encode_images,
    save_model,
    text_hidden_states,
)
from stages.starter.vlm_packing import Document, pack
from stages.starter.vlm_tokenizer import build_processor
from stages.starter.world import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    SHAPES,
    STYLES,
    Scene,
    render,
)

CHANGES = (0.01, 0.04, 0.1)  # of a patch's mean difference, of the range: where its classes meet
PROBE_WEIGHT = 0.3
NUM_MEASURES = 4  # of an object: offset right and down, size, shade
WRITTEN = ("scene", "evolution", "text", "proposal")  # documents whose answers are more than a verdict
OBJECT_CLASSES = (None, *((shape, color) for shape in SHAPES for color in COLORS))


class VLMPretrainSettings(TrainingSettings):
    """Sizes of the training: the defaults take somewhat over an hour on one core."""

    vision_steps: int = 600
    language_steps: int = 2500
    num_images: int = 64  # per step of the vision tower's training
    # per step of the language training:
    num_scenes: int = 16  # images with caption, edit tuples and has-object questions,
    num_pairs: int = 16  # pairs to judge,
    num_qualities: int = 10  # images to judge,
    num_evolutions: int = 8  # pairs whose change is told as a clip,
    num_clips: int = 8  # two frames of a clip, asked for their style,
    num_customizations: int = 12  # pairs asked for an object in a new setting,
    num_texts: int = 12  # texts without a picture: captions to clean, objects to think up settings for,
    num_proposals: int = 0  # and images to propose edits of, and to verify instructions for

    @property
    def proposals(self) -> bool:
        """Which vocabulary it takes, see `vlm_tokenizer.build_processor`."""
        return self.num_proposals > 0


# From the trained model on to one that proposes edits and verifies instructions: half an hour on one core.
PROPOSAL_SETTINGS = VLMPretrainSettings(
    learning_rate=2e-3,
    language_steps=1900,
    num_proposals=12,
    num_scenes=2,
    num_pairs=0,
    num_qualities=0,
    num_evolutions=0,
    num_clips=0,
    num_customizations=0,
    num_texts=0,
)


class _Probed(nn.Module):
    """The model with throw-away probes that teach it to look.

    At the tokens of an edited image, half-way up: how much this patch differs from the source's, and what
    stood in its quadrant of the source. Over a picture's embeddings: the quality scores.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.change = nn.Linear(HIDDEN_SIZE, len(CHANGES) + 1 + len(OBJECT_CLASSES))
        self.quality = nn.Linear(HIDDEN_SIZE, 2 * len(data.SCORES))

    def change_loss(self, halfway: torch.Tensor, changes: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """halfway `[B, 16, 128]`; changes and classes `[B, 16]`."""
        of_change, of_class = self.change(halfway).split([len(CHANGES) + 1, len(OBJECT_CLASSES)], dim=-1)
        loss = F.cross_entropy(of_change.flatten(0, 1), changes.flatten())
        return loss + F.cross_entropy(of_class.flatten(0, 1), classes.flatten())

    def quality_loss(self, embeds: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """embeds `[B, 16, 128]`; scores `[B, 2]`, indices into `data.SCORES`."""
        logits = self.quality(embeds.mean(1)).unflatten(-1, (2, len(data.SCORES)))
        return F.cross_entropy(logits.flatten(0, 1), scores.flatten())


def _probe_targets(documents: list[Document]) -> tuple[torch.Tensor, torch.Tensor]:
    """How much each patch of a pair changed (its class of CHANGES), and what stood in its quadrant."""
    source, edited = (np.stack([d.images[k] for d in documents]).astype(np.float32) / 255 for k in (0, 1))
    difference = np.abs(source - edited).mean(-1).reshape(-1, GRID, 8, GRID, 8).mean((2, 4))
    changes = np.digitize(difference, CHANGES).reshape(-1, GRID * GRID)
    classes = np.array([_object_classes(d.scene) for d in documents]).reshape(-1, 2, 1, 2, 1)
    classes = np.broadcast_to(classes, (len(documents), 2, 2, 2, 2)).reshape(-1, GRID * GRID)
    return torch.from_numpy(changes), torch.from_numpy(classes.copy())


def _object_classes(scene: Scene) -> list[int]:
    classes = [0] * len(PLACES)
    for o in scene.objects:
        classes[o.place] = OBJECT_CLASSES.index((o.shape, o.color))
    return classes


class _VisionHeads(nn.Module):
    """Throw-away heads: each quadrant's object, its offset, size and shade, the background, the style, the light."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        self.objects = nn.Linear(4 * HIDDEN_SIZE, len(OBJECT_CLASSES) + NUM_MEASURES)
        self.whole = nn.Linear(HIDDEN_SIZE, len(BACKGROUNDS) + len(STYLES))
        self.light = nn.Linear(HIDDEN_SIZE, 1)


def _vision_targets(scene: Scene) -> tuple[list[int], list[list[float]], list[int], list[float]]:
    classes, measures = _object_classes(scene), [[0.0] * NUM_MEASURES for _ in PLACES]
    for o in scene.objects:
        measures[o.place] = [*map(float, o.offset), o.size - 6.5, (o.shade - 0.975) * 10]
    whole = [list(BACKGROUNDS).index(scene.background), STYLES.index(scene.style)]
    return classes, measures, whole, [(lit + 1) / 2 for lit in scene.light]


def _vision_loss(model: nn.Module, heads: _VisionHeads, scenes: list[Scene], generator: np.random.Generator, device):
    """Loss of the heads, and the share of images whose objects, background and style are all read right."""
    patches = data.to_patches(np.stack([data.jitter(render(scene), generator) for scene in scenes])).to(device)
    embeds = encode_images(model, patches)
    quadrants = embeds.view(-1, 2, 2, 2, 2, HIDDEN_SIZE).transpose(2, 3).reshape(-1, len(PLACES), 4 * HIDDEN_SIZE)
    of_objects, of_whole = heads.objects(quadrants), heads.whole(embeds.mean(1))
    of_class, of_measures = of_objects.split([len(OBJECT_CLASSES), NUM_MEASURES], dim=-1)
    classes, measures, whole, light = (
        torch.tensor(t, device=device) for t in zip(*map(_vision_targets, scenes), strict=True)
    )
    background, style = of_whole.split([len(BACKGROUNDS), len(STYLES)], dim=-1)
    present = classes > 0
    loss = F.cross_entropy(of_class.flatten(0, 1), classes.flatten())
    loss = loss + F.cross_entropy(background, whole[:, 0]) + F.cross_entropy(style, whole[:, 1])
    loss = loss + F.mse_loss(of_measures[present], measures[present]) * 0.3
    loss = loss + F.binary_cross_entropy_with_logits(heads.light(embeds)[..., 0], light)
    right = (of_class.argmax(-1) == classes).all(1)
    right &= (background.argmax(-1) == whole[:, 0]) & (style.argmax(-1) == whole[:, 1])
    return loss, right.float().mean()


def _pretrain_vision(model: nn.Module, work_dir: pathlib.Path, settings: VLMPretrainSettings, device: str) -> None:
    heads = _VisionHeads(model.model.visual).to(device)
    progress = Progress(work_dir / "vision.safetensors", heads, settings, settings.vision_steps)
    recent: collections.deque[float] = collections.deque(maxlen=50)
    while not progress.finished:
        generator = np.random.default_rng([settings.seed, 0, progress.num_steps])
        scenes = [data.draw_scene(generator) for _ in range(settings.num_images)]
        loss, right = _vision_loss(model, heads, scenes, generator, device)
        loss.backward()
        progress.step()
        recent.append(float(right))
        if progress.num_steps % 100 == 0:
            _log(work_dir, "vision", progress, loss=float(loss.detach()), right=float(np.mean(recent)))
        if progress.due:
            progress.save()
    progress.put(progress.average)


def draw_documents(settings: VLMPretrainSettings, generator: np.random.Generator) -> list[list[Document]]:
    """The documents of one step, by kind."""
    scenes, pairs, qualities, evolutions, clips, customizations, texts, proposals = ([] for _ in range(8))
    for _ in range(settings.num_scenes):
        scene = data.draw_scene(generator)
        image = data.jitter(render(scene), generator)
        asked = (*data.one_image_questions(scene, generator), captioning.object_question(scene))
        scenes.append(Document("scene", (image,), asked))
    for _ in range(settings.num_pairs):
        edit = data.draw_edit(data.draw_scene(generator), generator)
        image = data.draw_result(edit, generator)
        asked = tuple(data.pair_questions(edit, image, generator))
        pairs.append(Document("pair", (render(edit.source), image), asked, scene=edit.source))
    for _ in range(settings.num_qualities):
        image, naturalness, artifacts = data.draw_quality(data.draw_scene(generator), generator)
        asked = (data.quality_question(naturalness, artifacts),)
        qualities.append(Document("quality", (image,), asked, scores=(naturalness, artifacts)))
    for _ in range(settings.num_evolutions):
        edit = data.draw_edit(data.draw_scene(generator), generator)
        images = tuple(data.jitter(render(scene), generator) for scene in (edit.source, edit.target))
        evolutions.append(Document("evolution", images, (captioning.evolution_question(edit),)))
    for _ in range(settings.num_clips):
        frames, in_style = captioning.draw_frames(generator)
        clips.append(Document("clip", frames, tuple(captioning.style_questions(in_style))))
    for _ in range(settings.num_customizations):
        scene, setting = captioning.draw_customization(generator)
        image = captioning.draw_customized(scene, setting, generator)
        asked = captioning.customization_questions(scene, setting, image)
        near = captioning.draw_setting_near(setting, generator)
        asked += captioning.customization_questions(scene, near, image)[:1]
        customizations.append(Document("customization", (data.jitter(render(scene), generator), image), tuple(asked)))
    for _ in range(settings.num_texts):
        asked = [captioning.clean_question(*captioning.draw_captions(generator)) for _ in range(2)]
        names = [data.draw_scene(generator).objects[0].name for _ in range(2)]
        asked += [captioning.backgrounds_question(name, generator) for name in names]
        texts.append(Document("text", (), tuple(asked)))
    for _ in range(settings.num_proposals):
        scene = data.draw_scene(generator)
        asked = proposing.proposal_questions(scene, generator)
        proposals.append(Document("proposal", (data.jitter(render(scene), generator),), tuple(asked)))
    return [scenes, pairs, qualities, evolutions, clips, customizations, texts, proposals]


def _language_step(probed: _Probed, settings: VLMPretrainSettings, step: int, device: str, tally: dict) -> float:
    generator = np.random.default_rng([settings.seed, 1, step])
    kinds = [documents for documents in draw_documents(settings, generator) if documents]
    batches = [pack(documents, settings.proposals).to(device) for documents in kinds]
    total_weight = sum(float(batch.weights.sum()) for batch in batches)
    model, total = probed.model, 0.0
    for documents, batch in zip(kinds, batches, strict=True):
        num_rows, num_image_tokens = batch.input_ids.shape[0], batch.image_places.shape[0]
        embeds = encode_images(model, batch.patches).reshape(num_rows, num_image_tokens, HIDDEN_SIZE)
        hidden, halfway = text_hidden_states(
            model, batch.input_ids, embeds, batch.image_places, batch.positions, batch.segments
        )
        logits = model.lm_head(hidden[batch.answers[:, 0], batch.answers[:, 1]])
        losses = F.cross_entropy(logits, batch.targets, reduction="none") * batch.weights
        loss = losses.sum() / total_weight
        if documents[0].kind == "pair":
            edited = halfway[:, batch.image_places[num_image_tokens // 2 :]]
            targets = (target.to(device) for target in _probe_targets(documents))
            loss = loss + PROBE_WEIGHT * probed.change_loss(edited, *targets)
        elif documents[0].kind == "quality":
            scores = [[data.SCORES.index(score) for score in d.scores] for d in documents]
            loss = loss + PROBE_WEIGHT * probed.quality_loss(embeds, torch.tensor(scores, device=device))
        loss.backward()
        total += float(loss.detach())
        right = (logits.argmax(-1) == batch.targets).tolist()
        for kind, is_right in zip(batch.kinds, right, strict=True):
            tally[kind].append(is_right)
    return total


def _log(work_dir: pathlib.Path, phase: str, progress: Progress, **figures: float) -> None:
    line = {"phase": phase, "step": progress.num_steps, "seconds": round(progress.spent, 1)}
    line |= {name: round(value, 4) for name, value in figures.items()}
    with (work_dir / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def _export(model: nn.Module, out_dir: pathlib.Path, proposals: bool) -> None:
    """Writes the model's folder beside `out_dir` and swaps it in; a model card that is there stays."""
    temporary, old = (out_dir.with_name(f".{out_dir.name}.{suffix}") for suffix in ("new", "old"))
    for folder in (temporary, old):
        shutil.rmtree(folder, ignore_errors=True)
    save_model(model, temporary, torch.float16, proposals)
    for path in temporary.iterdir():
        path.chmod(0o644)
    if out_dir.exists():
        if (out_dir / "README.md").exists():
            shutil.copy(out_dir / "README.md", temporary / "README.md")
        os.replace(out_dir, old)
    os.replace(temporary, out_dir)
    shutil.rmtree(old, ignore_errors=True)


def _put_trained(model: nn.Module, folder: pathlib.Path) -> None:
    """Puts the weights of a trained model into one with its vocabulary, or one that has more pieces behind it."""
    trained = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    num_known = len(build_processor().tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                known = trained[name][:num_known]
                parameter.mul_(known.std() / parameter.std())  # new pieces begin at random, as long as the known ones
                parameter[:num_known] = known
            else:
                parameter.copy_(trained[name])


def pretrain_vlm(
    out_dir: pathlib.Path,
    work_dir: pathlib.Path,
    device: str = "cpu",
    settings: VLMPretrainSettings | None = None,
    start: pathlib.Path | None = None,
) -> pathlib.Path:
    """Trains the model and writes its folder to `out_dir`, at each checkpoint and at the end.

    Goes on from what `work_dir` holds; a finished training is only exported again. With `start`, the folder of a
    trained model, it begins there and not with the vision tower.
    """
    settings = settings or VLMPretrainSettings()
    out_dir, work_dir = pathlib.Path(out_dir), pathlib.Path(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    model = build_model(settings.seed, settings.proposals).to(device).train()
    language = work_dir / "language.safetensors"
    if start is not None:
        _put_trained(model, start)
    elif not language.exists():
        _pretrain_vision(model, work_dir, settings, device)
    probed = _Probed(model).to(device)
    progress = Progress(language, probed, settings, settings.language_steps)
    tally: dict[tuple[str, int, bool], collections.deque] = collections.defaultdict(
        lambda: collections.deque(maxlen=800)
    )
    while not progress.finished:
        loss = _language_step(probed, settings, progress.num_steps, device, tally)
        progress.step()
        if progress.num_steps % 50 == 0:
            figures = {
                f"{kind}{question}{'!' if decisive else ''}": float(np.mean(tally[kind, question, decisive]))
                for kind, question, decisive in sorted(tally)
                if decisive or kind in WRITTEN
            }
            _log(work_dir, "language", progress, loss=loss, **figures)
        if progress.due:
            progress.save()
            present = progress.use_average()
            _export(model, out_dir, settings.proposals)
            progress.put(present)
    progress.use_average()
    _export(model, out_dir, settings.proposals)
    return out_dir
