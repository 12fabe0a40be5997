"""What the training engine costs over a bare loop with the same mathematics, and a ByG step over a supervised.

`python -m benchmarks.train_overhead [--model DIR] [--num-steps 10]` prints one JSON line. Steps of the bare loop
and of the engine alternate in one process with as many threads as there are ranks in the other measurements, so
that whatever else the machine does hits both; of each kind the median counts. All ByG steps are edit steps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cluster.folder import Folder
from stages.train.backbones.models import resolved_model
from stages.train.methods.settings import ByGConfig
from stages.train.settings import TrainByGConfig, TrainConfig, TrainSFTConfig

NUM_TEXT_TOKENS = 16
GRID = (4, 4)


def write_data(folder: Folder, transformer: dict, num_rows: int = 256) -> None:
    """Random encoded rows of the shapes that the model takes."""
    import torch

    from stages.train.data import rows_shard, texts_shard, write_rows, write_texts
    from stages.train.methods import byg, sft

    texts = [f"text {index}" for index in range(64)]
    embeds = {
        "prompt_embeds": torch.randn(64, NUM_TEXT_TOKENS, transformer["joint_attention_dim"]),
        "pooled_prompt_embeds": torch.randn(64, transformer["pooled_projection_dim"]),
    }
    write_texts(folder, texts_shard(0), texts, embeds)
    shape = (num_rows, GRID[0] * GRID[1], transformer["in_channels"] * transformer["patch_size"] ** 2)
    columns = {name: [texts[(7 * row + len(name)) % 64] for row in range(num_rows)] for name in byg.TEXTS}
    latents = {name: torch.randn(shape) for name in sft.LATENTS}
    write_rows(folder, rows_shard(0), [str(row) for row in range(num_rows)], latents, columns, GRID)


def bare_loop(config: TrainConfig, data: Path) -> Callable[[], None]:
    """A step as one would write it down: model, AdamW over a list of tensors, average, nothing else."""
    import torch

    from stages.train.adapters import Adapters
    from stages.train.backbones.backbone import backbone_of
    from stages.train.data import EncodedData
    from stages.train.engine import METHODS
    from stages.train.roles import Draws, Roles

    method = METHODS[config.method]
    rows = EncodedData.load(data, method.LATENTS, method.TEXTS)
    batch = rows.batch(range(config.batch_size))
    backbone = backbone_of(config.model)
    transformer = backbone.TRANSFORMER.from_pretrained(resolved_model(config.model), subfolder="transformer")
    transformer.requires_grad_(False)
    adapters = Adapters(transformer)
    tensors = {}
    for name in ("student", "ema"):
        adapter = adapters.add(name, config.rank, config.lora_alpha, backbone.LORA_TARGETS, 0)
        tensors[name] = list(adapter.tensors.values())
    for tensor in tensors["student"]:
        tensor.requires_grad_()
    optimizer = torch.optim.AdamW(tensors["student"], lr=config.learning_rate)

    def role(name: str | None):
        def velocity(x_t, t, text, reference):
            with adapters.use(name):
                return backbone.velocity(
                    transformer, x_t, t, text, reference, GRID, config.guidance_scale, config.reference_positions
                )

        return velocity

    roles = Roles(role("student"), role("ema"), role(None), lambda loss: loss.backward())
    count = 0

    def step() -> None:
        nonlocal count
        draws = Draws(0, count, config.batch_size, slice(0, config.batch_size))
        method.step(getattr(config, config.method), roles, batch, draws, count)
        torch.nn.utils.clip_grad_norm_(tensors["student"], config.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(tensors["ema"], [t.detach() for t in tensors["student"]], 1 - config.ema_decay)
        count += 1

    return step


def engine(config: TrainConfig, data: Path) -> Callable[[], object]:
    """The engine's step, in this process."""
    import torch

    from stages.train.data import EncodedData
    from stages.train.engine import METHODS, Trainer

    method = METHODS[config.method]
    rows = EncodedData.load(data, method.LATENTS, method.TEXTS)
    return Trainer(config, rows, torch.device("cpu")).train_step


def medians(steps: dict[str, Callable[[], object]], num_steps: int) -> dict[str, float]:
    """The median seconds of each kind of step; the kinds alternate, the first two rounds don't count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(num_steps + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def in_one_process(data: Path, byg: TrainConfig, sft: TrainConfig, num_threads: int, num_steps: int, out: Path) -> None:
    import torch

    torch.set_num_threads(num_threads)
    steps = {"bare": bare_loop(byg, data), "engine": engine(byg, data), "sft": engine(sft, data)}
    out.write_text(json.dumps(medians(steps, num_steps)))


def in_ranks(rank: int, port: int, config: TrainConfig, data: Path, num_steps: int, out: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(config.num_workers), "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = medians({"ranks": engine(config, data)}, num_steps)
    if rank == 0:
        out.write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def measured(target: Callable[..., None], arguments: list[tuple], out: Path, num_threads: int) -> dict[str, float]:
    """What new processes, one for each tuple of arguments, leave in `out`."""
    os.environ |= {"OMP_NUM_THREADS": str(num_threads), "DS_ACCELERATOR": "cpu"}
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"a measurement failed: exit codes {[process.exitcode for process in processes]}")
    return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stages/starter/models/flux")
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--num-ranks", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=32, help="of the LoRA")
    parser.add_argument("--num-rollout-steps", type=int, default=4)
    flags = parser.parse_args()
    method = ByGConfig(identity_warmup=0, identity_probability=0.0, num_rollout_steps=flags.num_rollout_steps)
    common = {
        "model": flags.model,
        "rank": flags.rank,
        "batch_size": flags.batch_size,
        "num_steps": flags.num_steps,
    }
    byg, sft = TrainByGConfig(**common, byg=method), TrainSFTConfig(**common)
    with tempfile.TemporaryDirectory() as temporary:
        data, out = Path(temporary) / "data", Path(temporary) / "out.json"
        transformer = json.loads((Path(resolved_model(flags.model)) / "transformer/config.json").read_text())
        write_data(Folder(data), transformer)
        result = measured(
            in_one_process, [(data, byg, sft, flags.num_ranks, flags.num_steps, out)], out, flags.num_ranks
        )
        for sharding in ("none", "zero3"):
            config = byg.model_copy(update={"sharding": sharding, "num_workers": flags.num_ranks})
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            arguments = [(rank, port, config, data, flags.num_steps, out) for rank in range(flags.num_ranks)]
            result[f"{sharding}_on_{flags.num_ranks}_ranks"] = measured(in_ranks, arguments, out, 1)["ranks"]
    figures = {f"{name}_seconds": round(seconds, 4) for name, seconds in result.items()}
    figures["engine_over_bare"] = round(result["engine"] / result["bare"], 3)
    figures["zero3_over_bare"] = round(result[f"zero3_on_{flags.num_ranks}_ranks"] / result["bare"], 3)
    figures["byg_over_sft"] = round(result["engine"] / result["sft"], 2)
    print(json.dumps(figures | {"batch_size": flags.batch_size, "lora_rank": flags.rank}))


if __name__ == "__main__":
    main()
