"""One rank of a training run, in a process of its own."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.folder import Folder
from stages.train.checkpoint import Checkpoints
from stages.train.data import EncodedData
from stages.train.engine import METHODS
from stages.train.settings import TrainConfig
from stages.train.stage import identity_of, new_trainer


def connect(rank: int, world_size: int, port: int) -> None:
    """Makes this process one rank of a group on the CPU."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo")


def main(
    rank: int, world_size: int, port: int, config: TrainConfig, encoded: Path, out: Path, resume: bool, stop: int | None
) -> None:
    connect(rank, world_size, port)
    method = METHODS[config.method]
    data = EncodedData.load(encoded, method.LATENTS, method.TEXTS, method.LABELS)
    device = torch.device("cpu")
    trainer = new_trainer(config, data, device)
    checkpoints = Checkpoints(Folder(out), identity_of(config))
    if resume:
        step, tensors, history = checkpoints.load()
        trainer.load_state(tensors, step, history)
    while trainer.step < (stop or config.num_steps):
        trainer.train_step()
    held = sum(parameter.data.numel() for parameter in trainer.transformer.parameters())
    if config.sharding == "zero3":
        held += sum(parameter.ds_tensor.numel() for parameter in trainer.transformer.parameters())
        whole = sum(parameter.ds_numel for parameter in trainer.transformer.parameters())
    else:
        whole = held
    state = trainer.state_tensors()
    trainer.export(Folder(out))
    if trainer.rank == 0:
        checkpoints.save(trainer.step, state, trainer.history)
        (out / "facts.json").write_text(json.dumps({"held": held, "whole": whole}))
    dist.barrier()
    dist.destroy_process_group()
