"""The starter's Wan transformers: text, image, or first and last frame to video; rectified flow on clips.

Image to video hears what happens, in evolution captions, never an instruction; first and last frame to video hears
the same and sees both ends; text to video hears the whole clip. The latter two begin at the first one's weights, so
that, as with Wan's own, their hidden states can be compared.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from stages.starter import wan_autoencoder, wan_encoders
from stages.starter.progress import Progress, TrainingSettings

Kind = Literal["t2v", "i2v", "flf2v"]
KINDS: tuple[Kind, ...] = ("i2v", "flf2v", "t2v")
NUM_TEXT_TOKENS = 32  # the longest caption of a clip has 25 and an end token; the last one stands for all padding
NUM_CONDITION_CHANNELS = 4 + wan_autoencoder.NUM_CHANNELS  # a mask of four frames a latent, and latents


class TransformerSettings(TrainingSettings):
    """Sizes of a transformer's training: the defaults take about an hour and a half on one core."""

    num_steps: int = 3600  # of image to video,
    num_later_steps: int = 600  # of first and last frame to video, and
    num_text_steps: int = 5000  # of text to video, which both begin at its weights
    batch_size: int = 32
    num_clips: int = 6000
    empty_share: float = 0.1  # of the texts are empty, so that the models can be guided away from no text


def new_wan_transformer(kind: Kind):
    """An untrained WanTransformer3DModel of width 96, laid out as Wan 2.1's of this kind."""
    from diffusers import WanTransformer3DModel

    sees_images = kind != "t2v"
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=wan_autoencoder.NUM_CHANNELS + (NUM_CONDITION_CHANNELS if sees_images else 0),
        out_channels=wan_autoencoder.NUM_CHANNELS,
        text_dim=wan_encoders.HIDDEN_SIZE,
        freq_dim=64,
        ffn_dim=256,
        num_layers=4,
        image_dim=wan_encoders.HIDDEN_SIZE if sees_images else None,
        added_kv_proj_dim=96 if sees_images else None,
        rope_max_seq_len=64,
        pos_embed_seq_len=2 * wan_encoders.NUM_IMAGE_TOKENS if kind == "flf2v" else None,
    )


def begin_at(model: nn.Module, trained: nn.Module) -> None:
    """Gives a transformer the weights of a trained one of another kind, wherever both have them.

    The first input channels, the noised clip's, are the same in all kinds.
    """
    weights, own = trained.state_dict(), model.state_dict()
    found = {name: weights[name] for name in own if name in weights}
    found["patch_embedding.weight"] = weights["patch_embedding.weight"][:, : own["patch_embedding.weight"].shape[1]]
    model.load_state_dict(found, strict=False)


class CountedPaddingProcessor:
    """Cross-attention to texts of 32 tokens that gives what the library's gives at 512.

    Behind a text's end all tokens are the same, so one of them, counted as often as it would stand there, is enough:
    its logit gains the logarithm of that number. Training takes a fraction of the time.
    """

    def __init__(self) -> None:
        num_left_out = wan_encoders.MAX_SEQUENCE_LENGTH - NUM_TEXT_TOKENS
        self.bias = torch.zeros(1, NUM_TEXT_TOKENS)
        self.bias[0, -1] = math.log(num_left_out + 1)

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, rotary_emb=None):
        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        image, text = encoder_hidden_states.split(
            [encoder_hidden_states.shape[1] - NUM_TEXT_TOKENS, NUM_TEXT_TOKENS], dim=1
        )
        query = heads(attn.norm_q(attn.to_q(hidden_states)))
        key, value = heads(attn.norm_k(attn.to_k(text))), heads(attn.to_v(text))
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
        if attn.add_k_proj is not None:
            key, value = heads(attn.norm_added_k(attn.add_k_proj(image))), heads(attn.add_v_proj(image))
            attended = attended + functional.scaled_dot_product_attention(query, key, value)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


def count_padding(transformer: nn.Module) -> None:
    """Lets the transformer take texts of 32 tokens in place of 512, to the same result."""
    for block in transformer.blocks:
        block.attn2.set_processor(CountedPaddingProcessor())


def frame_mask(kind: Kind) -> torch.Tensor:
    """1 where a frame is given, `[4, 2, 8, 8]`: the first frame fills all four of its latent, the last is a fourth."""
    mask = torch.zeros(4, *wan_autoencoder.LATENT_SHAPE[1:])
    mask[:, 0] = 1
    if kind == "flf2v":
        mask[3, 1] = 1
    return mask


GIVEN = {"i2v": wan_autoencoder.first_frame_condition, "flf2v": wan_autoencoder.both_ends_condition}


class Pool:
    """Clips as a transformer is trained on them: frames, latents, what it is given of them, texts.

    Latents are kept in the folder `work`, where they serve all kinds.
    """

    def __init__(self, kind: Kind, autoencoder, tokenizer, work: pathlib.Path, num_clips: int):
        drawn, self.frames = wan_autoencoder.clip_pool(num_clips, seed=50)
        self.kind, self.condition = kind, None
        pixels = wan_autoencoder.to_range(self.frames)
        self.latents = wan_autoencoder.encode_once(work / "latents_clips.safetensors", autoencoder, pixels)
        if kind in GIVEN:
            given = wan_autoencoder.encode_once(work / f"latents_{kind}.safetensors", autoencoder, GIVEN[kind](pixels))
            self.condition = torch.cat([frame_mask(kind).expand(len(given), -1, -1, -1, -1), given], dim=1)
        texts = [clip.caption if kind == "t2v" else clip.evolution_caption for clip in drawn]
        self.ids, self.mask = wan_encoders.tokenize(tokenizer, [*texts, ""], NUM_TEXT_TOKENS)

    def ends(self, rows: torch.Tensor) -> torch.Tensor:
        """The frames that this kind of model sees, uint8 `[B, 3, 32, 32]`, or twice as many, first and last in turn."""
        if self.kind == "i2v":
            return self.frames[rows, :, 0]
        return self.frames[rows][:, :, [0, -1]].transpose(1, 2).flatten(0, 1)


def train_wan_transformer(
    kind: Kind,
    autoencoder,
    encoders,
    checkpoint: pathlib.Path,
    settings: TransformerSettings | None = None,
    log: Callable[[str], None] = print,
    begin: nn.Module | None = None,
):
    """Rectified flow on clips with frozen autoencoder and encoders (as `train_encoders` returns them); EMA weights.

    Begins at the weights of `begin`, a trained transformer of another kind, where it is given, and goes on from
    `checkpoint`. Every draw is a function of the step, so a run in two parts equals one in one part.
    """
    settings = settings or TransformerSettings()
    tokenizer, text_encoder, image_processor, image_encoder = encoders
    torch.manual_seed(settings.seed)
    model = new_wan_transformer(kind)
    if begin is not None:
        begin_at(model, begin)
    num_steps = settings.num_steps
    if begin is not None:
        num_steps = settings.num_text_steps if kind == "t2v" else settings.num_later_steps
    library_processors = [block.attn2.processor for block in model.blocks]
    count_padding(model)
    progress = Progress(checkpoint, model, settings, num_steps)
    pool = None if progress.finished else Pool(kind, autoencoder, tokenizer, checkpoint.parent, settings.num_clips)
    draw = torch.Generator()
    losses: list[float] = []
    while not progress.finished:
        draw.manual_seed(progress.num_steps)
        rows = torch.randint(settings.num_clips, (settings.batch_size,), generator=draw)
        clean = pool.latents[rows]
        t = torch.randn(len(rows), generator=draw).sigmoid()
        noise = torch.randn(clean.shape, generator=draw)
        noisy = torch.lerp(clean, noise, t.view(-1, 1, 1, 1, 1))
        empty = torch.rand(len(rows), generator=draw) < settings.empty_share
        text_rows = rows.masked_fill(empty, settings.num_clips)
        with torch.no_grad():
            mask = pool.mask[text_rows]
            prompt_embeds = text_encoder(pool.ids[text_rows], mask).last_hidden_state * mask[..., None]
            image_embeds = None
            if kind != "t2v":
                noisy = torch.cat([noisy, pool.condition[rows]], dim=1)
                pixel_values = wan_encoders.to_pixel_values(pool.ends(rows), image_processor)
                image_embeds = wan_encoders.embed_images(image_encoder, pixel_values)
        velocity = model(
            hidden_states=noisy,
            timestep=t * 1000,
            encoder_hidden_states=prompt_embeds,
            encoder_hidden_states_image=image_embeds,
            return_dict=False,
        )[0]
        loss = (velocity - (noise - clean)).square().mean()
        loss.backward()
        progress.step()
        losses.append(loss.item())
        if progress.num_steps % 100 == 0 or progress.finished:
            recent = losses[-100:]
            log(
                f"wan {kind} step {progress.num_steps}/{num_steps} "
                f"loss {sum(recent) / len(recent):.4f}, {progress.spent:.0f} s"
            )
        if progress.due:
            progress.save()
    progress.use_average()
    for block, processor in zip(model.blocks, library_processors, strict=True):
        block.attn2.set_processor(processor)
    return model.eval().requires_grad_(False)
