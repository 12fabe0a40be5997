"""The starter's encoders for Wan: UMT5 for what happens in clips, CLIP for what pictures show, taught to read by
throw-away heads and then frozen."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stages.starter import clips, text_encoders, world
from stages.starter.progress import Progress, TrainingSettings

HIDDEN_SIZE = 64
PATCH_SIZE = 8
NUM_IMAGE_TOKENS = (world.IMAGE_SIZE // PATCH_SIZE) ** 2 + 1
MAX_SEQUENCE_LENGTH = 512  # what Wan's transformers take, whatever the text's length
EVOLUTION_WORDS = (
    "then the a turns morphs into shifts from to fades in out moves night falls day breaks nothing changes"
)
OBJECT_CLASSES = (None, *((shape, color) for shape in world.SHAPES for color in world.COLORS))


class EncoderSettings(TrainingSettings):
    """Sizes of the encoders' training: the defaults take about two minutes on one core."""

    num_steps: int = 800
    batch_size: int = 48


def new_tokenizer():
    """A T5Tokenizer with a token for each word of captions, instructions and evolution captions."""
    return text_encoders.new_t5_tokenizer(EVOLUTION_WORDS.split(), MAX_SEQUENCE_LENGTH)


def new_text_encoder(tokenizer):
    """An untrained UMT5EncoderModel of width 64."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=HIDDEN_SIZE,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=64,
        )
    )


def new_image_encoder():
    """An untrained CLIPVisionModel of width 64: 17 tokens a picture. Wan reads the states before its last layer."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=HIDDEN_SIZE,
            intermediate_size=2 * HIDDEN_SIZE,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=world.IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=HIDDEN_SIZE,
        )
    )


def new_image_processor():
    """The CLIPImageProcessor for it: pictures keep their 32x32 pixels."""
    from transformers import CLIPImageProcessor

    size = world.IMAGE_SIZE
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def to_pixel_values(frames: torch.Tensor, image_processor) -> torch.Tensor:
    """uint8 frames `[B, 3, 32, 32]` as the processor gives them, without its way through PIL."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (image_processor.image_mean, image_processor.image_std))
    return (frames.float() / 255 - mean) / std


@torch.no_grad()
def embed_images(image_encoder, pixel_values: torch.Tensor) -> torch.Tensor:
    """The states `[B, 17, 64]` that WanImageToVideoPipeline gives the transformer."""
    return image_encoder(pixel_values, output_hidden_states=True).hidden_states[-2]


def tokenize(tokenizer, texts: Sequence[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask `[B, length]`."""
    tokens = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask


@torch.no_grad()
def embed_texts(text_encoder, tokenizer, texts: Sequence[str], length: int = MAX_SEQUENCE_LENGTH) -> torch.Tensor:
    """Embeddings `[B, length, 64]`, zero behind each text's end, as Wan's pipelines make them."""
    ids, mask = tokenize(tokenizer, texts, length)
    return text_encoder(ids, mask).last_hidden_state * mask[..., None]


def _classes(scene: world.Scene) -> list[int]:
    found = [0] * len(world.PLACES)
    for scene_object in scene.objects:
        found[scene_object.place] = OBJECT_CLASSES.index((scene_object.shape, scene_object.color))
    return [*found, list(world.BACKGROUNDS).index(scene.background), world.STYLES.index(scene.style)]


def _reading_loss(logits: Sequence[torch.Tensor], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of all questions, and for each row whether all answers are right; targets `[B, Q]`."""
    losses = [functional.cross_entropy(part, targets[:, i]) for i, part in enumerate(logits)]
    right = torch.stack([part.argmax(-1) == targets[:, i] for i, part in enumerate(logits)]).all(dim=0)
    return torch.stack(losses).mean(), right


class _Readers(nn.Module):
    """Both encoders with throw-away heads: what stands where, the background and the style.

    The text encoder answers for the first and the last frame of a clip from its caption, through one learned query
    for each answer, and guesses hidden words of other texts; the image encoder answers for a picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = new_tokenizer()
        self.text_encoder = new_text_encoder(self.tokenizer)
        self.image_encoder = new_image_encoder()
        self.image_processor = new_image_processor()
        of_places, of_all = [len(OBJECT_CLASSES)] * len(world.PLACES), [len(world.BACKGROUNDS), len(world.STYLES)]
        self.queries = nn.Parameter(torch.randn(2 * len(of_places + of_all), HIDDEN_SIZE) * 0.1)
        self.attention = nn.MultiheadAttention(HIDDEN_SIZE, 4, batch_first=True)
        self.of_text = nn.ModuleList(nn.Linear(HIDDEN_SIZE, num) for num in 2 * (of_places + of_all))
        self.of_quadrant = nn.ModuleList(nn.Linear(4 * HIDDEN_SIZE, num) for num in of_places)
        self.of_picture = nn.ModuleList(nn.Linear(HIDDEN_SIZE, num) for num in of_all)

    def text_loss(self, texts: Sequence[str], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = tokenize(self.tokenizer, texts, 32)
        states = self.text_encoder(ids, mask).last_hidden_state
        queries = self.queries.expand(len(texts), -1, -1)
        answers, _ = self.attention(queries, states, states, key_padding_mask=mask == 0, need_weights=False)
        return _reading_loss([head(answers[:, i]) for i, head in enumerate(self.of_text)], targets)

    def word_loss(self, texts: Sequence[str], draw: torch.Generator) -> torch.Tensor:
        """Hidden words are guessed from the rest of the text, as T5 was taught."""
        ids, mask = tokenize(self.tokenizer, texts, 32)
        hidden = (torch.rand(ids.shape, generator=draw) < 0.25) & (mask > 0) & (ids != self.tokenizer.eos_token_id)
        mask_id = self.tokenizer.convert_tokens_to_ids("<extra_id_0>")
        states = self.text_encoder(ids.masked_fill(hidden, mask_id), mask).last_hidden_state[hidden]
        logits = states @ self.text_encoder.get_input_embeddings().weight.T * HIDDEN_SIZE**-0.5
        return functional.cross_entropy(logits, ids[hidden])

    def image_loss(self, frames: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Heads on the last two layers' states: the one that Wan reads and the one that the model ends with."""
        output = self.image_encoder(to_pixel_values(frames, self.image_processor), output_hidden_states=True)
        losses = []
        for states in output.hidden_states[-2:]:
            patches = states[:, 1:].unflatten(1, (2, 2, 2, 2)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
            logits = [head(patches[:, i].flatten(1)) for i, head in enumerate(self.of_quadrant)]
            loss, right = _reading_loss(logits + [head(states.mean(1)) for head in self.of_picture], targets)
            losses.append(loss)
        return sum(losses), right


def _draw_step(settings: EncoderSettings, step: int) -> tuple[list[clips.Clip], list[str], torch.Tensor]:
    """Clips to read of, other texts, and the pictures `[B, 3, 32, 32]` of the clips' first scenes."""
    generator = np.random.default_rng([settings.seed, 40, step])
    drawn = [clips.sample_clip(generator) for _ in range(settings.batch_size)]
    texts = [clip.evolution_caption for clip in drawn[: settings.batch_size // 2]]
    texts += text_encoders.sample_texts(settings.batch_size // 2, generator)
    frames = np.stack([world.render(clip.source) for clip in drawn])
    return drawn, texts, torch.from_numpy(frames).permute(0, 3, 1, 2)


def train_encoders(
    checkpoint: pathlib.Path, settings: EncoderSettings | None = None, log: Callable[[str], None] = print
):
    """Trains both encoders; returns (tokenizer, text encoder, image processor, image encoder), averaged weights.

    Goes on from `checkpoint`. Every draw is a function of the step, so a run in two parts equals one in one part.
    """
    settings = settings or EncoderSettings()
    torch.manual_seed(settings.seed)
    readers = _Readers()
    progress = Progress(checkpoint, readers, settings, settings.num_steps)
    draw = torch.Generator()
    while not progress.finished:
        draw.manual_seed(progress.num_steps)
        drawn, texts, frames = _draw_step(settings, progress.num_steps)
        said = [_classes(c.source) + _classes(c.target) for c in drawn]
        seen = [_classes(c.source) for c in drawn]
        of_text, text_right = readers.text_loss([c.caption for c in drawn], torch.tensor(said))
        of_words = readers.word_loss(texts, draw)
        of_images, image_right = readers.image_loss(frames, torch.tensor(seen))
        (of_text + 0.1 * of_words + of_images).backward()
        progress.step()
        if progress.num_steps % 100 == 0 or progress.finished:
            log(
                f"wan encoders step {progress.num_steps}/{settings.num_steps} texts {of_text.item():.3f} "
                f"({text_right.float().mean():.2f} right) words {of_words.item():.3f} images {of_images.item():.3f} "
                f"({image_right.float().mean():.2f} right), {progress.spent:.0f} s"
            )
        if progress.due:
            progress.save()
    progress.use_average()
    readers.eval().requires_grad_(False)
    return readers.tokenizer, readers.text_encoder, readers.image_processor, readers.image_encoder
