"""The video metrics of an edited clip; models are loaded at the first and kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.evaluate.motion.config import MotionConfig
from stages.evaluate.motion.dynamics import dynamic_degree, sampled_frames
from stages.evaluate.motion.fidelity import motion_fidelity
from stages.evaluate.motion.tracks import follow, point_grid, read_tracks
from stages.train.backbones.models import resolved_device

if TYPE_CHECKING:
    from stages.evaluate.motion.aesthetic import AestheticModel
    from stages.evaluate.motion.raft import Raft


@dataclasses.dataclass(frozen=True)
class ClipPair:
    """An edited clip, which lasts `seconds`, and its source: uint8 frames `[H, W, 3]`, as many of both."""

    item_id: str
    method: str
    source: Sequence[np.ndarray]
    edited: Sequence[np.ndarray]
    seconds: float


@dataclasses.dataclass
class MotionMeasure:
    """What `config` asks for, of one clip after another."""

    config: MotionConfig
    _raft: Raft | None = None
    _aesthetic: AestheticModel | None = None

    def __call__(self, pair: ClipPair) -> tuple[dict[str, float | None], list[str]]:
        """The scores by column, and why one is None.

        Raises:
            UserError: a model can't be loaded.
        """
        measures: dict[str, Callable[[ClipPair], dict[str, Any]]] = {
            "motion_fidelity": self._motion_fidelity,
            "dynamic_degree": self._dynamic_degree,
            "aesthetic": self._aesthetic_score,
        }
        row: dict[str, float | None] = {}
        reasons = []
        for metric in self.config.metrics:
            try:
                found = measures[metric](pair)
            except ValueError as error:
                reasons.append(f"{metric}: {error}")
                continue
            reasons += [value for value in found.values() if isinstance(value, str)]
            row |= {name: None if isinstance(value, str) else value for name, value in found.items()}
        return row, reasons

    def _motion_fidelity(self, pair: ClipPair) -> dict[str, Any]:
        source, edited = self._tracks(pair, edited=False), self._tracks(pair, edited=True)
        found: dict[str, Any] = {"motion_fidelity": motion_fidelity(source, edited, "corrected")}
        official = "motion_fidelity_official"
        try:
            value = motion_fidelity(source, edited, "official")
        except ValueError as error:
            return found | {official: f"{official}: {error}"}
        still = f"{official}: a point stands still between two frames, where the official code divides 0 by 0"
        return found | {official: still if math.isnan(value) else value}

    def _tracks(self, pair: ClipPair, *, edited: bool) -> np.ndarray:
        if self.config.tracks is not None:
            return read_tracks(self.config.tracks, pair.item_id, pair.method if edited else None)
        frames = pair.edited if edited else pair.source
        return follow(self._flow().flows(frames), point_grid(*frames[0].shape[:2]))

    def _dynamic_degree(self, pair: ClipPair) -> dict[str, Any]:
        if self.config.fps is None and not pair.seconds:
            raise ValueError("the clip's file doesn't say how long it lasts; set evaluate_video.motion.fps")
        fps = self.config.fps or len(pair.edited) / pair.seconds
        indices = sampled_frames(len(pair.edited), fps)
        value = dynamic_degree(self._flow().flows([pair.edited[index] for index in indices]))
        if value is None:
            raise ValueError(f"of {len(pair.edited)} frames one is looked at, which has no motion")
        return {"dynamic_degree": float(value)}

    def _aesthetic_score(self, pair: ClipPair) -> dict[str, Any]:
        if self._aesthetic is None:
            from stages.evaluate.motion.aesthetic import AestheticModel

            config = self.config.aesthetic
            self._aesthetic = AestheticModel(config.clip, config.head, resolved_device(self.config.device))
        return {"aesthetic": self._aesthetic.score(pair.edited)}

    def _flow(self) -> Raft:
        if self._raft is None:
            from stages.evaluate.motion.raft import Raft

            flow = self.config.flow
            self._raft = Raft(flow.weights, flow.architecture, resolved_device(self.config.device))
        return self._raft
