"""What rows come to whose pictures or prompts are bad, under a model that answers with blanks for ever."""

import io
from pathlib import Path

import pyarrow as pa
from PIL import Image

from cluster.folder import Folder
from cluster.vllm import EngineSettings
from stages.caption.evolution.stage import EVOLUTION_SCHEMA, EvolveConfig, evolve_captions
from stages.starter.stages import PairsConfig, make_pairs
from tests.artifacts import committed
from tests.stages.caption.replay import rows_of
from tests.stages.ingest.context import make_context
from tests.tiny_qwen import make_model


def make_blank_model(folder: Path) -> Path:
    """A Qwen3-VL whose next token is a blank, whatever it sees: its layers add nothing to the embeddings, which are all
    alike, but that of the blank is longer.
    """
    import torch
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    make_model(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    (blank,) = AutoTokenizer.from_pretrained(folder).encode(" ")
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embeddings = model.get_input_embeddings().weight.fill_(1.0)
        embeddings[blank] = 2.0
    model.save_pretrained(folder)
    return folder


def test_bad_rows_fail_alone_and_endless_blanks_are_cut_off(local_ray: None, tmp_path: Path):
    made = make_context(tmp_path, "pairs")
    make_pairs({}, PairsConfig(num_pairs=8), made)
    pairs = made.out.read_table("pairs.parquet").drop_columns(["evolution_caption"]).to_pylist()
    bomb = io.BytesIO()
    Image.new("L", (10_000, 6_000)).save(bomb, "PNG")
    corrupt, large, long = pairs[1], pairs[3], pairs[6]
    corrupt["source_image"] = corrupt["source_image"][: len(corrupt["source_image"]) // 2]
    large["target_image"] = bomb.getvalue()
    long["instruction"] = "make it a little more red and " * 300
    folder = Folder(tmp_path / "given")
    folder.write_table("pairs.parquet", pa.Table.from_pylist(pairs))
    config = EvolveConfig(
        engine=EngineSettings(model=str(make_blank_model(tmp_path / "model")), max_model_len=4096),
        temperatures=(0.0, 1.0), max_tokens=40, shard_size=3, error_rate_limit=1.0,
    )  # fmt: skip
    context = make_context(tmp_path, "evolve")
    evolve_captions({"pairs": committed(folder, "pairs")}, config, context)
    rows = rows_of(context, "dead_letters")
    assert rows_of(context, "captions") == []
    assert [row["pair_id"] for row in rows] == [pair["pair_id"] for pair in pairs]
    by_id = {row["pair_id"]: row for row in rows}
    reasons = {
        corrupt["pair_id"]: "image: image file is truncated",
        large["pair_id"]: "image: 10000x6000 pixels are over 16000000",
        long["pair_id"]: "request: ",
    }
    for key, reason in reasons.items():
        assert by_id[key]["outcome"] == "failed" and by_id[key]["reason"].startswith(reason), by_id[key]
        assert by_id[key]["attempts"] == 1
    assert "4096" in by_id[long["pair_id"]]["reason"]
    for row in rows:
        if row["pair_id"] not in reasons:
            assert (row["outcome"], row["attempts"], row["finish_reason"]) == ("truncated", 2, "length")
            assert row["completion_tokens"] == 40 and row["prompt_tokens"] > 100
    tables = [context.out.read_table(name) for name in context.out.list(".parquet", recursive=True)]
    assert all(table.schema.equals(EVOLUTION_SCHEMA) for table in tables)
