"""Wan pipelines of the real classes with random weights, tiny, as model folders: `t2v`, `i2v` and `flf2v`.

Their widths are the real ones where the layout hangs on it: 16 latent channels, 36 of input, 257 tokens a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

Kind = Literal["t2v", "i2v", "flf2v"]

HIDDEN_SIZE = 32
IMAGE_TOKENS = 257


def new_transformer(kind: Kind = "t2v", num_layers: int = 2, seed: int = 0):
    """A WanTransformer3DModel. FLF2V's positions of the two pictures are random, not zero."""
    import torch
    from diffusers import WanTransformer3DModel

    pictures = {} if kind == "t2v" else {"image_dim": HIDDEN_SIZE, "added_kv_proj_dim": 24, "in_channels": 36}
    if kind == "flf2v":
        pictures["pos_embed_seq_len"] = 2 * IMAGE_TOKENS
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=HIDDEN_SIZE,
        freq_dim=32,
        ffn_dim=48,
        num_layers=num_layers,
        **({"in_channels": 16, "out_channels": 16} | pictures),
    )
    if kind == "flf2v":
        torch.nn.init.normal_(transformer.condition_embedder.image_embedder.pos_embed)
    return transformer.eval().requires_grad_(False)


def new_vae():
    """An AutoencoderKLWan of 4 x 4 pixels and 4 frames a latent, whose mean and scale are the real ones."""
    import torch
    from diffusers import AutoencoderKLWan

    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=8, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True], scale_factor_spatial=4
    ).eval()


def new_text_encoder():
    """(tokenizer, UMT5EncoderModel)."""
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    from stages.starter.text_encoders import new_t5_tokenizer

    tokenizer = new_t5_tokenizer()
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=HIDDEN_SIZE, d_kv=8, d_ff=48, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    torch.manual_seed(2)
    return tokenizer, UMT5EncoderModel(config).eval()


def new_image_encoder():
    """(CLIPImageProcessor, CLIPVisionModel) that sees a picture as 257 tokens."""
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=HIDDEN_SIZE, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, patch_size=14
    )
    torch.manual_seed(3)
    return CLIPImageProcessor(), CLIPVisionModel(config).eval()


def save_tiny_wan(path: Path, kind: Kind, two_experts: bool = False) -> Path:
    """Saves a pipeline and returns `path`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline

    tokenizer, text_encoder = new_text_encoder()
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": new_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "transformer": new_transformer(kind),
    }
    if two_experts:
        parts |= {"transformer_2": new_transformer(kind, seed=7), "boundary_ratio": 0.875}
    if kind == "t2v":
        pipeline = WanPipeline(**parts)
    else:
        image_processor, image_encoder = new_image_encoder()
        pipeline = WanImageToVideoPipeline(**parts, image_processor=image_processor, image_encoder=image_encoder)
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_wans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the pipelines, by kind; `t2v` has two experts."""
    root = tmp_path_factory.mktemp("wan")
    return {kind: save_tiny_wan(root / kind, kind, kind == "t2v") for kind in ("t2v", "i2v", "flf2v")}
