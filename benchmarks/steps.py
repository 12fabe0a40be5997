"""What a step of each training costs: seconds of the engine and of a bare loop, forwards, memory.

`python -m benchmarks.steps --root runs` takes the trainings of the last run in a root with their own settings and
encoded rows and prints a JSON line for each. Steps of the engine and of the bare loop alternate in one process,
with the same draws; of a training of all weights the steps of a LoRA. A forward is one pass of the transformer over one
row of the batch. The memory is what a rank of the run itself had at its peak.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

WARMUP_STEPS = 2


def measure(stage: str, config: dict[str, Any], data: str, num_steps: int, num_threads: int, queue: Any) -> None:
    """Puts the figures of one training into the queue."""
    import torch

    from benchmarks.bare_loop import BareLoop
    from pipelines.full import STAGES
    from stages.train.data import EncodedData
    from stages.train.engine import METHODS, Trainer
    from stages.train.stage import load_judge

    torch.set_num_threads(num_threads)
    settings = next(found for found in STAGES if found.name == stage).config.model_validate(config)
    changes = {"sharding": "none", "num_workers": 1, "init_adapter": None}
    if settings.trains_all:
        changes["weights"] = "lora"
    settings = settings.model_copy(update=changes)
    method = METHODS[settings.method]
    rows = EncodedData.load(Path(data), method.LATENTS, method.TEXTS, method.LABELS)
    first = getattr(getattr(settings, settings.method), "identity_warmup", 0)
    bare = BareLoop(settings, rows, first)
    trainer = Trainer(settings, rows, torch.device("cpu"), load_judge(settings, rows.grid, torch.device("cpu")))
    trainer.step = first
    num_rows = {True: 0, False: 0}

    def count(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states = kwargs.get("hidden_states", args[0] if args else None)
        num_rows[torch.is_grad_enabled()] += len(states)

    networks = [bare.transformer] if trainer.root.teacher is None else [bare.transformer, trainer.root.teacher]
    seconds = {"engine": 0.0, "bare": 0.0}
    for step in range(WARMUP_STEPS + num_steps):
        if step == WARMUP_STEPS:
            seconds = dict.fromkeys(seconds, 0.0)
            for network in networks:
                network.register_forward_pre_hook(count, with_kwargs=True)
        for name, work in (("engine", trainer.train_step), ("bare", bare.step)):
            started = time.perf_counter()
            work()
            seconds[name] += (time.perf_counter() - started) / num_steps
    rows_of_a_step = num_steps * settings.batch_size
    queue.put(
        {
            "engine_seconds": round(seconds["engine"], 4),
            "bare_seconds": round(seconds["bare"], 4),
            "engine_over_bare": round(seconds["engine"] / seconds["bare"], 3),
            "forwards_with_gradient": round(num_rows[True] / rows_of_a_step, 2),
            "forwards_without": round(num_rows[False] / rows_of_a_step, 2),
            "batch_size": settings.batch_size,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs")
    parser.add_argument("--num-steps", type=int, default=12)
    parser.add_argument("--num-threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", help="one stage")
    flags = parser.parse_args()
    summary = Path(flags.root) / "runs" / "latest.json"
    if not summary.exists():
        raise SystemExit(f"{summary} isn't there: run a pipeline with --root {flags.root} first.")
    stages = json.loads(summary.read_text())["stages"]
    os.environ |= {"OMP_NUM_THREADS": str(flags.num_threads), "DS_ACCELERATOR": "cpu"}
    context = multiprocessing.get_context("spawn")
    for stage, found in stages.items():
        if not stage.startswith("train_") or not found.get("artifact") or flags.only not in (None, stage):
            continue
        manifest = json.loads((Path(found["artifact"]) / "manifest.json").read_text())
        encoded = next(name for name in manifest["parents"] if not name.endswith("validation"))
        data = Path(flags.root) / encoded / manifest["parents"][encoded]
        queue = context.Queue()
        work = (stage, manifest["config"], str(data), flags.num_steps, flags.num_threads, queue)
        process = context.Process(target=measure, args=work)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"measuring {stage} failed with exit code {process.exitcode}")
        memory = round(manifest["figures"]["peak_memory_gib"], 2)
        print(json.dumps({"stage": stage, **queue.get(), "peak_memory_gib_of_a_rank": memory}), flush=True)


if __name__ == "__main__":
    main()
