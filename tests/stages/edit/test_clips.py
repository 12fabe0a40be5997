"""Methods that make a clip: the edit is its last frame, as diffusers' pipeline with the LoRA gives it."""

import io

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.settings import EditConfig, edit_sources
from stages.edit.stage import edit_images
from stages.starter.stages import BenchmarkConfig, make_benchmark
from stages.train import flow
from stages.train.adapters import Adapters
from stages.train.backbones import wan_i2v
from stages.train.backbones.packing import unpack
from stages.train.export import FILE as ADAPTER_FILE
from stages.train.export import save_lora
from tests.artifacts import committed
from tests.stages.encode.test_rollouts import EvenSteps
from tests.stages.ingest.context import make_context
from tests.tiny_wan import new_transformer, tiny_wans  # noqa: F401

GRID = (2, 4, 4)
METHODS = ("video4edit", "zero_shot_i2v")


@pytest.fixture
def given(tiny_wans, tmp_path):  # noqa: F811
    """A benchmark of three items, and a LoRA of the student's transformer with random numbers."""
    context = make_context(tmp_path, "benchmark")
    make_benchmark({}, BenchmarkConfig(num_items=3), context)
    trained = Folder(tmp_path / "train_video4edit")
    lora = Adapters(new_transformer("i2v")).add("student", 4, 4.0, wan_i2v.LORA_TARGETS, seed=0)
    lora.flat.copy_(0.2 * torch.randn(lora.flat.shape, generator=torch.Generator().manual_seed(3)))
    save_lora(trained.sub("adapter"), lora.tensors, 4, 4.0, wan_i2v)
    settings = {"model": str(tiny_wans["i2v"]), "num_frames": 5}
    return {
        "benchmark": committed(context.out, "benchmark"),
        "train_video4edit": committed(trained, "train_video4edit", settings),
    }


@pytest.fixture
def run(given, tiny_wans, tmp_path, monkeypatch):  # noqa: F811
    """Runs the stage with its shards done in this process; returns its rows by item and method."""

    def call(name="edit", methods=METHODS, **video):
        context = make_context(tmp_path / name, "edit")

        def in_process(shards, work, **options):
            for shard in shards:
                work(shard)

        monkeypatch.setattr("stages.edit.stage.run_shards", in_process)
        settings = {"model": str(tiny_wans["i2v"]), "num_inference_steps": 3} | video
        edit_images(given, EditConfig(methods=methods, video=settings), context)
        names = [name for name in context.out.list(".parquet", recursive=True) if name.startswith("edits/")]
        rows = [row for name in names for row in context.out.read_table(name).to_pylist()]
        return {(row["item_id"], row["method"]): row for row in rows}

    return call


def frames_of(data: bytes) -> list[np.ndarray]:
    image = Image.open(io.BytesIO(data))
    frames = []
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        frames.append(np.asarray(image.convert("RGB")))
    return frames


def test_the_edit_is_the_last_frame_of_the_pipelines_clip(run, given, tiny_wans):  # noqa: F811
    rows = run(keep_clips=True, guidance_scale=3.0)
    items = given["benchmark"].folder.read_table("benchmark.parquet").to_pylist()
    assert set(rows) == {(item["item_id"], method) for item in items for method in METHODS}
    pipeline = WanImageToVideoPipeline.from_pretrained(tiny_wans["i2v"])
    pipeline.scheduler = EvenSteps.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    item = items[1]
    noise = torch.randn(1, 32, 64, generator=flow.item_generator(item["item_id"], 0))
    for method in reversed(METHODS):
        if method == "video4edit":
            pipeline.load_lora_weights(given["train_video4edit"].folder.local("adapter"), weight_name=ADAPTER_FILE)
        theirs = pipeline(
            image=Image.open(io.BytesIO(item["image"])), prompt=item["instruction"], negative_prompt="", height=32,
            width=32, num_frames=5, num_inference_steps=3, guidance_scale=3.0, latents=unpack(noise, GRID),
            output_type="np",
        ).frames[0]  # fmt: skip
        row = rows[item["item_id"], method]
        clip, (edit,) = frames_of(row["clip"]), frames_of(row["image"])
        assert len(clip) == 5 and np.array_equal(clip[-1], edit)
        assert np.abs(np.stack(clip) / 255 - theirs).max() < 1.01 / 255
    assert rows[item["item_id"], METHODS[0]]["image"] != rows[item["item_id"], METHODS[1]]["image"]


def test_clips_are_kept_on_request_alone(run):
    kept, plain = run("kept", METHODS[1:], keep_clips=True), run("plain", METHODS[1:])
    assert all(row["clip"] for row in kept.values()) and not any(row["clip"] for row in plain.values())
    assert {key: row["image"] for key, row in kept.items()} == {key: row["image"] for key, row in plain.items()}


def test_a_student_of_another_model_or_length_is_refused(run, tiny_wans):  # noqa: F811
    with pytest.raises(UserError, match="edit has .*flf2v.*--set edit.video.model="):
        run("model", model=str(tiny_wans["flf2v"]))
    with pytest.raises(UserError, match="num_frames=5, edit has 9.*--set edit.video.num_frames=5"):
        run("length", num_frames=9)


def test_the_models_of_the_methods_alone_belong_to_the_fingerprint(tiny_wans):  # noqa: F811
    video = {"model": str(tiny_wans["i2v"])}
    assert str(tiny_wans["i2v"]) in edit_sources(EditConfig(methods=METHODS[1:], video=video))
    assert str(tiny_wans["i2v"]) not in edit_sources(EditConfig(methods=("copy",), video=video))


def test_a_student_that_was_trained_whole_edits_with_its_own_weights(run, given, tiny_wans, tmp_path):  # noqa: F811
    student = new_transformer("i2v", seed=11)
    student.save_pretrained(tmp_path / "whole" / "transformer")
    pipeline = WanImageToVideoPipeline.from_pretrained(tiny_wans["i2v"])
    pipeline.transformer = student
    pipeline.save_pretrained(tmp_path / "model")
    wanted = run("wanted", METHODS[1:], model=str(tmp_path / "model"))
    settings = {"model": str(tiny_wans["i2v"]), "num_frames": 5, "weights": "full"}
    given["train_video4edit"] = committed(Folder(tmp_path / "whole"), "train_video4edit", settings)
    found = run("found")
    for (item_id, method), row in wanted.items():
        assert row["image"] == found[item_id, "video4edit"]["image"] != found[item_id, method]["image"]
