"""NP-Edit's judge: decodes an edit, asks the vision-language model about it, and hands the gradient back."""

from __future__ import annotations

import dataclasses
import math

import torch

from stages.train.backbones.backbone import BackboneEncoder, loading
from stages.train.backbones.models import resolved_model
from stages.train.roles import Batch
from stages.train.settings import JudgedConfig
from stages.train.vlm.questions import Question, QuestionTemplates, edit_questions
from stages.train.vlm.verifier import Verifier, load_verifier


@dataclasses.dataclass(frozen=True)
class EditJudge:
    """Asks of every edit whether it was done and, if `identity_question`, whether all the rest is the same."""

    encoder: BackboneEncoder
    verifier: Verifier
    templates: QuestionTemplates
    size: tuple[int, int]  # height and width of the pictures
    identity_question: bool = True
    vocabulary: bool = False

    @classmethod
    def load(cls, config: JudgedConfig, grid: tuple[int, ...], device: str) -> EditJudge:
        """Loads autoencoder and vision-language model. Raises UserError for a folder that holds none."""
        dtype, settings = getattr(torch, config.dtype), getattr(config, config.method)
        with loading(config.model, f"{config.stage}.model") as backbone:
            encoder = backbone.Encoder(resolved_model(config.model), device, dtype)
        verifier = load_verifier(resolved_model(config.vlm), device, getattr(torch, config.vlm_dtype))
        rows, columns = grid
        size = rows * encoder.token_size, columns * encoder.token_size
        vocabulary = getattr(settings, "vocabulary", False)
        return cls(encoder, verifier, config.questions, size, settings.identity_question, vocabulary)

    def __call__(self, edited: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's loss summed over its questions (eq. 4) and its share of right answers, both `[B]`.

        `edited`: tokens `[B, N, C]`. Raises UserError for a removal or a customization whose row
        names no object.
        """
        labels = batch.labels
        asked = [
            edit_questions(*row, self.templates)[: 1 + self.identity_question]
            for row in zip(labels["edit_type"], labels["instruction"], labels["object"], strict=True)
        ]
        pictures = self.encoder.decode(edited, *self.size)
        with torch.no_grad():
            sources = self.encoder.decode(batch.latents["source"], *self.size)
        losses = torch.zeros(len(asked), device=edited.device)
        num_right = torch.zeros(len(asked), device=edited.device)
        for images in ("pair", "edited"):  # as many images in every row of one forward
            rows, questions = _questions_about(images, asked)
            if rows:
                shown = [pictures[rows]] if images == "edited" else [sources[rows], pictures[rows]]
                loss, right = self._asked(shown, questions)
                losses = losses.index_add(0, torch.tensor(rows, device=edited.device), loss)
                num_right.index_add_(0, torch.tensor(rows, device=edited.device), right)
        return losses, num_right / torch.tensor([len(questions) for questions in asked], device=edited.device)

    def _asked(self, images: list[torch.Tensor], questions: list[Question]) -> tuple[torch.Tensor, torch.Tensor]:
        texts, right = [q.text for q in questions], [q.right for q in questions]
        loss = self.verifier.loss(images, texts, right, self.vocabulary)
        # the right answer has more than half of the probability where its loss is below log 2
        return loss, (loss.detach() < math.log(2)).float()


def _questions_about(images: str, asked: list[tuple[Question, ...]]) -> tuple[list[int], list[Question]]:
    """The questions about these images, and the row of each."""
    found = [(row, q) for row, questions in enumerate(asked) for q in questions if q.images == images]
    return [row for row, _ in found], [question for _, question in found]
