"""The video models' training learns, goes on to the bit, and gives the models what diffusers' pipelines give them."""

import re

import numpy as np
import pytest
import torch

from stages.starter import clips, wan_autoencoder, wan_encoders, wan_generator, wan_measure, world
from stages.starter.progress import Progress
from stages.starter.wan_pretrain import SHARED, WanPretrainSettings, as_pipeline, train_wan, write_pipelines

TINY = WanPretrainSettings(
    autoencoder={
        "num_picture_steps": 1,
        "num_clip_steps": 1,
        "num_pictures": 2,
        "num_clips": 2,
        "pool_size": 4,
        "checkpoint_seconds": 0,
    },
    encoders={"num_steps": 2, "batch_size": 2, "checkpoint_seconds": 0},
    transformers={
        "num_steps": 2,
        "num_later_steps": 2,
        "num_text_steps": 2,
        "batch_size": 2,
        "num_clips": 3,
        "checkpoint_seconds": 0,
    },
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    tokenizer = wan_encoders.new_tokenizer()
    encoders = (
        tokenizer,
        wan_encoders.new_text_encoder(tokenizer).eval(),
        wan_encoders.new_image_processor(),
        wan_encoders.new_image_encoder().eval(),
    )
    return wan_autoencoder.new_wan_autoencoder().eval(), encoders


def last_loss(lines: list[str]) -> float:
    return float(re.search(r"loss (\S+?),? ", lines[-1]).group(1))


@pytest.mark.parametrize("kind", wan_generator.KINDS)
def test_a_few_steps_of_a_transformer_lower_the_loss(kind, untrained, tmp_path):
    lines: dict[int, list[str]] = {1: [], 8: []}
    for num_steps, log in lines.items():
        settings = wan_generator.TransformerSettings(
            num_steps=num_steps, batch_size=4, num_clips=1, warmup_steps=1, learning_rate=1e-2
        )
        wan_generator.train_wan_transformer(kind, *untrained, tmp_path / f"{num_steps}", settings, log.append)
    # The mean of all steps, the first one included; where nothing is learned it is what it was.
    assert last_loss(lines[8]) < 0.9 * last_loss(lines[1])


@pytest.mark.parametrize("kind", wan_generator.KINDS[1:])
def test_what_begins_at_another_transformer_has_its_weights(kind):
    trained, model = (wan_generator.new_wan_transformer(k) for k in ("i2v", kind))
    wan_generator.begin_at(model, trained)
    theirs, own = trained.state_dict(), model.state_dict()
    assert set(own) - set(theirs) == ({"condition_embedder.image_embedder.pos_embed"} if kind == "flf2v" else set())
    different = {name for name in own if name in theirs and not torch.equal(own[name], theirs[name])}
    assert different == (set() if kind == "flf2v" else {"patch_embedding.weight"})
    assert torch.equal(own["patch_embedding.weight"][:, :16], theirs["patch_embedding.weight"][:, :16])


def test_a_few_steps_of_the_autoencoder_lower_the_loss(tmp_path):
    lines: dict[int, list[str]] = {1: [], 7: []}
    for num_steps, log in lines.items():
        settings = wan_autoencoder.AutoencoderSettings(
            num_picture_steps=num_steps // 2,
            num_clip_steps=num_steps - num_steps // 2,
            num_pictures=2,
            num_clips=1,
            pool_size=2,
            warmup_steps=3,
            ema_decay=0.5,
        )
        wan_autoencoder.train_wan_autoencoder(tmp_path / f"{num_steps}", settings, log.append)
    assert last_loss(lines[7]) < 0.8 * last_loss(lines[1])


def test_a_killed_training_ends_like_an_undisturbed_one(tmp_path, monkeypatch):
    train_wan(tmp_path / "whole", tmp_path / "work", TINY, log=lambda line: None)
    step, num_steps = Progress.step, 0

    def killing_step(progress):
        nonlocal num_steps
        num_steps += 1
        if num_steps % 6 == 3:
            raise KeyboardInterrupt
        step(progress)

    monkeypatch.setattr(Progress, "step", killing_step)
    num_kills, done = 0, False
    while not done:
        try:
            train_wan(tmp_path / "resumed", tmp_path / "work2", TINY, log=lambda line: None)
            done = True
        except KeyboardInterrupt:
            num_kills += 1
    assert num_kills >= 2
    whole, resumed = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))}
        for name in ("whole", "resumed")
    )
    assert whole == resumed and sum(path.suffix == ".safetensors" for path in whole) >= 6


def test_texts_of_32_tokens_give_what_512_give(untrained):
    tokenizer, text_encoder, _, _ = untrained[1]
    texts = [clip.caption for clip in wan_autoencoder.clip_pool(2, seed=1)[0]] + [""]
    for kind in wan_generator.KINDS:
        model = wan_generator.new_wan_transformer(kind).eval()
        noisy = torch.randn(3, model.config.in_channels, 2, 8, 8)
        images = None if kind == "t2v" else torch.randn(6 if kind == "flf2v" else 3, 17, 64)
        with torch.no_grad():
            arguments = {"timestep": torch.tensor([3.0, 500.0, 999.0]), "encoder_hidden_states_image": images}
            long, short = (wan_encoders.embed_texts(text_encoder, tokenizer, texts, n) for n in (512, 32))
            expected = model(noisy, encoder_hidden_states=long, **arguments).sample
            wan_generator.count_padding(model)
            torch.testing.assert_close(model(noisy, encoder_hidden_states=short, **arguments).sample, expected)


@pytest.mark.parametrize("kind", ["i2v", "flf2v"])
def test_what_a_transformer_is_given_is_what_the_pipeline_gives_it(kind, untrained, tmp_path):
    autoencoder, encoders = untrained
    pool = wan_generator.Pool(kind, autoencoder, encoders[0], tmp_path, num_clips=2)
    pipeline = as_pipeline(kind, wan_generator.new_wan_transformer(kind), autoencoder, encoders)
    seen = {}
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    frames = pool.frames[0].permute(1, 2, 3, 0).numpy()
    last = frames[-1] if kind == "flf2v" else None
    wan_measure.make_clip(pipeline, "night falls", frames[0], last, num_inference_steps=1)
    hook.remove()
    torch.testing.assert_close(seen["hidden_states"][0, 16:], pool.condition[0], atol=2e-4, rtol=0)
    pixel_values = wan_encoders.to_pixel_values(pool.ends(torch.tensor([0])), encoders[2])
    image_embeds = wan_encoders.embed_images(encoders[3], pixel_values)
    torch.testing.assert_close(
        seen["encoder_hidden_states_image"].flatten(0, 1), image_embeds.flatten(0, 1), atol=1e-4, rtol=0
    )


def test_no_instruction_is_among_the_texts_of_the_transformers(untrained, tmp_path):
    tokenizer = untrained[1][0]
    commands = {tokenizer.convert_tokens_to_ids(f"▁{word}") for word in ("make", "replace", "remove", "add", "turn")}
    for kind in wan_generator.KINDS:
        pool = wan_generator.Pool(kind, untrained[0], tokenizer, tmp_path, num_clips=24)
        assert not commands & set(pool.ids.unique().tolist())
        assert (pool.ids == tokenizer.eos_token_id).any(dim=1).all()  # no text is cut off


def test_shared_parts_are_stored_once(untrained, tmp_path):
    models = {kind: wan_generator.new_wan_transformer(kind) for kind in wan_generator.KINDS}
    write_pipelines(tmp_path / "wan", models, *untrained)
    for kind in models:
        for link in (path for path in (tmp_path / "wan" / kind).iterdir() if path.name in SHARED):
            assert link.is_symlink() and not link.readlink().is_absolute() and link.resolve().is_dir()


def test_true_middle_frames_lie_on_the_way_and_others_do_not():
    generator = np.random.default_rng(8)
    for kind in world.EDIT_TYPES:
        clip = clips.sample_clip(generator, (kind,))
        frames = clips.render_clip(clip)
        assert all(wan_measure.is_between(frame, clip) for frame in frames)
        others = clips.render_clip(clips.sample_clip(generator, (kind,)))
        assert not any(wan_measure.is_between(frame, clip) for frame in others)
        progress = [wan_measure.progress_of(frame, frames[0], frames[-1]) for frame in frames]
        assert progress[0] == 0 and progress[-1] == pytest.approx(1) and (np.diff(progress) > 0.02).all()
