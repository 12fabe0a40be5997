"""A Stable Diffusion 3.5 pipeline in medium's layout with random weights, as a model folder."""

from __future__ import annotations

from pathlib import Path

import pytest

HIDDEN_SIZE = 64  # of T5 and of the transformer's text; each CLIP has half of it


def save_tiny_sd3(path: Path) -> Path:
    """Saves it and returns `path`. As in medium, one block has a second attention, and queries and keys are normed.

    The latents' scale is not 1 and their mean not 0, so that a forgotten scaling shows.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from stages.starter import text_encoders
    from stages.starter.autoencoder import new_autoencoder

    torch.manual_seed(0)
    autoencoder = new_autoencoder()
    autoencoder.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    clip_tokenizer, t5_tokenizer = text_encoders.new_clip_tokenizer(), text_encoders.new_t5_tokenizer()
    clips = [
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(clip_tokenizer),
                hidden_size=HIDDEN_SIZE // 2,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=text_encoders.MAX_SEQUENCE_LENGTH,
                projection_dim=HIDDEN_SIZE // 2,
                bos_token_id=clip_tokenizer.bos_token_id,
                eos_token_id=clip_tokenizer.eos_token_id,
                pad_token_id=clip_tokenizer.pad_token_id,
            )
        )
        for _ in range(2)
    ]
    t5, _ = text_encoders.new_text_encoders(t5_tokenizer, clip_tokenizer)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=HIDDEN_SIZE,
        caption_projection_dim=128,
        pooled_projection_dim=HIDDEN_SIZE,
        pos_embed_max_size=7,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder,
        text_encoder=clips[0],
        tokenizer=clip_tokenizer,
        text_encoder_2=clips[1],
        tokenizer_2=clip_tokenizer,
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer,
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random tiny Stable Diffusion 3.5."""
    return save_tiny_sd3(tmp_path_factory.mktemp("sd3") / "model")
