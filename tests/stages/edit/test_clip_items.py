"""Editing clips: every method gives whole clips, as diffusers' pipeline with the LoRA would for the source's tokens."""

import io
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.editors import ClipMethod
from stages.edit.settings import EditVideoConfig
from stages.edit.stage import edit_images
from stages.starter.stages import VideoBenchmarkConfig, VideoValidationConfig, make_video_benchmark
from stages.train import flow
from stages.train.adapters import Adapters
from stages.train.backbones import wan
from stages.train.backbones.clip_files import read_clip
from stages.train.export import FILE as ADAPTER_FILE
from stages.train.export import save_lora
from tests.artifacts import committed
from tests.stages.ingest.context import make_context
from tests.tiny_wan import new_transformer, save_tiny_wan

METHODS = get_args(ClipMethod)
NUM_STEPS = 2
GRID = (2, 4, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A text-to-video pipeline with one transformer."""
    return save_tiny_wan(tmp_path_factory.mktemp("wan") / "one", "t2v")


@pytest.fixture(scope="module")
def given(model, tmp_path_factory):
    path, artifacts = tmp_path_factory.mktemp("inputs"), {}
    for config in (VideoBenchmarkConfig(num_items=3), VideoValidationConfig(num_items=2)):
        context = make_context(path, config.split)
        make_video_benchmark({}, config, context)
        artifacts[config.split] = committed(context.out, config.split)
    lora = Adapters(new_transformer()).add("student", 4, 4.0, wan.LORA_TARGETS, seed=0)
    lora.flat.copy_(0.2 * torch.randn(lora.flat.shape, generator=torch.Generator().manual_seed(3)))
    trained = Folder(path / "train_byg_video")
    save_lora(trained.sub("adapter"), lora.tensors, 4, 4.0, wan)
    settings = {"model": str(model), "num_frames": 5}
    return artifacts | {"train_byg_video": committed(trained, "train_byg_video", settings)}


@pytest.fixture
def run(given, model, tmp_path, monkeypatch):
    """Runs the stage with its shards done in this process; returns its rows by item and method, and the context."""

    def call(name="first", given=given, **settings):
        context = make_context(tmp_path / name, "edit_video")

        def in_process(shards, work, **options):
            for shard in shards:
                work(shard)

        monkeypatch.setattr("stages.edit.stage.run_shards", in_process)
        settings = {"model": str(model), "num_inference_steps": NUM_STEPS, "sdedit_strengths": (0.7,)} | settings
        settings = {"methods": METHODS} | settings
        edit_images(given, EditVideoConfig(**{"flowedit_starts": (1.0,)} | settings), context)
        names = [name for name in context.out.list(".parquet", recursive=True) if name.startswith("edits/")]
        rows = [row for name in names for row in context.out.read_table(name).to_pylist()]
        return {(row["item_id"], row["method"]): row for row in rows}, context

    return call


def frames_of(data: bytes) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in read_clip(data, 5)])


def test_every_method_makes_a_clip_of_every_item(run, given):
    rows, context = run(sdedit_strengths=(0.4, 0.8))
    items = given["video_benchmark"].folder.read_table("benchmark.parquet").to_pylist()
    assert set(rows) == {(item["item_id"], method) for item in items for method in METHODS}
    for item in items:
        clips = {method: frames_of(rows[item["item_id"], method]["clip"]) for method in METHODS}
        assert np.array_equal(clips["copy"], frames_of(item["clip"]))
        assert len({clip.tobytes() for clip in clips.values()}) == len(METHODS)
        for method, clip in clips.items():
            last = Image.open(io.BytesIO(rows[item["item_id"], method]["image"]))
            assert clip.shape == (5, 32, 32, 3) and np.array_equal(clip[-1], np.asarray(last))
    table = context.out.read_table("strengths.parquet").to_pylist()
    assert [(row["strength"], row["num_items"]) for row in table] == [(0.4, 2), (0.8, 2)]


def test_an_edit_is_what_the_trained_lora_makes_of_the_whole_clip_in_diffusers(run, given, model):
    rows, _ = run(methods=("byg_video", "untrained"))
    item = given["video_benchmark"].folder.read_table("benchmark.parquet").to_pylist()[1]
    encoder = wan.Encoder(str(model), num_frames=5)
    pixels = torch.from_numpy(frames_of(item["clip"])).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    source, text = encoder.encode_pixels(pixels), encoder.encode_text([item["instruction"]])
    pipeline = wan.PIPELINE.from_pretrained(model)
    for method in ("untrained", "byg_video"):
        if method == "byg_video":
            pipeline.load_lora_weights(given["train_byg_video"].folder.local("adapter"), weight_name=ADAPTER_FILE)
        state = torch.randn(1, 32, 64, generator=flow.item_generator(item["item_id"], 0))
        nodes = flow.sampling_nodes(NUM_STEPS, 3.0)
        with torch.no_grad():
            for t, next_t in zip(nodes[:-1], nodes[1:], strict=True):
                state = state + (next_t - t) * wan.velocity(pipeline.transformer, state, t[None], text, source, GRID)
        wanted = encoder.decode_pixels(state, 32, 32)[0].permute(1, 2, 3, 0).numpy()
        ours = frames_of(rows[item["item_id"], method]["clip"])
        assert np.abs(ours / 255 - wanted).max() < 1.01 / 255


def test_what_does_not_fit_is_named_with_the_stage(run, given, tmp_path):
    with pytest.raises(UserError, match="num_frames=5, edit_video has 9.*--set edit_video.num_frames=5"):
        run("length", num_frames=9)
    with pytest.raises(UserError, match="edit_video: method byg_video needs stage train_byg_video"):
        run("untrained", given={name: value for name, value in given.items() if name != "train_byg_video"})
    with pytest.raises(UserError, match="edit_video: several sdedit_strengths .*no validation split"):
        fewer = {name: value for name, value in given.items() if name != "video_validation"}
        run("unvalidated", given=fewer, sdedit_strengths=(0.4, 0.8))
