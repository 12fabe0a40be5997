"""Rollouts: the teacher's clips are those of diffusers' pipeline, however the work is cut."""

import importlib
import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from PIL import Image
from pydantic import ValidationError

from cluster.config import identity
from cluster.dag import narrowed
from cluster.errors import UserError
from cluster.folder import Folder
from stages.encode.rollouts import RolloutConfig, roll_out
from stages.encode.stage import EncodeConfig, encode_pairs
from stages.ingest.pairs import IngestPairsConfig
from stages.starter.stages import PairsConfig, make_pairs
from stages.train import flow
from stages.train.backbones.packing import pack, unpack
from stages.train.data import EncodedData
from stages.train.live import open_data
from stages.train.methods import video4edit
from tests.artifacts import committed
from tests.stages.ingest.context import make_context
from tests.tiny_wan import tiny_wans  # noqa: F401

GRID = (2, 4, 4)
NUM_STEPS = 3


class EvenSteps(FlowMatchEulerDiscreteScheduler):
    """Even steps from 1 to 0 before the shift, where the library's end a thousandth before 0."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(sigmas=np.linspace(1, 1 / num_inference_steps, num_inference_steps), device=device)


@pytest.fixture
def pairs(tmp_path):
    context = make_context(tmp_path, "pairs")
    make_pairs({}, PairsConfig(num_pairs=4), context)
    return {"pairs": committed(context.out, "pairs")}


@pytest.fixture
def run(pairs, tiny_wans, tmp_path, monkeypatch):  # noqa: F811
    """Runs the stage, its shards in this process; returns what it made."""

    def call(name, given=pairs, **settings):
        context = make_context(tmp_path, name)

        def in_process(shards, work, **options):
            for shard in shards:
                work(shard)

        monkeypatch.setattr("stages.encode.stage.run_shards", in_process)
        settings = {"model": str(tiny_wans["flf2v"]), "num_inference_steps": NUM_STEPS} | settings
        roll_out(given, RolloutConfig(**settings), context)
        return context

    return call


def loaded(context) -> EncodedData:
    return EncodedData.load(context.out.local(), video4edit.LATENTS, video4edit.TEXTS)


def test_a_rollout_is_the_pipelines_clip_between_the_two_pictures(run, pairs, tiny_wans):  # noqa: F811
    context = run("rollout", guidance_scale=3.0, negative_prompt="gray")
    data = loaded(context)
    batch = data.batch(range(4))
    assert context.rows == 4 and batch.grid == GRID
    pipeline = WanImageToVideoPipeline.from_pretrained(tiny_wans["flf2v"])
    pipeline.scheduler = EvenSteps.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    rows = pairs["pairs"].folder.read_table("pairs.parquet").to_pylist()
    for index in (0, 3):
        first, last = (Image.open(io.BytesIO(rows[index][f"{name}_image"])) for name in ("source", "target"))
        noise = torch.randn(1, 32, 64, generator=flow.item_generator(rows[index]["pair_id"], 0))
        embeds = [
            pipeline.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=512)[0]
            for text in (rows[index]["evolution_caption"], "gray")
        ]
        theirs = pipeline(
            image=first, last_image=last, height=32, width=32, num_frames=5, num_inference_steps=NUM_STEPS,
            guidance_scale=3.0, latents=unpack(noise, GRID), output_type="latent",
            prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1],
        ).frames  # fmt: skip
        assert (batch.latents["rollout"][index] - pack(theirs)[0]).abs().max() < 2e-5


def test_all_that_the_method_reads_is_there_in_its_own_shape(run):
    batch = loaded(run("rollout")).batch([1, 2])
    shapes = {name: tuple(array.shape) for name, array in batch.latents.items()}
    assert shapes == {
        "rollout": (2, 32, 64), "tail": (2, 16, 64), "source_condition": (2, 32, 80), "pair_condition": (2, 32, 80),
        "source_image_embeds": (2, 257, 32), "pair_image_embeds": (2, 514, 32),
    }  # fmt: skip
    assert torch.equal(batch.latents["pair_image_embeds"][:, :257], batch.latents["source_image_embeds"])
    assert batch.texts["instruction"]["prompt_embeds"].shape == (2, 512, 32)
    texts = [batch.texts[name]["prompt_embeds"] for name in video4edit.TEXTS]
    assert not torch.equal(*texts)


def test_shards_and_batches_change_nothing_but_rounding(run):
    whole, cut = loaded(run("whole")), loaded(run("cut", shard_size=3, batch_size=1))
    assert whole.ids == cut.ids
    for name, array in whole.batch(range(4)).latents.items():
        assert torch.allclose(array, cut.batch(range(4)).latents[name], atol=2e-5), name
    assert identity(RolloutConfig(batch_size=3)) == identity(RolloutConfig())
    assert identity(RolloutConfig(seed=3)) != identity(RolloutConfig())


def test_the_teacher_can_be_told_the_instruction_alone(run):
    told, plain = (loaded(run(str(value), evolution_captions=value)).batch([0]) for value in (True, False))
    assert not torch.equal(told.latents["rollout"], plain.latents["rollout"])
    assert torch.equal(told.latents["tail"], plain.latents["tail"])


def evolved(pairs, folder, outcomes) -> dict:
    """The pairs without captions of their own, and what the evolve stage made of them."""
    table = pairs["pairs"].folder.read_table("pairs.parquet")
    rows = [
        {"pair_id": pair_id, "evolution_caption": f"told anew: {caption}", "outcome": outcome}
        for pair_id, caption, outcome in zip(
            table["pair_id"].to_pylist(), table["evolution_caption"].to_pylist(), outcomes, strict=True
        )
    ]
    for name, is_good in (("captions", True), ("dead_letters", False)):
        part = [row for row in rows if (row["outcome"] == "ok") == is_good]
        if part:
            Folder(folder / "evolve").write_table(f"{name}/00000.parquet", pa.Table.from_pylist(part))
    Folder(folder / "mute").write_table("pairs.parquet", table.drop_columns(["evolution_caption"]))
    return {
        "pairs": committed(Folder(folder / "mute"), "pairs"),
        "evolve": committed(Folder(folder / "evolve"), "evolve"),
    }


def test_captions_of_the_evolve_stage_are_joined_by_pair(run, pairs, tmp_path):
    given = evolved(pairs, tmp_path / "some", ["ok", "filtered", "ok", "ok"])
    context = run("told", given)
    rows = context.out.read_table(context.out.list("rows/00000.parquet", recursive=True)[0]).to_pylist()
    table = pairs["pairs"].folder.read_table("pairs.parquet").to_pylist()
    kept = [table[index] for index in (0, 2, 3)]
    texts = [(row["id"], row["instruction"], row["evolution_caption"]) for row in rows]
    assert texts == [(row["pair_id"], row["instruction"], f"told anew: {row['evolution_caption']}") for row in kept]
    assert context.figures["num_pairs_without_caption"] == 1 and context.rows == 3
    with pytest.raises(UserError, match="told: none of the 4 pairs has a caption .*--set told.captions=pairs"):
        run("told", evolved(pairs, tmp_path / "none", ["failed"] * 4))


def test_where_captions_come_from_decides_which_stages_are_planned():
    full = importlib.import_module("pipelines.full")
    for captions, needs in (("evolve", ("pairs", "evolve")), ("pairs", ("pairs",))):
        configs = {"rollout": RolloutConfig(captions=captions), "ingest_pairs": IngestPairsConfig()}
        (stage,) = [s for s in narrowed([s for s in full.STAGES if s.name == "rollout"], configs)]
        assert stage.needs == needs
    assert identity(RolloutConfig(captions="pairs")) != identity(RolloutConfig())


def test_what_cannot_be_rolled_out_is_refused(run, pairs, tiny_wans, tiny_flux, tmp_path):  # noqa: F811
    table = pairs["pairs"].folder.read_table("pairs.parquet").drop_columns(["evolution_caption"])
    Folder(tmp_path / "mute").write_table("pairs.parquet", table)
    with pytest.raises(UserError, match="no table with the columns .*evolution_caption.*rollout.captions=evolve"):
        run("mute", {"pairs": committed(Folder(tmp_path / "mute"), "pairs")})
    with pytest.raises(UserError, match="no clips"):
        run("flux", model=str(tiny_flux))
    with pytest.raises(UserError, match="clip of 6 frames"):
        run("six", num_frames=6)
    with pytest.raises(UserError, match="--set rollout.model="):
        run("rollout", model=str(tmp_path / "nowhere"))
    with pytest.raises(ValidationError, match="live"):
        RolloutConfig(live=True)


def test_clips_that_are_encoded_while_training_have_the_length_of_the_stage(pairs, tiny_wans, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("stages.encode.stage.run_shards", lambda shards, work, **options: [work(s) for s in shards])
    batches = []
    for live in (False, True):
        context = make_context(tmp_path, f"live-{live}")
        settings = {"model": str(tiny_wans["t2v"]), "num_frames": 5, "max_text_tokens": 16, "live": live}
        encode_pairs(pairs, EncodeConfig(**settings), context)
        batches.append(open_data(context.out.local(), ["source"], ["instruction"], "cpu").batch([0, 1]))
    before, during = batches
    assert before.grid == during.grid == GRID and during.latents["source"].shape == (2, 32, 64)
    assert torch.allclose(before.latents["source"], during.latents["source"], atol=1e-5)
