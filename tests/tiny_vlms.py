"""Tiny vision-language models of every family, with random weights and a tokenizer made here."""

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from stages.starter.vlm_tokenizer import CHAT_TEMPLATE, build_tokenizer

ONEVISION_TEMPLATE = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
LANGUAGE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def tokenizer(*tokens: str) -> PreTrainedTokenizerFast:
    made = build_tokenizer()
    made.add_special_tokens({"additional_special_tokens": list(tokens)})
    return made


def qwen2_5_processor() -> Qwen2_5_VLProcessor:
    size = {"shortest_edge": 28 * 28, "longest_edge": 84 * 84}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )


def qwen2_5_model() -> Qwen2_5_VLForConditionalGeneration:
    tokens, token = tokenizer(), tokenizer().convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            **LANGUAGE,
            "vocab_size": len(tokens),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "pad_token_id": tokens.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).float()


def onevision_processor() -> LlavaOnevisionProcessor:
    size = {"height": 28, "width": 28}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=[[28, 28], [28, 56], [56, 28], [56, 56], [28, 84]]
        ),
        tokenizer=tokenizer("<image>", "<video>"),
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION_TEMPLATE,
    )


def onevision_model() -> LlavaOnevisionForConditionalGeneration:
    tokens = tokenizer("<image>", "<video>")
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**LANGUAGE, vocab_size=len(tokens), pad_token_id=tokens.pad_token_id),
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        video_token_id=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=onevision_processor().image_processor.image_grid_pinpoints,
    )
    torch.manual_seed(0)
    return LlavaOnevisionForConditionalGeneration(config).float()
