"""Makes the starter's models anew: `python -m stages.starter.pretrain --out DIR [--work DIR] [--only flux,wan]`.

Hours on two cores, minutes on a GPU. Checkpoints stand in the working folder: killed and called again, it goes on.
At the end everything is measured on held-out scenes; the figures stand in `figures.json` and in the VLM's own card.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

MODELS = Path(__file__).parent / "models"
PARTS = ("flux", "qwen3vl", "qwen3vl_proposals", "wan", "clip", "dinov2")


def pretrain_flux(out: Path, work: Path, autoencoder_steps: int, generator_steps: int) -> dict:
    """Trains autoencoder and generator, writes the FLUX pipeline to `out`, returns the measured figures."""
    import torch
    from diffusers import AutoencoderKL, FluxPipeline

    from stages.starter import autoencoder as autoencoder_training
    from stages.starter import generator as generator_training

    folder = work / "autoencoder"
    if not (folder / "config.json").exists():
        trained = autoencoder_training.train_autoencoder(work / "autoencoder.pt", autoencoder_steps)
        trained.save_pretrained(folder)
    autoencoder = AutoencoderKL.from_pretrained(folder).eval()
    model = generator_training.train_generator(autoencoder, work / "generator.pt", generator_steps)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    # half precision halves the download; what is measured below is what was stored
    generator_training.as_pipeline(model, autoencoder).to(torch.float16).save_pretrained(part)
    forget_paths(part)
    pipeline = FluxPipeline.from_pretrained(part, torch_dtype=torch.float32)
    figures = {
        "autoencoder": autoencoder_training.measure_autoencoder(pipeline.vae),
        "generator": generator_training.measure_generator(pipeline, num_scenes=500),
        "autoencoder_steps": autoencoder_steps,
        "generator_steps": generator_steps,
    }
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    return figures


def forget_paths(folder: Path) -> None:
    """Takes out of the settings where on this machine the parts were loaded from."""
    for file in folder.rglob("*.json"):
        settings = json.loads(file.read_text())
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(settings, indent=2) + "\n")


def pretrain_qwen3vl(out: Path, work: Path) -> dict:
    """Trains the vision-language model, writes it to `out`, returns the figures measured through vLLM."""
    from stages.starter.vlm_measure import measure_vlm, write_card
    from stages.starter.vlm_pretrain import pretrain_vlm

    pretrain_vlm(out, work / "qwen3vl")
    figures = measure_vlm(out)
    write_card(out, figures)
    return figures


def pretrain_qwen3vl_proposals(out: Path, work: Path, start: Path) -> dict:
    """Trains the vision-language model in `start` on to one that proposes and verifies edits; the same otherwise."""
    from stages.starter.vlm_pretrain import PROPOSAL_SETTINGS, pretrain_vlm
    from stages.starter.vlm_proposal_measure import measure_proposals, write_card

    pretrain_vlm(out, work / "qwen3vl_proposals", settings=PROPOSAL_SETTINGS, start=start)
    figures = measure_proposals(out)
    write_card(out, figures)
    return figures


def pretrain_wan(out: Path, work: Path) -> dict:
    """Trains the video models, writes their pipelines to `out`, returns the measured figures."""
    from stages.starter.wan_pretrain import measure_wan, train_wan

    train_wan(out, work / "wan")
    return measure_wan(out)


def pretrain_clip(out: Path, work: Path) -> dict:
    """Trains CLIP, writes it to `out`, returns the measured figures."""
    from stages.starter.clip_model import train_clip_model
    from stages.starter.vision_measure import measure_clip

    write_model(out, *train_clip_model(work / "clip.safetensors"))
    return measure_clip(out)


def pretrain_dinov2(out: Path, work: Path) -> dict:
    """Trains DINOv2, writes it to `out`, returns the measured figures."""
    from stages.starter.dinov2_model import train_dinov2
    from stages.starter.vision_measure import measure_dinov2

    write_model(out, *train_dinov2(work / "dinov2.safetensors"))
    return measure_dinov2(out)


def write_model(out: Path, model, processor) -> None:
    """Writes a model of transformers in half precision and its processor; replaces `out`."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.half().save_pretrained(part)
    processor.save_pretrained(part)
    forget_paths(part)
    for path in part.iterdir():
        path.chmod(0o644)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.starter.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=MODELS, help="where the model folders go (default: the shipped)")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="checkpoints (default: %(default)s)")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to make, of: " + ",".join(PARTS))
    parser.add_argument("--autoencoder-steps", type=int, default=2500)
    parser.add_argument("--generator-steps", type=int, default=5500)
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"unknown part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    measured = arguments.out / "figures.json"
    figures = json.loads(measured.read_text()) if measured.exists() else {}
    if "flux" in parts:
        figures["flux"] = pretrain_flux(
            arguments.out / "flux", arguments.work, arguments.autoencoder_steps, arguments.generator_steps
        )
    if "qwen3vl" in parts:
        figures["qwen3vl"] = pretrain_qwen3vl(arguments.out / "qwen3vl", arguments.work)
    if "qwen3vl_proposals" in parts:
        trained = next(folder / "qwen3vl" for folder in (arguments.out, MODELS) if (folder / "qwen3vl").exists())
        figures["qwen3vl_proposals"] = pretrain_qwen3vl_proposals(
            arguments.out / "qwen3vl_proposals", arguments.work, trained
        )
    if "wan" in parts:
        figures["wan"] = pretrain_wan(arguments.out / "wan", arguments.work)
    if "clip" in parts:
        figures["clip"] = pretrain_clip(arguments.out / "clip", arguments.work)
    if "dinov2" in parts:
        figures["dinov2"] = pretrain_dinov2(arguments.out / "dinov2", arguments.work)
    measured.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
    print(json.dumps(figures, indent=2, sort_keys=True))


if __name__ == "__main__":
    main()
