"""The starter's CLIP and T5: the real classes, one token a word of the scene world, any other text by letters."""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping, Sequence

import numpy as np

from stages.starter import world

MAX_SEQUENCE_LENGTH = 16  # the longest text has 13 words and an end token
HIDDEN_SIZE = 64


def world_words() -> list[str]:
    """Every word that a caption or an instruction can hold, sorted."""
    texts = " ".join(
        ["make the background it into turn a scene day night replace with remove add on and at"]
        + [*world.BACKGROUNDS, *world.COLORS, *world.SHAPES, *world.PLACES, *world.STYLES]
    )
    return sorted(set(texts.split()))


def new_t5_tokenizer(more_words: Sequence[str] = (), max_length: int = MAX_SEQUENCE_LENGTH):
    """A T5Tokenizer (unigram): a token a word of the world and for each of `more_words`, letters for the rest."""
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    vocab += [(f"▁{word}", -3.0) for word in dict.fromkeys([*world_words(), *more_words])]
    vocab += [(letter, -10.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    return T5Tokenizer(vocab=vocab, extra_ids=8, model_max_length=max_length)


def new_clip_tokenizer(more_words: Sequence[str] = (), max_length: int = MAX_SEQUENCE_LENGTH):
    """A CLIPTokenizer (byte-level BPE): a token a word of the world and for each of `more_words`, letters for the rest.

    Its merges are made here, for a trained one's ids differ from process to process, where a training may go on.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    merges: dict[tuple[str, str], int] = {}
    for word in dict.fromkeys([*world_words(), *more_words]):
        pieces = _merged([*word[:-1], f"{word[-1]}</w>"], merges)
        while len(pieces) > 1:  # what comes first is merged first, so later words leave earlier ones whole
            merges[pieces[0], pieces[1]] = len(merges)
            pieces = _merged(pieces, merges)
    letters = sorted(ByteLevel.alphabet())
    vocab = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocab += ["".join(pair) for pair in merges]
    made = CLIPTokenizer(vocab={token: number for number, token in enumerate(dict.fromkeys(vocab))}, merges=[*merges])
    made.model_max_length = max_length
    return made


def _merged(pieces: Sequence[str], merges: Mapping[tuple[str, str], int]) -> list[str]:
    """The pieces of a word after all merges, the first known pair first, as BPE has it."""
    pieces = list(pieces)
    while known := [pair for pair in itertools.pairwise(pieces) if pair in merges]:
        first = min(known, key=merges.__getitem__)
        at = list(itertools.pairwise(pieces)).index(first)
        pieces[at : at + 2] = ["".join(first)]
    return pieces


def new_text_encoders(t5_tokenizer, clip_tokenizer):
    """Untrained (T5EncoderModel, CLIPTextModel) of width 64."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=HIDDEN_SIZE,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=HIDDEN_SIZE,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=MAX_SEQUENCE_LENGTH,
            projection_dim=HIDDEN_SIZE,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    return t5, clip


def sample_texts(num: int, generator: np.random.Generator) -> list[str]:
    """Captions and instructions of random edits, half and half."""
    texts: list[str] = []
    while len(texts) < num:
        edit = world.sample_edit(world.sample_scene(generator), generator)
        texts += [edit.src_caption, edit.instruction]
    return texts[:num]


def tokenize(tokenizer, texts: Sequence[str]):
    """Token ids `[B, 16]`, padded as FluxPipeline pads."""
    return tokenizer(
        list(texts), padding="max_length", max_length=MAX_SEQUENCE_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
