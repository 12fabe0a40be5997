"""Clips are those of diffusers' pipeline, however the work is cut, and those that have their style are encoded."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from PIL import Image

from cluster.errors import UserError
from cluster.folder import Folder
from stages.encode.clip_rows import EncodeClipsConfig, encode_clips
from stages.encode.clips import ClipsConfig, make_clips
from stages.train import flow
from stages.train.backbones import wan
from stages.train.backbones.clip_files import read_clip, write_clip
from stages.train.backbones.packing import unpack
from stages.train.data import EncodedData
from stages.train.methods import byg
from tests.artifacts import committed
from tests.stages.ingest.context import make_context
from tests.tiny_wan import tiny_wans  # noqa: F401

NUM_STEPS = 6  # after the shift of 3 the last three lie below the experts' boundary
STYLES = ("day", "night")


class EvenSteps(FlowMatchEulerDiscreteScheduler):
    """Even steps from 1 to 0 before the shift, where the library's end a thousandth before 0."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(sigmas=np.linspace(1, 1 / num_inference_steps, num_inference_steps), device=device)


def prompt(index: int, outcome: str = "ok") -> dict:
    style, other = STYLES[index % 2], STYLES[1 - index % 2]
    return {
        "caption_id": f"c{index}", "caption": f"scene {index}", "style": style, "prompt": f"scene {index}, {style}",
        "src_caption": f"scene {index}, {style}", "tgt_caption": f"scene {index}, {other}",
        "instruction": f"make it {other}", "reverse_instruction": f"make it {style}", "outcome": outcome,
    }  # fmt: skip


@pytest.fixture
def prompts(tmp_path):
    context = make_context(tmp_path, "video_prompts")
    rows = [prompt(0), prompt(1), prompt(2, "filtered"), prompt(3), prompt(4)]
    context.out.write_table("prompts.parquet", pa.Table.from_pylist(rows))
    return {"video_prompts": committed(context.out, "video_prompts")}


@pytest.fixture
def run(prompts, tiny_wans, tmp_path, monkeypatch):  # noqa: F811
    """Makes the clips, the shards in this process; returns the stage's context and the shards done."""

    def call(name="clips", given=prompts, **settings):
        context, done = make_context(tmp_path, name), []

        def in_process(shards, work, **options):
            for shard in shards:
                if not context.out.exists(shard):
                    work(shard)
                    done.append(shard)

        monkeypatch.setattr("stages.encode.clips.run_shards", in_process)
        monkeypatch.setattr("stages.encode.stage.run_shards", in_process)
        defaults = {"model": str(tiny_wans["t2v"]), "num_inference_steps": NUM_STEPS, "guidance_scale": 3.0}
        make_clips(given, ClipsConfig(**defaults | {"negative_prompt": "gray"} | settings), context)
        return context, done

    return call


def clips_of(folder: Folder) -> dict[str, dict]:
    names = folder.list(".parquet", recursive=True)
    return {row["caption_id"]: row for name in names for row in folder.read_table(name).to_pylist()}


def frames_of(row: dict) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in read_clip(row["clip"], 5)])


def test_a_clip_is_the_pipelines_own_with_each_step_by_its_expert(run, tiny_wans):  # noqa: F811
    context, _ = run()
    rows = clips_of(context.out)
    assert set(rows) == {"c0", "c1", "c3", "c4"} and context.rows == 4
    pipeline = WanPipeline.from_pretrained(tiny_wans["t2v"])
    pipeline.scheduler = EvenSteps.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    used = []
    for name in ("transformer", "transformer_2"):
        getattr(pipeline, name).register_forward_pre_hook(lambda *_, name=name: used.append(name))
    for key in ("c0", "c3"):
        noise = torch.randn(1, 32, 64, generator=flow.item_generator(key, 0))
        theirs = pipeline(
            prompt=rows[key]["src_caption"], negative_prompt="gray", height=32, width=32, num_frames=5,
            num_inference_steps=NUM_STEPS, guidance_scale=3.0, latents=unpack(noise, (2, 4, 4)), output_type="np",
        ).frames[0]  # fmt: skip
        assert np.abs(frames_of(rows[key]) / 255 - theirs).max() < 1.01 / 255
    nodes = flow.sampling_nodes(NUM_STEPS, 3.0)[:-1]
    wanted = [wan.expert_of(t[None], 0.875) for t in nodes for _ in range(2)]  # with and without the prompt
    assert used == wanted * 2 and set(used) == {"transformer", "transformer_2"}


def test_shards_and_batches_change_no_clip_and_only_what_is_missing_is_made(run):
    whole, _ = run(shard_size=32)
    cut, done = run("cut", shard_size=1, batch_size=1)
    first, second = clips_of(whole.out), clips_of(cut.out)
    assert len(done) == 4 and list(first) == list(second)
    for key, row in first.items():  # sums in another order may round to the next of 255 steps
        assert np.abs(frames_of(row).astype(int) - frames_of(second[key])).max() <= 1
    cut.out.remove(done[2])
    again, redone = run("cut", shard_size=1, batch_size=1)
    assert redone == [done[2]] and clips_of(again.out) == second


def test_prompts_and_models_that_do_not_serve_are_named(run, prompts, tiny_wans, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="makes no clips from texts alone.*--set clips.model"):
        run("i2v", model=str(tiny_wans["i2v"]))
    with pytest.raises(UserError, match="36x32 pixels.*multiples of 8"):
        run("size", width=36)
    context = make_context(tmp_path, "none")
    context.out.write_table("prompts.parquet", pa.Table.from_pylist([prompt(0, "filtered")]))
    with pytest.raises(UserError, match="no prompt that is ok"):
        run("empty", given={"video_prompts": committed(context.out, "video_prompts")})


@pytest.fixture
def verified(run, tmp_path):
    """The artifacts that encode_clips needs: of four clips one is of the wrong style."""
    clips, _ = run()
    context = make_context(tmp_path, "verify_clips")
    rows = [{"caption_id": key, "outcome": "filtered" if key == "c1" else "ok"} for key in clips_of(clips.out)]
    context.out.write_table("checks.parquet", pa.Table.from_pylist(rows))
    return {"clips": committed(clips.out, "clips"), "verify_clips": committed(context.out, "verify_clips")}


def test_clips_with_their_style_become_rows_of_byg(verified, tiny_wans, tmp_path):  # noqa: F811
    context = make_context(tmp_path, "encode_clips")
    config = EncodeClipsConfig(model=str(tiny_wans["t2v"]), max_text_tokens=16)
    encode_clips(verified, config, context)
    data = EncodedData.load(context.out.local(), byg.LATENTS, byg.TEXTS)
    assert data.ids == ["c0", "c3", "c4"] and data.grid == (2, 4, 4)
    batch = data.batch([1])
    encoder = wan.Encoder(str(tiny_wans["t2v"]), max_length=16, num_frames=5)
    frames = frames_of(clips_of(verified["clips"].folder)["c3"])
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    assert torch.allclose(batch.latents["source"], encoder.encode_pixels(pixels), atol=1e-6)
    wanted = encoder.encode_text(["make it day"])["prompt_embeds"]
    assert torch.allclose(batch.texts["instruction"]["prompt_embeds"], wanted, atol=1e-6)


def test_a_clip_that_cannot_be_read_is_named(verified, tiny_wans, tmp_path):  # noqa: F811
    table = pa.Table.from_pylist([prompt(9) | {"clip": b"RIFF"}])
    context = make_context(tmp_path, "damaged")
    context.out.write_table("clips.parquet", table)
    checks = make_context(tmp_path, "checks")
    checks.out.write_table("checks.parquet", pa.Table.from_pylist([{"caption_id": "c9", "outcome": "ok"}]))
    given = {"clips": committed(context.out, "clips"), "verify_clips": committed(checks.out, "verify_clips")}
    config = EncodeClipsConfig(model=str(tiny_wans["t2v"]))
    with pytest.raises(UserError, match="clip 'c9' can't be read"):
        encode_clips(given, config, make_context(tmp_path, "encode_damaged"))
    with pytest.raises(UserError, match=r"clip 'c9' \(and 0 more\) was checked, but isn't in"):
        given |= {"clips": verified["clips"]}
        encode_clips(given, config, make_context(tmp_path, "encode_missing"))


def test_a_clip_file_keeps_every_pixel_and_frames_that_last():
    draw = np.random.default_rng(0)
    a, b, c = (Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(3))
    for frames in ([a, a, b, b, c], [a] * 5, [a, b, c, a, b], [b]):
        found = read_clip(write_clip(frames), len(frames))
        assert all(np.array_equal(x, y) for x, y in zip(found, frames, strict=True))
    assert len(read_clip(write_clip([a, b, c]), 9)) == 9 and len(read_clip(write_clip([a, b, c]))) == 3
    with pytest.raises(ValueError, match="over 200000000"):
        read_clip(write_clip([a, b]), 200_000)
