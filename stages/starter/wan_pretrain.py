"""Trains the starter's video models one after the other and writes them as diffusers' pipelines.

`t2v/` is a WanPipeline, `i2v/` and `flf2v/` are WanImageToVideoPipelines. What they share (autoencoder, encoders,
scheduler) is stored once, in `shared/`; the pipelines' folders link to it, so that each loads by `from_pretrained`.
"""

from __future__ import annotations

import copy
import pathlib
import shutil
from collections.abc import Callable, Mapping

import pydantic
import torch

from stages.starter.pretrain import forget_paths
from stages.starter.wan_autoencoder import AutoencoderSettings, measure_wan_autoencoder, train_wan_autoencoder
from stages.starter.wan_encoders import EncoderSettings, train_encoders
from stages.starter.wan_generator import KINDS, Kind, TransformerSettings, train_wan_transformer
from stages.starter.wan_measure import MEASURES, load_pipeline

SHARED = ("vae", "text_encoder", "tokenizer", "image_encoder", "image_processor", "scheduler")


class WanPretrainSettings(pydantic.BaseModel):
    """Sizes of all parts; the defaults take about an hour and a half on one core."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    encoders: EncoderSettings = EncoderSettings()
    transformers: TransformerSettings = TransformerSettings()


def as_pipeline(kind: Kind, transformer, autoencoder, encoders):
    """The diffusers pipeline of all parts; `encoders` as `train_encoders` returns them."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline

    tokenizer, text_encoder, image_processor, image_encoder = encoders
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": autoencoder,
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0),
    }
    if kind == "t2v":
        return WanPipeline(**parts)
    return WanImageToVideoPipeline(**parts, image_processor=image_processor, image_encoder=image_encoder)


def write_pipelines(out: pathlib.Path, transformers: Mapping[Kind, torch.nn.Module], autoencoder, encoders) -> None:
    """Writes a folder for each transformer and one for what they share, in half precision; replaces `out`."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "shared").mkdir(parents=True)
    for kind, transformer in transformers.items():
        parts = copy.deepcopy((transformer, autoencoder, encoders))  # the training goes on in full precision
        as_pipeline(kind, *parts).to(torch.float16).save_pretrained(part / kind)
        for name in SHARED:
            own, shared = part / kind / name, part / "shared" / name
            if not own.exists():
                continue
            if shared.exists():
                shutil.rmtree(own)
            else:
                own.rename(shared)
            own.symlink_to(pathlib.Path("..") / "shared" / name)
    forget_paths(part)
    for path in part.rglob("*.*"):
        if path.is_file():
            path.chmod(0o644)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


def train_wan(
    out: pathlib.Path,
    work: pathlib.Path,
    settings: WanPretrainSettings | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Trains all parts and writes them to `out`; goes on from the checkpoints in `work`, to the same result."""
    settings = settings or WanPretrainSettings()
    out, work = pathlib.Path(out), pathlib.Path(work)
    work.mkdir(parents=True, exist_ok=True)
    autoencoder = train_wan_autoencoder(work / "autoencoder.safetensors", settings.autoencoder, log)
    encoders = train_encoders(work / "encoders.safetensors", settings.encoders, log)
    transformers: dict[Kind, torch.nn.Module] = {}
    for kind in KINDS:
        checkpoint = work / f"{kind}.safetensors"
        transformers[kind] = train_wan_transformer(
            kind, autoencoder, encoders, checkpoint, settings.transformers, log, begin=transformers.get(KINDS[0])
        )
        write_pipelines(out, transformers, autoencoder, encoders)  # those that are there, in case that it is cut short


def measure_wan(out: pathlib.Path) -> dict:
    """What the written pipelines do on held-out clips."""
    figures = {}
    for kind, measure in MEASURES.items():
        if not (pathlib.Path(out) / kind).exists():
            continue
        pipeline = load_pipeline(pathlib.Path(out) / kind)
        figures[kind] = measure(pipeline)
        figures["autoencoder"] = figures.get("autoencoder") or measure_wan_autoencoder(pipeline.vae)
    return figures
