"""The clips stage: training videos that the text-to-video model makes itself, a style in every prompt (ByG, section 5).

No source video is needed, and none has an edit: the model to be trained draws what it will learn from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import Field

from cluster.artifacts import Artifact
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.shards import name_shards, run_shards
from stages.encode.rows import TEXT_FIELDS
from stages.encode.stage import in_batches
from stages.train.backbones.models import Device, Dtype, model_sources, resolved_device, resolved_model

if TYPE_CHECKING:
    import torch

    from stages.train.backbones.backbone import Backbone, BackboneEncoder

PROMPT_COLUMNS = ("caption_id", "style", "prompt", *TEXT_FIELDS, "outcome")
CLIPS_SCHEMA = pa.schema(
    [
        ("caption_id", pa.string()),
        ("clip", pa.binary()),
        ("style", pa.string()),
        *((name, pa.string()) for name in TEXT_FIELDS),
    ]
)


class ClipsConfig(StageConfig):
    """The model that makes the clips, and how it samples."""

    model: str = Field("stages/starter/models/wan/t2v", description="A text-to-video pipeline of Wan.")
    num_frames: int = Field(5, ge=2, description="Of a clip, 1 + 4 k.")
    height: int = Field(32, ge=8, description="Pixels; 320 in the paper's training.")
    width: int = Field(32, ge=8, description="Pixels; 576 in the paper's training.")
    num_inference_steps: int = Field(20, ge=1)
    guidance_scale: float = Field(5.0, ge=0, description="Classifier-free; off at 1 and below.")
    negative_prompt: str = ""
    seed: int = Field(0, ge=0)
    dtype: Dtype = "float32"
    max_text_tokens: int = Field(512, ge=1, description="Of a prompt, at most the model's own limit.")
    shard_size: int = Field(32, ge=1, description="Clips in one shard.")
    batch_size: int = runtime(16, ge=1)
    num_workers: int = runtime(1, ge=1)
    num_cpus: float = runtime(1, ge=0, description="Of each worker.")
    num_gpus: float = runtime(0, ge=0, description="Of each worker.")
    device: Device = runtime("auto")


def clips_sources(config: ClipsConfig) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    return model_sources(config.model)


def make_clips(inputs: Mapping[str, Artifact], config: ClipsConfig, context: Context) -> None:
    """Writes `clips/*.parquet` (CLIPS_SCHEMA): a clip of every prompt of `video_prompts` that is ok.

    Raises:
        UserError: no prompt is ok, the model can't be loaded or doesn't make clips of this size.
    """
    prompts = ok_prompts(inputs["video_prompts"].folder)
    shards = name_shards(list(prompts), config.shard_size, prefix="clips/")
    run_shards(
        list(shards),
        ClipShard({name: [prompts[key] for key in keys] for name, keys in shards.items()}, config, context.out),
        context=context,
        num_workers=config.num_workers,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        total=len(prompts),
        unit="clips",
    )
    context.set_rows(len(prompts))


def ok_prompts(folder: Folder) -> dict[str, dict[str, Any]]:
    """The rows of prompts that are ok, by caption_id. Raises UserError if there is none, or one twice."""
    prompts: dict[str, dict[str, Any]] = {}
    for name in folder.tables_with(PROMPT_COLUMNS):
        for row in folder.read_table(name, list(PROMPT_COLUMNS)).to_pylist():
            if row["outcome"] == "ok":
                if row["caption_id"] in prompts:
                    raise UserError(f"clips: {folder.path(name)} has caption {row['caption_id']!r} a second time.")
                prompts[row["caption_id"]] = row
    if not prompts:
        raise UserError(
            f"clips: {folder.url} has no prompt that is ok (columns {', '.join(PROMPT_COLUMNS)}). Look at the "
            "outcomes of stage video_prompts."
        )
    return prompts


@dataclasses.dataclass
class ClipShard:
    """Samples the clips of one shard; the model is loaded at the first and kept."""

    shards: Mapping[str, Sequence[Mapping[str, Any]]]
    config: ClipsConfig
    out: Folder
    backbone: Backbone | None = None
    encoder: BackboneEncoder | None = None
    transformer: torch.nn.Module | None = None
    negative: dict[str, torch.Tensor] | None = None

    def __call__(self, shard: str) -> None:
        from stages.train.backbones.clip_files import write_clip
        from stages.train.backbones.pictures import to_clips

        if self.backbone is None:
            self._load()
        rows, config = [], self.config
        for batch in in_batches(self.shards[shard], config.batch_size):
            tokens = self.sample([row["caption_id"] for row in batch], [row["prompt"] for row in batch])
            clips = to_clips(self.encoder.decode_pixels(tokens, config.height, config.width))
            rows += [dict(row) | {"clip": write_clip(clip)} for row, clip in zip(batch, clips, strict=True)]
        rows = [{name: row[name] for name in CLIPS_SCHEMA.names} for row in rows]
        self.out.write_table(shard, pa.Table.from_pylist(rows, CLIPS_SCHEMA))

    def sample(self, ids: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        """The tokens `[B, N, C]` of clips of these prompts; a clip's noise hangs on its id alone."""
        import torch

        from stages.train import flow

        config, encoder = self.config, self.encoder
        grid = encoder.grid(config.height, config.width)
        shape = (grid[0] * grid[1] * grid[2], encoder.token_channels)
        noise = torch.stack([torch.randn(shape, generator=flow.item_generator(key, config.seed)) for key in ids])
        text, dtype = encoder.encode_text(prompts), getattr(torch, config.dtype)
        without = None
        if config.guidance_scale > 1:
            if self.negative is None:
                self.negative = encoder.encode_text([config.negative_prompt])
            without = {name: tensor.expand(len(ids), *tensor.shape[1:]) for name, tensor in self.negative.items()}

        def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            x_t = x_t.to(dtype)
            v = self.backbone.velocity(self.transformer, x_t, t, text, None, grid, 1.0, "shared")
            if without is None:
                return v
            free = self.backbone.velocity(self.transformer, x_t, t, without, None, grid, 1.0, "shared")
            return free + config.guidance_scale * (v - free)

        nodes = flow.sampling_nodes(config.num_inference_steps, encoder.shift(shape[0]))
        with torch.no_grad():
            return flow.euler(velocity, noise.to(encoder.device), nodes.to(encoder.device))

    def _load(self) -> None:
        """Raises UserError if the model can't be loaded, makes no clips, or not of this size."""
        import torch

        from stages.train.backbones import wan
        from stages.train.backbones.backbone import load_network, loading

        config = self.config
        model, device = resolved_model(config.model), resolved_device(config.device)
        dtype = getattr(torch, config.dtype)
        with loading(config.model, "clips.model") as self.backbone:
            if self.backbone is not wan:
                raise UserError(
                    f"clips: {config.model} makes no clips from texts alone. Name a WanPipeline with "
                    "--set clips.model=..."
                )
            self.encoder = wan.Encoder(model, device, dtype, config.max_text_tokens, config.num_frames)

            def load(part: str) -> torch.nn.Module:
                return wan.TRANSFORMER.from_pretrained(model, subfolder=part, torch_dtype=dtype, use_safetensors=True)

            self.transformer = load_network(model, load).to(device).eval().requires_grad_(False)
        side = self.encoder.token_size
        if config.height % side or config.width % side:
            raise UserError(
                f"clips: {config.width}x{config.height} pixels; this model works on sides that are multiples of "
                f"{side}. Set clips.width and clips.height so."
            )
