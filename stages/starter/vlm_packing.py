"""Packs questions behind the prefix that they share: an image is read once for all questions about it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch

from stages.starter.vlm_data import to_patches
from stages.starter.vlm_questions import VERIFY_REASONS
from stages.starter.vlm_tokenizer import (
    IMAGE_SIZE,
    IMAGE_TOKEN,
    NUM_IMAGE_TOKENS,
    PATCH_SIZE,
    TURN_END,
    build_processor,
)
from stages.starter.world import Scene

GRID = IMAGE_SIZE // PATCH_SIZE
PATCH_LENGTH = 3 * 2 * PATCH_SIZE**2  # numbers that the processor makes of a patch, with its two like frames
DECISIVE_WEIGHT = 4.0  # of the tokens that carry a verdict, against 1 for all other answer tokens


@dataclasses.dataclass(frozen=True)
class Document:
    """Two uint8 images at most, questions about them (question, answer), and what probes are to find."""

    kind: str
    images: tuple[np.ndarray, ...]
    questions: tuple[tuple[str, str], ...]
    scene: Scene | None = None  # of a pair's source
    scores: tuple[int, int] | None = None  # of a picture's quality


@dataclasses.dataclass
class Batch:
    """Packed rows: see `vlm_model.text_hidden_states`; `answers` `[K, 2]` are (row, place) of the
    tokens that predict `targets`; `kinds` are each one's document kind, question, whether decisive."""

    patches: torch.Tensor
    input_ids: torch.Tensor
    image_places: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    answers: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    kinds: list[tuple[str, int, bool]]

    def to(self, device: str) -> Batch:
        moved = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Batch(**{n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in moved.items()})


@functools.lru_cache(maxsize=50_000)
def _encode(text: str, proposals: bool) -> tuple[int, ...]:
    return tuple(build_processor(proposals).tokenizer.encode(text, add_special_tokens=False))


@functools.cache
def _verdict_tokens(proposals: bool) -> frozenset[int]:
    verdicts = ("Yes", "No", "0", "3", "7", "10", *(VERIFY_REASONS.values() if proposals else ()))
    return frozenset(_encode(text, proposals)[0] for text in verdicts)


@functools.cache
def _image_token() -> int:
    return build_processor().tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)  # the same in both vocabularies


@functools.cache
def prefix(num_images: int, proposals: bool = False) -> tuple[np.ndarray, np.ndarray, int]:
    """Token ids and positions `[3, T]` of a turn that starts with images, if any, and where the text goes on."""
    ids, positions, place = [], [], 0
    pieces = ["<|im_start|>user\n", *["<|vision_start|>", None, "<|vision_end|>"] * num_images]
    for piece in pieces:
        if piece is None:
            ids += [_image_token()] * NUM_IMAGE_TOKENS
            grid = np.indices((1, GRID, GRID)).reshape(3, -1)
            positions.append(grid + place)
            place += GRID
        else:
            tokens = _encode(piece, proposals)
            ids += tokens
            positions.append(np.tile(np.arange(place, place + len(tokens)), (3, 1)))
            place += len(tokens)
    return np.array(ids), np.concatenate(positions, axis=1), place


@functools.lru_cache(maxsize=50_000)
def turn(question: str, answer: str, proposals: bool = False) -> tuple[tuple[int, ...], int]:
    """Token ids of question and answer behind the images, and how many are the answer's (with its end)."""
    asked = _encode(f"{question}{TURN_END}\n<|im_start|>assistant\n", proposals)
    answered = _encode(f"{answer}{TURN_END}", proposals)
    return asked + answered, len(answered)


def pack(documents: Sequence[Document], proposals: bool = False) -> Batch:
    """One row per document, padded to the longest; the documents have the same number of images each.

    `proposals` chooses the vocabulary, see `build_processor`.
    """
    start_ids, start_positions, text_place = prefix(len(documents[0].images), proposals)
    start = len(start_ids)
    turns = [[turn(question, answer, proposals) for question, answer in document.questions] for document in documents]
    length = start + max(sum(len(tokens) for tokens, _ in asked) for asked in turns)
    shape = (len(documents), length)
    ids, segment_of = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    positions = np.zeros((3, *shape), dtype=np.int64)
    ids[:, :start], segment_of[:, :start], positions[:, :, :start] = start_ids, 0, start_positions[:, None]
    answers, targets, weights, kinds = [], [], [], []
    for row, (document, asked) in enumerate(zip(documents, turns, strict=True)):
        place = start
        for segment, (tokens, num_answered) in enumerate(asked, start=1):
            end = place + len(tokens)
            ids[row, place:end], segment_of[row, place:end] = tokens, segment
            positions[:, row, place:end] = np.arange(text_place, text_place + len(tokens))
            for offset in range(num_answered, 0, -1):
                target = tokens[-offset]
                answers.append((row, end - offset - 1))
                targets.append(target)
                decisive = (document.kind != "scene" or num_answered == 2) and target in _verdict_tokens(proposals)
                weights.append(DECISIVE_WEIGHT if decisive else 1.0)
                kinds.append((document.kind, segment, decisive))
            place = end
    images = [image for document in documents for image in document.images]
    return Batch(
        patches=to_patches(np.stack(images)) if images else torch.empty(0, NUM_IMAGE_TOKENS, PATCH_LENGTH),
        image_places=torch.from_numpy(np.flatnonzero(start_ids == _image_token())),
        input_ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(segment_of),
        answers=torch.tensor(answers),
        targets=torch.tensor(targets),
        weights=torch.tensor(weights),
        kinds=kinds,
    )
