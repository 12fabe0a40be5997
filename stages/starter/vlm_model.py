"""The starter's vision-language model, a real Qwen3-VL of 1.1 million parameters, and its training forward.

The model class, its weights and its files are transformers' own. Only the training forward is ours: it packs
all questions about one image (or pair) behind their shared prefix, so that the images are read once, and has
no loop over images. A test holds it equal to transformers' forward.
"""

from __future__ import annotations

import pathlib

import torch
import torch.nn.functional as F
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from stages.starter.vlm_tokenizer import (
    END_OF_TEXT,
    IMAGE_SIZE,
    IMAGE_TOKEN,
    NUM_IMAGE_TOKENS,
    PATCH_SIZE,
    TURN_END,
    VIDEO_TOKEN,
    VISION_END,
    VISION_START,
    build_processor,
)

GRID = IMAGE_SIZE // PATCH_SIZE
HIDDEN_SIZE = 128


def build_config(proposals: bool = False) -> Qwen3VLConfig:
    """Heads of 32: vLLM's CPU attention refuses smaller ones. Patches stay unmerged: 16 tokens an image.

    `proposals` chooses the vocabulary, here and below, see `build_processor`.
    """
    tokenizer = build_processor(proposals).tokenizer
    token = tokenizer.convert_tokens_to_ids
    return Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": token(TURN_END),
            "pad_token_id": token(END_OF_TEXT),
        },
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": 1,
            "temporal_patch_size": 2,
            "out_hidden_size": HIDDEN_SIZE,
            "num_position_embeddings": NUM_IMAGE_TOKENS,
            "deepstack_visual_indexes": [],
        },
        image_token_id=token(IMAGE_TOKEN),
        video_token_id=token(VIDEO_TOKEN),
        vision_start_token_id=token(VISION_START),
        vision_end_token_id=token(VISION_END),
        tie_word_embeddings=True,
    )


def build_model(seed: int, proposals: bool = False) -> Qwen3VLForConditionalGeneration:
    """The untrained model in float32."""
    torch.manual_seed(seed)
    return Qwen3VLForConditionalGeneration(build_config(proposals)).float()


def save_model(
    model: Qwen3VLForConditionalGeneration, folder: pathlib.Path, dtype: torch.dtype, proposals: bool = False
) -> None:
    """Model, processor, tokenizer and chat template, as `from_pretrained` and vLLM load them."""
    weights = {name: tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}
    copy = Qwen3VLForConditionalGeneration(build_config(proposals)).to(dtype)
    copy.load_state_dict(weights)
    copy.generation_config.eos_token_id = copy.config.text_config.eos_token_id
    copy.generation_config.pad_token_id = copy.config.text_config.pad_token_id
    copy.save_pretrained(folder)
    build_processor(proposals).save_pretrained(folder)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def encode_images(model: Qwen3VLForConditionalGeneration, patches: torch.Tensor) -> torch.Tensor:
    """Vision tower over 64x64 images: the processor's patches `[B, 16, 1536]` -> `[B, 16, 128]`; B may be 0."""
    visual = model.model.visual
    num_images = patches.shape[0]
    if num_images == 0:
        return patches.new_empty(0, NUM_IMAGE_TOKENS, HIDDEN_SIZE)
    projection = visual.patch_embed.proj
    x = F.linear(patches, projection.weight.flatten(1), projection.bias) + visual.pos_embed.weight
    axis = torch.arange(GRID, device=x.device, dtype=torch.float32)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    frequencies = visual.rotary_pos_emb.inv_freq.float()
    angles = torch.cat([rows.reshape(-1, 1) * frequencies, columns.reshape(-1, 1) * frequencies], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    for block in visual.blocks:
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(block.norm1(x)).view(num_images, NUM_IMAGE_TOKENS, 3, heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
        x = x + block.attn.proj(attended.transpose(1, 2).reshape(x.shape))
        x = x + block.mlp(block.norm2(x))
    merger = visual.merger
    return merger.linear_fc2(merger.act_fn(merger.linear_fc1(merger.norm(x))))


def text_hidden_states(
    model: Qwen3VLForConditionalGeneration,
    input_ids: torch.Tensor,
    image_embeds: torch.Tensor,
    image_places: torch.Tensor,
    positions: torch.Tensor,
    segments: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states of packed rows, `[B, S, 128]`, and those half-way up.

    input_ids `[B, S]`; image_embeds `[B, I, 128]`, which stand at image_places `[I]` of every row; positions
    `[3, B, S]` (time, height, width); segments `[B, S]`: 0 for the shared prefix, 1, 2, ... for the questions
    behind it, -1 for padding. A token sees the prefix and its own question.
    """
    language = model.model.language_model
    config = language.config
    num_rows, length = input_ids.shape
    x = language.embed_tokens(input_ids).index_copy(1, image_places, image_embeds)
    frequencies = language.rotary_emb.inv_freq.float()
    axis = torch.zeros(frequencies.shape[0], dtype=torch.long, device=x.device)
    for dim, section in (
        (1, config.rope_parameters["mrope_section"][1]),
        (2, config.rope_parameters["mrope_section"][2]),
    ):
        axis[dim : section * 3 : 3] = dim
    angles = positions.permute(1, 2, 0)[..., axis].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    cos, sin = angles.cos(), angles.sin()
    order = torch.arange(length, device=x.device)
    visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    visible = (visible & (order[None, :] <= order[:, None]))[:, None]
    eps = config.rms_norm_eps

    def norm(hidden: torch.Tensor, layer) -> torch.Tensor:
        return F.rms_norm(hidden, hidden.shape[-1:], layer.weight, eps)

    def heads(hidden: torch.Tensor) -> torch.Tensor:
        return hidden.view(num_rows, length, -1, config.head_dim)

    halfway = x
    for number, layer in enumerate(language.layers, start=1):
        attention = layer.self_attn
        hidden = norm(x, layer.input_layernorm)
        q = norm(heads(attention.q_proj(hidden)), attention.q_norm).transpose(1, 2)
        k = norm(heads(attention.k_proj(hidden)), attention.k_norm).transpose(1, 2)
        v = heads(attention.v_proj(hidden)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            _rotate(q, cos, sin), _rotate(k, cos, sin), v, attn_mask=visible, enable_gqa=True
        )
        x = x + attention.o_proj(attended.transpose(1, 2).reshape(num_rows, length, -1))
        x = x + layer.mlp(norm(x, layer.post_attention_layernorm))
        halfway = x if 2 * number == len(language.layers) else halfway
    return norm(x, language.norm), halfway
