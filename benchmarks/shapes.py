"""Vision-language models of real shape with random weights: what they cost is real, what they say is not."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

from cluster.vllm import EngineSettings
from stages.caption.stage import CaptionConfig
from stages.starter.pretrain import MODELS

# As in the models' published configurations. The vocabulary is as large, its words are the starter's few.
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3-vl-2b": {
        "text_config": {
            "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
        },
        "vision_config": {
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2048,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17], "spatial_merge_size": 2,
        },
    },
    "qwen3-vl-8b": {
        "text_config": {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False,
        },
        "vision_config": {
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24], "spatial_merge_size": 2,
        },
    },
}  # fmt: skip


def build_config(shape: dict[str, dict[str, Any]]) -> Any:
    """The starter model's configuration with the numbers of a shape."""
    from stages.starter import vlm_model

    config = vlm_model.build_config()
    for part, values in shape.items():
        for name, value in values.items():
            setattr(getattr(config, part), name, value)
    head = shape["text_config"]["head_dim"]
    config.text_config.rope_parameters |= {"mrope_section": [head // 2 - 2 * (head // 6), head // 6, head // 6]}
    config.tie_word_embeddings = shape["text_config"]["tie_word_embeddings"]
    return config


def shaped_config(name: str, folder: Path) -> CaptionConfig:
    """The stage with such a model, which is written to `folder`: one attempt, since no answer is good."""
    worker = multiprocessing.get_context("spawn").Process(target=write_model, args=(SHAPES[name], folder))
    worker.start()  # in a process that takes its memory of the GPU with it
    worker.join()
    if worker.exitcode:
        raise SystemExit("the model couldn't be made: its error is above")
    engine = EngineSettings(
        model=str(folder), max_model_len=4096, max_num_seqs=256, num_in_flight=512, gpu_memory_utilization=0.42
    )  # two engines on one GPU
    return CaptionConfig(engine=engine, max_tokens=160, temperatures=(0.0,), error_rate_limit=1.0)


def write_model(shape: dict[str, dict[str, Any]], folder: Path) -> None:
    """Random weights in bfloat16, with the starter's tokenizer and a processor that takes pictures of any size."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3VLForConditionalGeneration(build_config(shape))
    model.save_pretrained(folder, max_shard_size="4GB")
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "qwen3vl" / name, folder / name)
    processor = json.loads((MODELS / "qwen3vl/processor_config.json").read_text())
    for part in ("image_processor", "video_processor"):
        processor[part] |= {"merge_size": 2, "size": {"shortest_edge": 64 * 64, "longest_edge": 2048 * 2048}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
