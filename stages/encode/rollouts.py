"""The rollout stage: pairs to the clips of a first/last-frame teacher, in the form that Video4Edit reads.

Training then needs neither autoencoder nor encoders nor the teacher's sampling: each clip is sampled once and kept as
latents, with what teacher and student are given of its pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from PIL import Image
from pydantic import Field

from cluster.artifacts import Artifact
from cluster.config import runtime
from cluster.dag import Context
from cluster.errors import UserError
from stages.encode.rows import Row, Rows, pair_rows
from stages.encode.stage import EncodeConfig, EncodeShard, in_batches, run_encoding
from stages.train.backbones.models import resolved_device, resolved_model

if TYPE_CHECKING:
    import torch

TEXT_FIELDS = ("instruction", "evolution_caption")


class RolloutConfig(EncodeConfig):
    """The teacher, and how it samples."""

    model: str = Field(
        "stages/starter/models/wan/flf2v", description="The teacher: a first/last-frame pipeline of Wan."
    )
    num_frames: int = Field(5, ge=2, description="Of a clip, 1 + 4 k.")
    live: Literal[False] = Field(False, description="Rollouts are always made before the training.")
    captions: Literal["evolve", "pairs"] = Field(
        "evolve", description="Where evolution captions come from: the evolve stage, or the pairs' own column."
    )
    evolution_captions: bool = Field(True, description="The teacher reads these; else the student's instruction.")
    num_inference_steps: int = Field(20, ge=1)
    guidance_scale: float = Field(5.0, ge=0, description="Classifier-free; off at 1 and below.")
    negative_prompt: str = ""
    tail: Literal["clip", "tiled"] = Field(
        "clip", description="The latent that a clip must end in; tiled: as the paper."
    )
    seed: int = Field(0, ge=0)
    shard_size: int = Field(64, ge=1, description="Rows, or texts, in one shard.")
    batch_size: int = runtime(16, ge=1)


class InstructionRolloutConfig(RolloutConfig):
    """A teacher that reads the raw instructions (table 6, teacher w/o ICG)."""

    captions: Literal["evolve", "pairs"] = "pairs"
    evolution_captions: bool = False


def roll_out(inputs: Mapping[str, Artifact], config: RolloutConfig, context: Context) -> None:
    """Samples the teacher's clip of every pair, from the source to the edited picture (Video4Edit, section 3.1).

    Evolution captions come from `evolve` if that is among the inputs, joined by `pair_id`, where pairs whose caption
    isn't ok are left out; else from the column `evolution_caption` of the pairs. Writes `rows/` and `texts/` as
    `stages.train.data` defines them, with the fields that `stages.train.methods.video4edit` reads. Student and
    teacher must share autoencoder and encoders, as Wan 2.1's do.

    Raises:
        UserError: no pair has a caption, a picture doesn't fit the model or the others, the model can't be loaded.
    """
    rows = _captioned_rows(inputs, context) if "evolve" in inputs else _pairs_with_captions(inputs)
    run_encoding(rows, config, context, RolloutShard)


def _captioned_rows(inputs: Mapping[str, Artifact], context: Context) -> Rows:
    """The pairs with the evolve stage's captions; those without one are left out and counted."""
    folder = inputs["evolve"].folder
    columns = ["pair_id", "evolution_caption", "outcome"]
    captions = {
        row["pair_id"]: row["evolution_caption"]
        for file in folder.list(".parquet", recursive=True)
        if file.startswith("captions/")
        for row in folder.read_table(file, columns).to_pylist()
        if row["outcome"] == "ok"
    }
    (given,) = (artifact for name, artifact in inputs.items() if name != "evolve")
    pairs = pair_rows(given.folder, ("instruction",))
    kept = [
        dataclasses.replace(row, texts={**row.texts, "evolution_caption": captions[row.id]})
        for row in pairs.rows
        if row.id in captions
    ]
    if not kept:
        raise UserError(
            f"{context.stage}: none of the {len(pairs.rows)} pairs has a caption in {folder.url}: see rules.json "
            f"there; or take the pairs' own with --set {context.stage}.captions=pairs."
        )
    context.set_figures({"num_pairs_without_caption": len(pairs.rows) - len(kept)})
    return dataclasses.replace(pairs, rows=kept)


def _pairs_with_captions(inputs: Mapping[str, Artifact]) -> Rows:
    (pairs,) = inputs.values()
    try:
        return pair_rows(pairs.folder, TEXT_FIELDS)
    except UserError as error:
        raise UserError(
            f"rollout: {error} Pairs without evolution captions get them from the evolve stage, with --set "
            "rollout.captions=evolve."
        ) from None


@dataclasses.dataclass
class RolloutShard(EncodeShard):
    """Samples the clips of one shard of rows, or encodes one of texts."""

    transformer: torch.nn.Module | None = None
    negative: dict[str, torch.Tensor] | None = None

    def _write_rows(self, shard: str, rows: Sequence[Row]) -> None:
        import torch

        from stages.train.data import write_rows

        pictures = [self._images(rows, field) for field in ("source", "target")]
        parts = []
        for batch in in_batches(rows, self.config.batch_size):
            source, target = ([images[row.key] for row in batch] for images in pictures)
            parts.append(self._rollouts(batch, source, target))
        arrays = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
        width, height = self.size
        write_rows(
            self.out,
            shard,
            [row.id for row in rows],
            {"rollout": arrays.pop("rollout")},
            {name: [row.texts[name] for row in rows] for name in TEXT_FIELDS},
            self.encoder.grid(height, width),
            extras=arrays,
        )

    def _rollouts(
        self, rows: Sequence[Row], source: Sequence[Image.Image], target: Sequence[Image.Image]
    ) -> dict[str, torch.Tensor]:
        """All arrays of a batch of rows, by field, `[B, N, C]`."""
        import torch

        from stages.train import flow
        from stages.train.backbones import wan_i2v
        from stages.train.backbones.pictures import to_pixels
        from stages.train.methods.video4edit import rollout

        encoder, config, (width, height) = self.encoder, self.config, self.size
        if self.transformer is None:
            self.transformer = load_teacher(config)
        first, last = to_pixels(source), to_pixels(target)
        condition = encoder.encode_condition(first, last)
        pair_image_embeds = encoder.encode_images(source, target)
        beside, grid = {"image_embeds": pair_image_embeds}, encoder.grid(height, width)
        shape = (condition.shape[1], encoder.token_channels)
        noise = [torch.randn(shape, generator=flow.item_generator(row.id, config.seed)) for row in rows]
        field = "evolution_caption" if config.evolution_captions else "instruction"
        nodes = flow.sampling_nodes(config.num_inference_steps, encoder.shift(shape[0]))

        def teacher(x_t, t, text, reference):
            return wan_i2v.velocity(self.transformer, x_t, t, text, reference, grid)

        clip = rollout(
            teacher,
            torch.stack(noise).to(encoder.device, encoder.dtype),
            encoder.encode_text([row.texts[field] for row in rows]) | beside,
            condition,
            nodes.to(encoder.device),
            config.guidance_scale,
            self._negative(len(rows)) | beside if config.guidance_scale > 1 else None,
        )
        source_condition, seen = encoder.encode_reference(source)
        return {
            "rollout": clip,
            "tail": encoder.encode_tail(first, last, config.tail),
            "source_condition": source_condition,
            "pair_condition": condition,
            "source_image_embeds": seen["image_embeds"],
            "pair_image_embeds": pair_image_embeds,
        }

    def _negative(self, num_rows: int) -> dict[str, torch.Tensor]:
        """The negative prompt's embeddings, encoded once, for so many rows."""
        if self.negative is None:
            self.negative = self.encoder.encode_text([self.config.negative_prompt])
        return {name: tensor.expand(num_rows, *tensor.shape[1:]) for name, tensor in self.negative.items()}


def load_teacher(config: RolloutConfig) -> torch.nn.Module:
    """The teacher's transformer. Raises UserError if it isn't one of image to video, or can't be loaded."""
    import torch

    from stages.train.backbones import wan_i2v
    from stages.train.backbones.backbone import loading

    with loading(config.model, "rollout.model") as backbone:
        if backbone is not wan_i2v:
            raise UserError(
                f"rollout: {config.model} makes no clips between two pictures. Name a first/last-frame pipeline of "
                "Wan with --set rollout.model=..."
            )
        transformer = backbone.TRANSFORMER.from_pretrained(
            resolved_model(config.model),
            subfolder="transformer",
            torch_dtype=getattr(torch, config.dtype),
            use_safetensors=True,
        )
    return transformer.to(resolved_device(config.device)).eval().requires_grad_(False)
