"""Optical flow by torchvision's RAFT (Teed and Deng 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torchvision.models import optical_flow

from cluster.errors import UserError
from stages.evaluate.motion.weights import read_weights

Architecture = Literal["raft_large", "raft_small"]
MULTIPLE = 8  # the model works on sides that are multiples of it,
MIN_SIDE = 128  # and at least this long
NUM_UPDATES = 20  # VBench's


class Raft:
    """The model, loaded once."""

    def __init__(self, weights: str, architecture: Architecture, device: str):
        """Raises UserError if the weights can't be read or are another model's."""
        setting = "evaluate_video.motion.flow.weights"
        self.device = device
        self.model = getattr(optical_flow, architecture)(weights=None)
        try:
            self.model.load_state_dict(read_weights(weights, setting))
        except RuntimeError as error:
            raise UserError(
                f"evaluate_video: {weights} has no weights of torchvision's {architecture} "
                f"({' '.join(str(error).split())[:200]}). Convert those of "
                f"torchvision.models.optical_flow.{architecture}, and name the file with --set {setting}=..."
            ) from None
        self.model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def flows(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """The flow from each frame (uint8 `[H, W, 3]`) to the next, in pixels, float32 `[T - 1, H, W, 2]`.

        Frames are continued by their edges to sides that the model takes, as in RAFT's own code; what lies outside of
        the picture isn't in the result.
        """
        height, width = frames[0].shape[:2]
        left, right = _padding(width)
        top, bottom = _padding(height)
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        pixels = torch.nn.functional.pad(pixels / 127.5 - 1, (left, right, top, bottom), mode="replicate")
        flows = [np.zeros((0, height, width, 2), dtype=np.float32)]
        for index in range(len(frames) - 1):
            pair = (pixels[i : i + 1].to(self.device) for i in (index, index + 1))
            flow = self.model(*pair, num_flow_updates=NUM_UPDATES)[-1].cpu().numpy().transpose(0, 2, 3, 1)
            flows.append(flow[:, top : top + height, left : left + width])
        return np.concatenate(flows)


def _padding(length: int) -> tuple[int, int]:
    """Pixels before and after, the same to one."""
    missing = max(MIN_SIDE, -(-length // MULTIPLE) * MULTIPLE) - length
    return missing // 2, missing - missing // 2
