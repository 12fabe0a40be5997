"""Pipelines that edit, of the real classes with random weights, saved as their authors save theirs."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from transformers import Qwen2VLProcessor, UMT5Config, UMT5EncoderModel

from stages.starter.text_encoders import new_t5_tokenizer
from tests.tiny_vlms import qwen2_5_model, qwen2_5_processor

LATENTS = {"z_dim": 4, "latents_mean": [0.1, -0.2, 0.0, 0.3], "latents_std": [0.9, 1.1, 1.3, 0.8]}


def save_kontext(flux: Path, path: Path) -> Path:
    """FLUX.1 Kontext with the parts of a FLUX pipeline: the two differ in how they are called."""
    FluxKontextPipeline.from_pretrained(flux).save_pretrained(path)
    return path


def save_qwen_image_edit(path: Path, *, plus: bool = False) -> Path:
    """Qwen-Image-Edit, or the later one (`plus`) that takes several pictures."""
    processor = qwen2_5_processor()
    torch.manual_seed(1)
    parts = {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0),
        "vae": AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=0, **LATENTS),
        "transformer": QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(8, 4, 4),
        ),
        "text_encoder": qwen2_5_model(),
        "tokenizer": processor.tokenizer,
        "processor": Qwen2VLProcessor(
            image_processor=processor.image_processor,
            tokenizer=processor.tokenizer,
            video_processor=processor.video_processor,
            chat_template=processor.chat_template,
        ),
    }
    (QwenImageEditPlusPipeline if plus else QwenImageEditPipeline)(**parts).save_pretrained(path)
    return path


def save_wan_vace(path: Path) -> Path:
    """Wan-VACE: what Ditto is a fine-tuning of."""
    tokenizer = new_t5_tokenizer()
    torch.manual_seed(2)
    text_encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    )
    transformer = WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
        vace_layers=[0],
        vace_in_channels=2 * 4 + 8 * 8,  # the parts of the clip that stay and that change, and the mask's pixels
    )
    WanVACEPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **LATENTS),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer,
    ).save_pretrained(path)
    return path
