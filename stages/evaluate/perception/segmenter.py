"""Where a named object is in a picture, and the picture without the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor, Sam2Model, Sam2Processor

from stages.evaluate.perception.encoders import grouped, in_batches, load_frozen, loading
from stages.evaluate.perception.settings import SegmenterSettings


class Segmenter:
    """Grounding DINO's best box for the noun, and SAM 2's mask in it. Raises UserError if one can't be loaded."""

    def __init__(self, settings: SegmenterSettings, device: str, batch_size: int) -> None:
        with loading("perception.segmenter.detector", settings.detector, "Grounding DINO") as model:
            self.detector = load_frozen(GroundingDinoForObjectDetection, model, device)
            self.detector_processor = GroundingDinoProcessor.from_pretrained(model, trust_remote_code=False)
        with loading("perception.segmenter.segmenter", settings.segmenter, "SAM 2") as model:
            self.network = load_frozen(Sam2Model, model, device)
            self.processor = Sam2Processor.from_pretrained(model, trust_remote_code=False)
        self.settings, self.device, self.batch_size = settings, device, batch_size

    def masks(self, images: Sequence[Image.Image], nouns: Sequence[str]) -> list[np.ndarray | None]:
        """Where each picture has its noun, bool `[H, W]`; None where no box or no pixel is found.

        Pictures of one size and one noun are seen together: padding, which could move a box, is never needed.
        """
        found: list[np.ndarray | None] = [None] * len(images)
        for group in grouped([(noun, image.size) for noun, image in zip(nouns, images, strict=True)]):
            for batch in in_batches(group, self.batch_size):
                boxes = self.boxes([images[i] for i in batch], nouns[batch[0]])
                seen = [(i, box) for i, box in zip(batch, boxes, strict=True) if box is not None]
                if seen:
                    masks = self._masks([images[i] for i, _ in seen], [box for _, box in seen])
                    for (i, _), mask in zip(seen, masks, strict=True):
                        found[i] = mask if mask.any() else None
        return found

    @torch.no_grad()
    def boxes(self, images: Sequence[Image.Image], noun: str) -> list[list[float] | None]:
        """The best box (left, top, right, bottom, in pixels) of each picture, all of one size."""
        text = noun.strip().lower().rstrip(".") + "."  # the form that the model was trained with
        inputs = self.detector_processor(images=list(images), text=[text] * len(images), return_tensors="pt")
        inputs = inputs.to(self.device)
        results = self.detector_processor.post_process_grounded_object_detection(
            self.detector(**inputs),
            inputs["input_ids"],
            threshold=self.settings.box_threshold,
            target_sizes=[(image.height, image.width) for image in images],
        )
        return [
            result["boxes"][int(result["scores"].argmax())].tolist() if len(result["scores"]) else None
            for result in results
        ]

    @torch.no_grad()
    def _masks(self, images: Sequence[Image.Image], boxes: Sequence[list[float]]) -> list[np.ndarray]:
        inputs = self.processor(images=list(images), input_boxes=[[box] for box in boxes], return_tensors="pt")
        sizes = inputs.pop("original_sizes")
        outputs = self.network(**inputs.to(self.device), multimask_output=False)
        masks = self.processor.post_process_masks(outputs.pred_masks.cpu(), sizes)
        return [mask[0, 0].numpy().astype(bool) for mask in masks]


def without_background(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture, black where the mask `[H, W]` is false; neither moved nor cut."""
    return Image.fromarray(np.where(mask[..., None], np.asarray(image), np.uint8(0)))
