"""Training is unpaired: what it is made from holds no edited picture and no description of a scene."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from stages.caption.stage import TUPLES_SCHEMA
from stages.ingest.stage import SAMPLES_SCHEMA, IngestConfig, ingest_images
from stages.starter.stages import ScenesConfig, make_scenes
from tests.artifacts import committed
from tests.stages.ingest.context import make_context

STAGES = Path(__file__).resolve().parents[2] / "stages"
ROOMS = ("ingest", "caption", "encode", "train")


def imported_modules(file: Path) -> set[str]:
    """All that a module imports, inside of functions too, and modules named in calls of import_module."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide what they import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "stages.starter" in node.value:
            found.add(node.value)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_training_stages_import_nothing_of_the_world(room):
    """Except previews, which score pictures for the log; train/test_diffusers.py shows that nothing depends on it."""
    files = sorted(set((STAGES / room).rglob("*.py")) - {STAGES / "train" / "preview.py"})
    assert files
    for file in files:
        forbidden = {name for name in imported_modules(file) if name.startswith("stages.starter")}
        assert not forbidden, f"{file} imports {forbidden}"


def test_an_import_of_the_world_would_be_seen(tmp_path):
    file = tmp_path / "module.py"
    for line in (
        "from stages.starter import oracle",
        "import stages.starter.world",
        "def f():\n    from stages.starter.world import Scene",
        "import importlib\nimportlib.import_module('stages.starter.oracle')",
    ):
        file.write_text(line)
        assert any(name.startswith("stages.starter") for name in imported_modules(file)), line


def test_scenes_become_samples_that_hold_pictures_alone(tmp_path, monkeypatch):
    scenes, context = make_context(tmp_path, "scenes"), make_context(tmp_path, "ingest")
    make_scenes({}, ScenesConfig(num_scenes=3), scenes)
    assert scenes.out.list(recursive=True) == [f"images/{index:05d}.png" for index in range(3)]
    assert scenes.figures == {}

    def in_process(shards, work, **options):
        for shard in shards:
            work(shard)

    monkeypatch.setattr("stages.ingest.stage.run_shards", in_process)
    ingest_images({"scenes": committed(scenes.out, "scenes")}, IngestConfig(), context)
    rows = context.out.read_table("samples/00000.parquet").to_pylist()
    assert len(rows) == 3
    for row in rows:
        assert row["metadata"] == "{}" and row["source"].endswith(".png") and row["reason"] is None
        assert {key for key, value in row.items() if isinstance(value, bytes)} == {"image"}


def test_no_table_on_the_way_to_training_has_a_column_for_truth():
    pictures = {name for name in SAMPLES_SCHEMA.names if SAMPLES_SCHEMA.field(name).type == pa.binary()}
    assert pictures == {"image"}
    assert not [field for field in TUPLES_SCHEMA if field.type == pa.binary()]
    truth = {"metadata", "scene", "target", "target_image", "place"}  # metadata is the source's own
    assert not truth & set(TUPLES_SCHEMA.names) and truth & set(SAMPLES_SCHEMA.names) == {"metadata"}


def test_the_stages_modules_load_no_heavy_library():
    """Planning imports every stage: torch, diffusers and Ray come when a stage runs."""
    modules = ["stages.starter.stages", "stages.encode.stage", "stages.edit.stage", "stages.caption.evolution.stage"]
    modules += [
        "stages.ingest.pairs",
        "stages.ingest.videos",
        "stages.caption.video.prompts",
        "stages.caption.video.verify",
        "stages.caption.customization.stage",
    ]
    heavy = {"torch", "diffusers", "transformers", "ray", "peft", "mlflow"}
    code = f"import sys, {', '.join(modules)}\nprint(sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=STAGES.parent, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def ancestors(stages, name):
    by_name = {stage.name: stage for stage in stages}
    found, pending = set(), [name]
    while pending:
        for need in by_name[pending.pop()].needs:
            if need not in found:
                found.add(need)
                pending.append(need)
    return found


def test_no_stage_with_truth_comes_before_the_training_rows():
    full = importlib.import_module("pipelines.full")
    assert ancestors(full.STAGES, "encode") == {"scenes", "ingest", "caption"}
    (byg,) = [stage for stage in full.STAGES if stage.name == "train_byg"]
    assert set(byg.needs) == {"encode", "validation"}  # validation: for previews alone
