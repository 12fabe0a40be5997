"""Random tiny models of the classes that evaluation looks with, each saved as a model folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    BertTokenizer,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
NOUNS = ("cat", "dog", "red", "blue", "a")


def save_clip(folder: Path) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(vocab)}, merges=[])
    start, end = len(vocab) - 2, len(vocab) - 1
    text = LAYERS | {"vocab_size": len(vocab), "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        text_config=text | {"max_position_embeddings": 24},
        vision_config=LAYERS | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    _random(CLIPModel, config).save_pretrained(folder)
    crop = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=crop, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    """As facebook/dino-vits16: a ViT without a pooler."""
    torch.manual_seed(1)
    config = ViTConfig(**LAYERS, image_size=32, patch_size=8)
    _random(ViTModel, config, add_pooling_layer=False).save_pretrained(folder)
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=mean, image_std=deviation).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path) -> Path:
    """As facebook/dinov2-base: trained at a larger size than it is used with, its processor crops."""
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14)
    _random(Dinov2Model, config).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


def save_detector(folder: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *NOUNS]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin", "image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2], "window_size": 4, "out_indices": [2, 3, 4],
        },
        text_config={"model_type": "bert", "vocab_size": len(words), **LAYERS},
        d_model=32, num_queries=8, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
    )  # fmt: skip
    _random(GroundingDinoForObjectDetection, config).save_pretrained(folder)
    picture = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 192})
    GroundingDinoProcessor(image_processor=picture, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_sam2(folder: Path) -> Path:
    config = Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64],
                "window_positional_embedding_background_size": [4, 4], "blocks_per_stage": [1, 2, 2, 2],
                "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
                "window_size_per_stage": [4, 2, 2, 2], "global_attention_blocks": [4],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
    )  # fmt: skip
    _random(Sam2Model, config).save_pretrained(folder)
    sides = {"height": 64, "width": 64}
    Sam2Processor(Sam2ImageProcessor(size=sides, mask_size={"height": 16, "width": 16})).save_pretrained(folder)
    return folder


def _random(model_class, config, **options):
    """With weights large enough that the outputs differ from picture to picture."""
    torch.manual_seed(0)
    model = model_class(config, **options).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.normal_(std=0.2)
    return model
