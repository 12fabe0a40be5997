"""A base that ZeRO-3 cuts is the one that diffusers loads: the same numbers of the same dtypes, the same forward."""

from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from stages.train.settings import TrainConfig, TrainSFTConfig
from stages.train.sharding import load_root, run_in
from tests.stages.train.rank import connect
from tests.stages.train.test_engine import in_processes
from tests.tiny_wan import HIDDEN_SIZE, IMAGE_TOKENS


def forward(transformer: WanTransformer3DModel) -> dict[str, torch.Tensor]:
    """What a transformer makes of random numbers, and the gradient by its input."""
    draw = torch.Generator().manual_seed(3)
    x, text, picture = (
        torch.randn(2, *shape, generator=draw).bfloat16()
        for shape in ((36, 2, 4, 6), (5, HIDDEN_SIZE), (IMAGE_TOKENS, HIDDEN_SIZE))
    )
    x.requires_grad_()
    velocity = transformer(x, torch.tensor([300.0, 900.0]), text, picture, return_dict=False)[0]
    velocity.float().square().sum().backward()
    return {"velocity": velocity.detach(), "gradient": x.grad}


def sharded(rank: int, world_size: int, port: int, config: TrainConfig, out: Path) -> None:
    """Saves what the cut transformer gives, its buffers, and its parameters' parts as the first rank has them."""
    connect(rank, world_size, port)
    engine, root = load_root(config, torch.device("cpu"), is_trained=False)
    tensors = {}
    run_in(engine, lambda: tensors.update(forward(root.transformer)))
    tensors |= {f"buffer/{name}": buffer for name, buffer in root.transformer.named_buffers()}
    for name, parameter in root.transformer.named_parameters():
        assert parameter.dtype == parameter.ds_tensor.dtype
        tensors[f"part/{name}"] = parameter.ds_tensor
    if rank == 0:
        save_file(tensors, out / "sharded.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def test_a_cut_wan_in_bfloat16_is_the_librarys(tiny_wans, tmp_path):
    model = str(tiny_wans["i2v"])
    config = TrainSFTConfig(model=model, dtype="bfloat16", sharding="zero3", persistence_threshold=0, num_workers=2)
    in_processes(sharded, 2, config, tmp_path)
    ours = load_file(tmp_path / "sharded.safetensors")
    whole = WanTransformer3DModel.from_pretrained(model, subfolder="transformer", torch_dtype=torch.bfloat16)
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffer, ours[f"buffer/{name}"]), name
    parameters = dict(whole.named_parameters())
    for name, parameter in parameters.items():
        part = ours[f"part/{name}"]
        first = parameter.detach().flatten()[: len(part)]
        assert part.dtype == parameter.dtype and torch.equal(first, part[: len(first)]), name
    assert {parameter.dtype for parameter in parameters.values()} == {torch.bfloat16, torch.float32}
    for name, wanted in forward(whole.requires_grad_(False).eval()).items():
        assert (ours[name] - wanted).abs().max() < 0.03 * wanted.abs().max(), name
