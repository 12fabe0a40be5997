import dataclasses
import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from pydantic import ValidationError

from cluster.config import identity
from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.benchmark import batches, item_ids_of
from stages.edit.editors import ADAPTER_STAGES, FewStepEditor
from stages.edit.sampler import Sampler
from stages.edit.settings import EditConfig, edit_sources
from stages.edit.stage import edit_images
from stages.edit.strength import SCORES_SCHEMA, chosen_strengths, compare_strengths, score_edit
from stages.starter import world
from stages.starter.stages import (
    BenchmarkConfig,
    ValidationConfig,
    make_benchmark,
    sample_edits,
)
from tests.artifacts import committed
from tests.stages.edit.test_sampler import save_adapter
from tests.stages.ingest.context import make_context

NUM_ITEMS = 7


@pytest.fixture(scope="module")
def given(tiny_flux, tmp_path_factory):
    """All that the stage can need: benchmark, validation split and the trained adapters."""
    path = tmp_path_factory.mktemp("inputs")
    artifacts = {}
    for config in (BenchmarkConfig(num_items=NUM_ITEMS), ValidationConfig(num_items=4)):
        context = make_context(path, config.split)
        make_benchmark({}, config, context)
        artifacts[config.split] = committed(context.out, config.split)
    for seed, stage in enumerate(sorted(ADAPTER_STAGES.values())):
        folder = Folder(path / stage)
        save_adapter(tiny_flux, folder.sub("adapter"), seed)
        artifacts[stage] = committed(folder, stage)
    return artifacts


@pytest.fixture
def run(tiny_flux, tmp_path, monkeypatch):
    """Runs the stage with its shards done in this process; returns its context and the shards done."""

    def call(given, name="edit", order=1, **settings):
        context, done = make_context(tmp_path / name, "edit"), []

        def in_process(shards, work, *, context, **options):
            for shard in shards[::order]:
                if not context.out.exists(shard):
                    work(shard)
                    done.append(shard)

        monkeypatch.setattr("stages.edit.stage.run_shards", in_process)
        settings = {"num_inference_steps": 2, "shard_size": 4} | settings
        edit_images(given, EditConfig(model=str(tiny_flux), **settings), context)
        return context, done

    return call


def edits(context):
    return {
        (row["item_id"], row["method"]): row["image"]
        for name in context.out.list(".parquet", recursive=True)
        if name.startswith("edits/")
        for row in context.out.read_table(name).to_pylist()
    }


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)


def test_every_method_edits_every_item(given, run):
    methods = (*EditConfig().methods, "np_edit")
    context, _ = run(given, methods=methods, sdedit_strengths=(0.3, 0.8), flowedit_starts=(0.5, 1.0))
    pictures = edits(context)
    items = given["benchmark"].folder.read_table("benchmark.parquet").to_pylist()
    assert set(pictures) == {(item["item_id"], method) for item in items for method in methods}
    assert context.rows == len(pictures)
    for item in items:
        images = {method: pixels(pictures[item["item_id"], method]) for method in methods}
        assert np.array_equal(images["copy"], pixels(item["image"]))
        assert all(image.shape == (32, 32, 3) for image in images.values())
        different = {image.tobytes() for image in images.values()}
        assert len(different) == len(methods)
    table = context.out.read_table("strengths.parquet").to_pylist()
    compared = [(row["method"], row["strength"]) for row in table]
    assert compared == [("flowedit", 0.5), ("flowedit", 1.0), ("sdedit", 0.3), ("sdedit", 0.8)]
    assert [row["num_items"] for row in table] == [4] * 4
    chosen = {row["method"]: row["strength"] for row in table if row["chosen"]}
    assert chosen == {"flowedit": context.figures["flowedit_start"], "sdedit": context.figures["sdedit_strength"]}


def test_a_few_step_editor_samples_at_the_times_of_its_training(given, run):
    four, _ = run(given, "four", methods=("np_edit",))
    folder = given["train_np_edit"].folder
    two = given | {"train_np_edit": committed(folder, "train_np_edit", {"np_edit": {"times": (1.0, 0.5)}})}
    two, _ = run(two, "two", methods=("np_edit",))
    four, two = edits(four), edits(two)
    assert four.keys() == two.keys() and all(four[key] != two[key] for key in four)


def test_an_adapter_that_is_here_already_edits_as_one_that_was_trained(given, run):
    folder = given["train_byg"].folder.sub("adapter").local()
    context, _ = run(given, methods=("byg", "untrained"), adapters={"warmup": str(folder)})
    pictures = edits(context)
    for item_id in {item_id for item_id, _ in pictures}:
        assert pictures[item_id, "warmup"] == pictures[item_id, "byg"] != pictures[item_id, "untrained"]
    config = EditConfig(adapters={"warmup": str(folder)})
    assert config.all_methods[-1] == "warmup" and str(folder) in edit_sources(config)
    with pytest.raises(UserError, match=r"edit.adapters.warmup: .*none is no folder with a LoRA"):
        run(given, "other", methods=(), adapters={"warmup": str(folder / "none")})
    for name in ("byg_video", "customization", "a/b"):
        with pytest.raises(ValidationError, match="already|pattern"):
            EditConfig(adapters={name: str(folder)})


def test_a_few_step_editor_that_was_trained_whole_takes_its_own_weights(given, run, tiny_flux, tmp_path):
    pipeline = FluxPipeline.from_pretrained(tiny_flux)
    torch.manual_seed(5)
    for parameter in pipeline.transformer.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    pipeline.transformer.save_pretrained(tmp_path / "whole" / "transformer")
    pipeline.save_pretrained(tmp_path / "model")
    settings = {"method": "np_edit", "weights": "full", "np_edit": {"identity_warmup": 100}}
    trained = committed(Folder(tmp_path / "whole"), "train_np_edit", settings)
    found = edits(run(given | {"train_np_edit": trained}, methods=("untrained", "np_edit", "sft"))[0])
    editor = FewStepEditor(Sampler(tmp_path / "model"), EditConfig().seed, None, (1.0, 0.75, 0.5, 0.25))
    benchmark = given["benchmark"].folder
    for items, _ in batches(benchmark, item_ids_of(benchmark), 4):
        for item, wanted in zip(items, editor.edit(items), strict=True):
            picture = pixels(found[item.item_id, "np_edit"])
            assert np.abs(picture - np.asarray(wanted, dtype=int)).max() <= 1
            assert all(found[item.item_id, name] != found[item.item_id, "np_edit"] for name in ("untrained", "sft"))


def test_order_of_work_and_interruption_change_no_picture(given, run):
    methods = ("untrained", "sdedit", "copy")
    whole, done = run(given, methods=methods, sdedit_strengths=(0.6,))
    other, _ = run(given, "other", order=-1, methods=methods, sdedit_strengths=(0.6,))
    assert len(done) == 6 and edits(whole) == edits(other)
    other.out.remove(done[1])
    _, again = run(given, "other", methods=methods, sdedit_strengths=(0.6,))
    assert again == [done[1]] and edits(whole) == edits(other)


def test_batches_change_no_picture_beyond_rounding(given, run):
    together, _ = run(given, methods=("untrained",), batch_size=32)
    alone, _ = run(given, "alone", methods=("untrained",), batch_size=1)
    for key, data in edits(together).items():
        assert np.abs(pixels(data) - pixels(edits(alone)[key])).max() <= 1


def test_on_ray(given, run, tiny_flux, tmp_path, local_ray):
    here, _ = run(given, methods=("regenerate", "copy"))
    context = make_context(tmp_path, "ray")
    settings = {"num_inference_steps": 2, "shard_size": 4, "num_workers": 2, "num_cpus": 0.5}
    config = EditConfig(model=str(tiny_flux), methods=("regenerate", "copy"), **settings)
    edit_images(given, config, context)
    ours, theirs = edits(here), edits(context)
    assert set(ours) == set(theirs)
    for key, data in ours.items():  # another number of threads may round differently
        assert np.abs(pixels(data) - pixels(theirs[key])).max() <= 1


def test_the_strength_with_most_whole_scenes_is_chosen(tmp_path):
    folder = Folder(tmp_path)
    answers = {0.5: [(0, 1), (0, 1), (1, 1)], 0.7: [(1, 1), (1, 1), (0, 0)], 0.9: [(1, 0), (1, 0), (1, 1)]}
    shards = {}
    for strength, values in answers.items():
        for index, (success, kept) in enumerate(values):
            for method, also_kept in (("sdedit", kept), ("flowedit", kept or strength > 0.8)):
                row = {"item_id": str(index), "method": method, "strength": strength}
                row |= {"edit_success": bool(success), "preservation": bool(also_kept)}
                row |= {"whole_scene_right": bool(success and also_kept)}
                name = f"{method}-{strength}-{index}.parquet"
                folder.write_table(name, pa.Table.from_pylist([row], SCORES_SCHEMA))
                shards[name] = (method, strength)
    table = compare_strengths(folder, shards)
    rows = [row for row in table.to_pylist() if row["method"] == "sdedit"]
    assert [row["whole_scene_right"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1 / 3])
    assert [row["edit_success"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [row["chosen"] for row in rows] == [False, True, False]
    assert chosen_strengths(table.to_pylist()) == {"flowedit": 0.9, "sdedit": 0.7}


def test_scores_of_the_truth_and_of_the_source():
    edit = sample_edits("validation", 1, 0)[0]
    truth, source = (Image.fromarray(world.render(scene)) for scene in (edit.target, edit.source))
    assert score_edit("a", "sdedit", 0.5, truth, edit.to_json())["whole_scene_right"]
    assert not score_edit("a", "sdedit", 0.5, source, edit.to_json())["edit_success"]
    with pytest.raises(UserError, match="can't score item 'a'.*edit.flowedit_starts"):
        score_edit("a", "flowedit", 0.5, truth, "{}")
    with pytest.raises(UserError, match="can't score item 'a'"):
        score_edit("a", "sdedit", 0.5, truth.resize((64, 64)), edit.to_json())


def test_what_is_missing_is_named(given, run):
    def without(stage):
        return {name: artifact for name, artifact in given.items() if name != stage}

    with pytest.raises(UserError, match="method byg needs stage train_byg"):
        run(without("train_byg"))
    for method, field in (("sdedit", "sdedit_strengths"), ("flowedit", "flowedit_starts")):
        with pytest.raises(UserError, match=f"several {field} are given, and no validation split"):
            run(without("validation"), methods=(method,))


def test_an_adapter_of_another_training_set_up_is_refused(given, run):
    for settings in ({"model": "black-forest-labs/FLUX.1-dev"}, {"reference_positions": "shared"}):
        trained = given["train_byg"]
        manifest = trained.manifest.model_copy(update={"config": settings})
        changed = given | {"train_byg": dataclasses.replace(trained, manifest=manifest)}
        with pytest.raises(UserError, match=f"train_byg was trained with {next(iter(settings))}="):
            run(changed, methods=("byg",))


def test_bad_items_are_named(given, run, tmp_path):
    rows = given["benchmark"].folder.read_table("benchmark.parquet").to_pylist()

    def benchmark(name, rows):
        folder = Folder(tmp_path / name)
        schema = given["benchmark"].folder.read_table("benchmark.parquet").schema
        folder.write_table("benchmark.parquet", pa.Table.from_pylist(rows, schema))
        return {"benchmark": committed(folder, "benchmark")}

    with pytest.raises(UserError, match=f"{rows[1]['item_id']}' can't be read"):
        run(benchmark("broken", [rows[0], rows[1] | {"image": b"\x89PNG"}]), methods=("copy",))
    with pytest.raises(UserError, match=f"{rows[0]['item_id']}' 2 times"):
        run(benchmark("doubled", rows + rows[:1]), methods=("copy",))
    buffer = io.BytesIO()
    Image.new("RGB", (20, 32)).save(buffer, format="PNG")
    odd = benchmark("odd", [*rows[:2], rows[2] | {"image": buffer.getvalue()}])
    with pytest.raises(UserError, match=f"{rows[2]['item_id']}' is 20x32 pixels"):
        run(odd, methods=("regenerate",))
    scaled, _ = run(odd, "scaled", methods=("regenerate", "copy"), num_pixels=1024)
    shapes = {key: pixels(data).shape for key, data in edits(scaled).items()}
    assert shapes[rows[2]["item_id"], "regenerate"] == (32, 32, 3) and shapes[rows[2]["item_id"], "copy"] == (32, 20, 3)
    with pytest.raises(UserError, match="has no items"):
        run(benchmark("empty", []), methods=("copy",))


def test_without_a_method_there_is_nothing_to_do(given, run):
    with pytest.raises(UserError, match="edit: no method is named.*--set 'edit.methods="):
        run(given, methods=())


def test_configuration():
    for methods in (("copy", "copy"), ("paint",), ("byg_video",)):
        with pytest.raises(ValidationError):
            EditConfig(methods=methods)
    for strength in (0, 1.1):
        for field in ("sdedit_strengths", "flowedit_starts"):
            with pytest.raises(ValidationError):
                EditConfig(**{field: (strength,)})
    with pytest.raises(ValidationError, match="at most the lowest of flowedit_starts"):
        EditConfig(flowedit_starts=(0.5, 0.9), flowedit_end=0.6)
    scaled = EditConfig(num_workers=8, batch_size=1, device="cpu", num_gpus=1, num_cpus=2)
    assert identity(EditConfig()) == identity(scaled)
    assert identity(EditConfig()) != identity(EditConfig(guidance_scale=1.0))
    assert edit_sources(EditConfig(model="black-forest-labs/FLUX.1-dev")) == []
