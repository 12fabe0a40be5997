"""The stage: what it leaves, that a killed worker changes nothing, and what it refuses."""

import dataclasses
import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from cluster.artifacts import Artifact, Manifest
from cluster.config import identity
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from stages.train.export import FILE
from stages.train.methods import byg, sft
from stages.train.methods.settings import ByGConfig, SFTConfig
from stages.train.settings import TrainByGConfig
from stages.train.stage import TrainRank, train, train_sources
from stages.train.workers import run_ranks
from tests.stages.ingest.context import make_context

CPU = torch.device("cpu")


@dataclasses.dataclass
class KillingContext(Context):
    """Ends the process of the rank, as `kill -9` does, at its fourth step, once."""

    marker: str = ""
    num_checks: int = 0

    def check(self) -> None:
        self.num_checks += "RANK" in os.environ
        if self.num_checks == 4 and not os.path.exists(self.marker):
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


def artifact(folder: Path) -> Artifact:
    manifest = Manifest(
        stage="encode", version="1", fingerprint="f", files={}, config={}, identity={}, parents={},
        code_version="", run_id="", created=0.0,
    )  # fmt: skip
    return Artifact("encode", "f", Folder(folder), manifest)


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read_bytes(name) for name in folder.list(recursive=True)}


def benchmark(folder: Path) -> Folder:
    """Two items of the size of the training pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    rows = []
    for index, array in enumerate(pixels):
        data = io.BytesIO()
        Image.fromarray(array).save(data, "PNG")
        texts = {"instruction": "add", "reverse_instruction": "remove", "metadata": "{}"}
        rows.append({"item_id": str(index), "image": data.getvalue(), **texts})
    Folder(folder).write_table("items.parquet", pa.Table.from_pylist(rows))
    return Folder(folder)


def test_a_killed_worker_changes_nothing(local_ray, byg_config, encoded_folder, tmp_path):
    config = byg_config.model_copy(update={"checkpoint_every": 2, "preview_every": 3})
    items = benchmark(tmp_path / "benchmark")
    undisturbed = make_context(tmp_path / "undisturbed", "train_byg")
    TrainRank(config, Folder(encoded_folder), items, undisturbed)(CPU)
    context = make_context(tmp_path / "killed", "train_byg")
    fields = {field.name: getattr(context, field.name) for field in dataclasses.fields(Context)}
    killing = KillingContext(**fields, marker=str(tmp_path / "marker"))
    inputs = {"encode": artifact(encoded_folder), "validation": artifact(tmp_path / "benchmark")}
    train(inputs, config.model_copy(update={"device": "cpu"}), killing)
    assert (tmp_path / "marker").exists()
    incidents = [path.read_text() for path in (tmp_path / "killed/runs").rglob("incidents/*")]
    assert any("A training process died; all go on" in text for text in incidents)
    expected = contents(undisturbed.out)
    names = ["adapter/" + FILE, "history.parquet", "previews/step-000003.png", "previews/step-000006.png"]
    assert list(expected) == names
    assert contents(killing.out) == expected
    assert killing.rows == 10
    assert killing.figures["num_steps"] == 6 and killing.figures["seconds_per_step"] > 0
    assert set(killing.figures["final"]) >= {"gradient_norm"}
    history = killing.out.read_table("history.parquet").to_pandas()
    assert sorted(history["step"].unique()) == [1, 2, 3, 4, 5, 6]
    assert {"loss_cycle", "loss_prior_forward", "loss_identity", "gradient_cycle"} <= set(history["name"])


def both_ranks(device: torch.device) -> list[float]:
    value = torch.tensor([1.0 + torch.distributed.get_rank()], device=device)
    torch.distributed.all_reduce(value)
    return value.tolist() + [torch.get_num_threads()]


def failing(device: torch.device) -> None:
    if torch.distributed.get_rank() == 1:
        raise UserError("row 7 is bad")
    torch.distributed.barrier()


def test_ranks_work_together_and_errors_come_through(local_ray, tmp_path):
    context = make_context(tmp_path, "train_byg")
    settings = {"num_workers": 2, "num_threads": 1, "device": "cpu", "context": context}
    assert run_ranks(both_ranks, **settings) == [3.0, 1]
    with pytest.raises(UserError, match="row 7 is bad"):
        run_ranks(failing, **settings)


def test_a_step_that_diverges_is_kept_for_replay(byg_config, encoded_folder, tmp_path):
    from safetensors.torch import load_file

    context = make_context(tmp_path, "train_byg")
    config = byg_config.model_copy(update={"stop_gradient_norm": 1e-9})
    with pytest.raises(UserError, match="stopped at step 0"):
        TrainRank(config, Folder(encoded_folder), None, context)(CPU)
    failure = json.loads((context.scratch / "failure/failure.json").read_text())
    assert failure["step"] == 0 and len(failure["ids"]) == 4
    batch = load_file(context.scratch / "failure/batch.safetensors")
    assert batch["latents/source"].shape == (4, 4, 64) and "texts/instruction/prompt_embeds" in batch
    assert load_file(context.scratch / "failure/state.safetensors")


def test_a_checkpoint_of_other_training_is_refused(byg_config, sft_config, encoded_folder, tmp_path):
    context = make_context(tmp_path, "train_byg")
    TrainRank(byg_config.model_copy(update={"num_steps": 1}), Folder(encoded_folder), None, context)(CPU)
    with pytest.raises(UserError, match="was made with method 'byg', this training has 'sft'"):
        TrainRank(sft_config, Folder(encoded_folder), None, context)(CPU)
    with pytest.raises(UserError, match="was made with rank 4, this training has 8"):
        TrainRank(byg_config.model_copy(update={"rank": 8}), Folder(encoded_folder), None, context)(CPU)


def test_training_starts_from_an_adapter(byg_config, encoded_folder, tmp_path):
    first = make_context(tmp_path / "first", "train_byg")
    TrainRank(byg_config, Folder(encoded_folder), None, first)(CPU)
    second = make_context(tmp_path / "second", "train_byg")
    adapter = str(first.out.local("adapter"))
    frozen = {"init_adapter": adapter, "num_steps": 1, "learning_rate": 1e-30}
    TrainRank(byg_config.model_copy(update=frozen), Folder(encoded_folder), None, second)(CPU)
    assert second.out.read_bytes(f"adapter/{FILE}") == first.out.read_bytes(f"adapter/{FILE}")
    assert train_sources(byg_config.model_copy(update=frozen))[-1] == adapter


def test_the_settings_that_change_nothing_are_no_part_of_the_identity():
    config = TrainByGConfig()
    runtime = {
        "sharding": "zero3", "num_workers": 8, "num_threads": 4, "gradient_checkpointing": True,
        "log_every": 1, "checkpoint_every": 7, "preview_every": 9, "stop_gradient_norm": 5.0, "device": "cuda",
    }  # fmt: skip
    assert identity(config) == identity(TrainByGConfig(**runtime))
    for field, value in {"rank": 8, "batch_size": 4, "seed": 1, "byg": {"lambda_prior": 0.5}}.items():
        assert identity(config) != identity(TrainByGConfig(**{field: value}))
    with pytest.raises(ValidationError, match="lambda_prio"):
        TrainByGConfig(byg={"lambda_prio": 1})


def test_planning_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, stages.train.stage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    assert byg.ByGConfig is ByGConfig and sft.SFTConfig is SFTConfig
