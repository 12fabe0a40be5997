"""The shipped FLUX: it draws what captions say, and its codec keeps what the oracle reads."""

from pathlib import Path

import pytest
import torch

from stages.starter.autoencoder import measure_autoencoder
from stages.starter.generator import measure_generator
from stages.starter.text_encoders import MAX_SEQUENCE_LENGTH, tokenize, world_words

FLUX = Path(__file__).parents[3] / "stages" / "starter" / "models" / "flux"


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import FluxPipeline

    torch.set_num_threads(1)
    return FluxPipeline.from_pretrained(FLUX, torch_dtype=torch.float32, use_safetensors=True)


def test_the_codec_keeps_scenes(pipeline):
    figures = measure_autoencoder(pipeline.vae, num_scenes=200)
    assert figures["psnr"] > 30 and figures["oracle_right"] >= 0.99


def test_captions_are_drawn_as_they_say(pipeline):
    assert measure_generator(pipeline, num_scenes=50)["all_said_right"] >= 0.95


def test_every_word_of_the_world_is_one_token(pipeline):
    for word in world_words():
        assert len(pipeline.tokenizer.tokenize(word)) == len(pipeline.tokenizer_2.tokenize(word)) == 1
    assert tokenize(pipeline.tokenizer_2, ["red circle top left"]).shape == (1, MAX_SEQUENCE_LENGTH)


def test_other_text_does_no_harm(pipeline):
    ids = tokenize(pipeline.tokenizer_2, ["a zebra, 12 % & <b>ünïcode</b>"])
    assert ids.shape == (1, MAX_SEQUENCE_LENGTH) and int(ids.max()) < len(pipeline.tokenizer_2)
