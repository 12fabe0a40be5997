"""Previews of clips: whole clips by the path of inference, scored frame by frame."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.folder import Folder
from stages.edit.editors import InstructionEditor
from stages.edit.editors import Item as EditItem
from stages.edit.sampler import Sampler
from stages.starter.stages import VideoValidationConfig, make_video_benchmark
from stages.train import preview as previews
from stages.train.data import EncodedData, rows_shard, texts_shard, write_rows, write_texts
from stages.train.engine import EXPORTED, Trainer
from stages.train.methods import byg
from stages.train.preview import METRICS, Preview, read_items
from stages.train.settings import TrainByGVideoConfig
from tests.stages.ingest.context import make_context
from tests.tiny_wan import HIDDEN_SIZE, save_tiny_wan

NUM_STEPS = 3


@pytest.fixture
def trainer(tmp_path) -> Trainer:
    """ByG on two random clips, with a LoRA of random numbers."""
    model = save_tiny_wan(tmp_path / "model", "t2v")
    folder, draw = Folder(tmp_path / "encoded"), torch.Generator().manual_seed(1)
    write_texts(folder, texts_shard(0), ["a"], {"prompt_embeds": torch.randn(1, 512, HIDDEN_SIZE, generator=draw)})
    texts = {name: ["a", "a"] for name in byg.TEXTS}
    write_rows(folder, rows_shard(0), ["0", "1"], {"source": torch.randn(2, 32, 64)}, texts, (2, 4, 4))
    data = EncodedData.load(tmp_path / "encoded", byg.LATENTS, byg.TEXTS)
    trainer = Trainer(TrainByGVideoConfig(model=str(model), rank=4, batch_size=2), data, torch.device("cpu"))
    with torch.no_grad():
        trainer.student.flat.copy_(0.2 * torch.randn(trainer.student.flat.shape, generator=draw))
    return trainer


def test_a_preview_is_the_editors_clip_of_the_whole_source(trainer, tmp_path, monkeypatch):
    context = make_context(tmp_path, "video_validation")
    make_video_benchmark({}, VideoValidationConfig(num_items=3), context)
    items = read_items(context.out, 2, 5)
    assert [len(item.frames) for item in items] == [5, 5]
    seen = []
    preview = Preview(trainer, items, lambda item, edited: seen.append(edited) or {"metric": 1.0}, NUM_STEPS)
    scores, png = preview()
    assert scores["preview_metric"] == 1.0 and Image.open(io.BytesIO(png)).width > 128
    assert {f"validation_cycle_t{t}" for t in previews._NOISE_LEVELS} <= scores.keys()

    trainer.export(Folder(tmp_path / "out"))
    sampler = Sampler(
        trainer.config.model, {"byg_video": tmp_path / "out" / EXPORTED}, num_inference_steps=NUM_STEPS,
        guidance_scale=1.0, num_frames=5,
    )  # fmt: skip
    monkeypatch.setattr(sampler, "noise", lambda *_: preview.noises[0])
    asked = [EditItem(item.id, item.image, item.instruction, "", "", item.frames) for item in items]
    clips = InstructionEditor(sampler, 0, "byg_video").edit(asked)
    for ours, clip in zip(seen, clips, strict=True):
        theirs = np.stack([np.asarray(frame) for frame in clip])
        assert ours.shape == theirs.shape == (5, 32, 32, 3)
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert set(METRICS["scene"](items[0], seen[0])) == {"edit_success", "preservation", "whole_scene_right"}
