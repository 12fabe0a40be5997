"""What the models say about edits that are decoded already; no files, no Ray."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from stages.evaluate.perception.encoders import ClipEncoder, DinoEncoder
from stages.evaluate.perception.scores import NO_DIRECTION, clip_directional, clip_score, cosine
from stages.evaluate.perception.segmenter import Segmenter, without_background
from stages.evaluate.perception.settings import PerceptionSettings
from stages.train.backbones.models import resolved_device

Score = float | str
"""A metric's value, or why it is undefined."""


@dataclasses.dataclass(frozen=True)
class EditToSee:
    """An edit: its frames and its source's (one each for a picture, else as many), and what the item says."""

    source: Sequence[Image.Image]
    edited: Sequence[Image.Image]
    src_caption: str = ""
    tgt_caption: str = ""
    noun: str = ""

    def __post_init__(self) -> None:
        if not len(self.source) == len(self.edited) > 0:
            raise ValueError(f"{len(self.edited)} frames, where the source has {len(self.source)}")


class Perception:
    """All models of the settings, loaded once. Raises UserError if one can't be."""

    def __init__(self, settings: PerceptionSettings) -> None:
        device, batch = resolved_device(settings.device), settings.batch_size
        self.settings = settings
        self.clip = ClipEncoder(settings.clip, device, batch) if settings.clip else None
        self.dino = DinoEncoder(settings.dino, device, batch) if settings.dino else None
        self.dinov2 = DinoEncoder(settings.dinov2, device, batch, "perception.dinov2") if settings.dinov2 else None
        self.segmenter = Segmenter(settings.segmenter, device, batch) if settings.segmenter else None

    def measure(self, edits: Sequence[EditToSee]) -> list[dict[str, Score]]:
        """Each edit's metrics by name. A clip's is the mean over those of its frames where it is defined."""
        measured: list[dict[str, Score]] = [{} for _ in edits]

        def put(name: str, chosen: Sequence[int], by_frame: Iterable[Score]) -> None:
            values = iter(by_frame)
            for i in chosen:
                measured[i][name] = _mean(list(itertools.islice(values, len(edits[i].source))))

        if self.clip is not None:
            for name in self.settings.clip.metrics:
                measure = {"clip_directional": self._clip_directional, "clip_score": self._clip_scores}[name]
                captions = ("src_caption", "tgt_caption") if name == "clip_directional" else ("tgt_caption",)
                chosen = _with(edits, captions, name, measured)
                put(name, chosen, measure([edits[i] for i in chosen]))
        everything = range(len(edits))
        for name, encoder in (("dino", self.dino), ("dinov2", self.dinov2)):
            if encoder is not None:
                put(name, everything, _cosines(encoder, _frames(edits, "source"), _frames(edits, "edited")))
        if self.segmenter is not None:
            chosen = _with(edits, ("noun",), "dinov2_masked", measured)
            put("dinov2_masked", chosen, self._masked([edits[i] for i in chosen]))
        return measured

    def _clip_directional(self, edits: Sequence[EditToSee]) -> list[Score]:
        sources, edited = _frames(edits, "source"), _frames(edits, "edited")
        if not sources:
            return []
        pictures = zip(self.clip.encode_squares(sources), self.clip.encode_squares(edited), strict=True)
        texts = self.clip.encode_texts([text for edit in edits for text in (edit.src_caption, edit.tgt_caption)])
        owners = [i for i, edit in enumerate(edits) for _ in edit.source]
        scores: list[Score] = []
        for i, before, after, (first, second) in zip(owners, sources, edited, pictures, strict=True):
            if edits[i].src_caption == edits[i].tgt_caption:
                scores.append("both captions are the same")
            elif _equal(before, after):  # a batch's rounding would give a direction
                scores.append(NO_DIRECTION)
            else:
                value = clip_directional(first, second, texts[2 * i], texts[2 * i + 1])
                scores.append("an embedding doesn't change" if value is None else value)
        return scores

    def _clip_scores(self, edits: Sequence[EditToSee]) -> list[Score]:
        frames = _frames(edits, "edited")
        if not frames:
            return []
        texts = self.clip.encode_texts([edit.tgt_caption for edit in edits])
        owners = [i for i, edit in enumerate(edits) for _ in edit.edited]
        return [clip_score(image, texts[i]) for image, i in zip(self.clip.encode_crops(frames), owners, strict=True)]

    def _masked(self, edits: Sequence[EditToSee]) -> list[Score]:
        nouns = [edit.noun for edit in edits for _ in edit.source]
        sides = {side: _frames(edits, side) for side in ("source", "edited")}
        masks = {side: self.segmenter.masks(frames, nouns) for side, frames in sides.items()}
        scores: list[Score] = []
        for noun, *found in zip(nouns, masks["source"], masks["edited"], strict=True):
            lost = [side for side, mask in zip(sides, found, strict=True) if mask is None]
            scores.append(f"no {noun!r} is found in the {' and the '.join(lost)} picture" if lost else 0.0)
        seen = [i for i, score in enumerate(scores) if not isinstance(score, str)]
        alone = [[without_background(sides[side][i], masks[side][i]) for i in seen] for side in sides]
        for i, value in zip(seen, _cosines(self.dinov2, *alone), strict=True):
            scores[i] = value
        return scores


def _cosines(encoder: DinoEncoder, first: Sequence[Image.Image], second: Sequence[Image.Image]) -> list[Score]:
    if not first:
        return []
    return [cosine(a, b) for a, b in zip(encoder.encode(first), encoder.encode(second), strict=True)]


def _frames(edits: Sequence[EditToSee], side: str) -> list[Image.Image]:
    return [frame for edit in edits for frame in getattr(edit, side)]


def _with(edits: Sequence[EditToSee], texts: Sequence[str], name: str, measured: list[dict[str, Score]]) -> list[int]:
    """The edits that have all of these texts; of the others `measured` gets the reason."""
    chosen = []
    for i, edit in enumerate(edits):
        if lacking := [text for text in texts if not getattr(edit, text)]:
            measured[i][name] = f"the item has no {lacking[0]}"
        else:
            chosen.append(i)
    return chosen


def _equal(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and first.tobytes() == second.tobytes()


def _mean(scores: Sequence[Score]) -> Score:
    """The mean of the defined ones, or the first reason."""
    values = [score for score in scores if not isinstance(score, str)]
    return float(np.mean(values)) if values else next(score for score in scores if isinstance(score, str))
