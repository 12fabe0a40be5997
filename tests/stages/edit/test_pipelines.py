import io
import json
import weakref

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, QwenImageEditPipeline, QwenImageEditPlusPipeline, WanVACEPipeline
from PIL import Image
from pydantic import ValidationError

from cluster.config import identity
from cluster.errors import UserError
from stages.edit.editors import Item
from stages.edit.pipelines import PipelineSettings, load_pipeline
from stages.edit.settings import EditConfig, edit_sources
from stages.edit.shard import EditShard, Task
from stages.edit.stage import edit_images
from stages.evaluate.settings import EvaluateConfig
from stages.evaluate.stage import evaluate_edits
from stages.report.stage import ReportConfig, write_report
from stages.starter import world
from stages.starter.stages import BenchmarkConfig, make_benchmark, sample_edits
from stages.train.flow import item_generator
from tests.artifacts import committed
from tests.stages.ingest.context import make_context
from tests.tiny_editors import save_kontext, save_qwen_image_edit, save_wan_vace


@pytest.fixture(scope="module")
def kontext(tiny_flux, tmp_path_factory):
    return save_kontext(tiny_flux, tmp_path_factory.mktemp("kontext") / "model")


@pytest.fixture(scope="module")
def items():
    edits = sample_edits("benchmark", 2, 0)
    pictures = [Image.fromarray(world.render(edit.source)) for edit in edits]
    return [Item(f"item-{i}", pictures[i], edits[i].instruction, "", "") for i in range(2)]


def load(model, guidance_scale=2.5, seed=3, dtype=torch.float32, num_inference_steps=2):
    settings = PipelineSettings(
        model=str(model), num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
    )
    return load_pipeline("theirs", settings, seed=seed, device="cpu", dtype=dtype)


def silent(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def same(ours, theirs):
    return ours.size == theirs.size and np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_kontext_is_the_pipeline_called_by_hand(kontext, items):
    pipeline = silent(FluxKontextPipeline.from_pretrained(kontext))
    edited = load(kontext).edit(items)
    for item, ours in zip(items, edited, strict=True):
        theirs = pipeline(
            image=item.image, prompt=item.instruction, height=32, width=32, max_area=32 * 32, _auto_resize=False,
            num_inference_steps=2, guidance_scale=2.5, generator=item_generator(item.item_id, 3),
        ).images[0]  # fmt: skip
        assert same(ours, theirs)
    assert not same(*edited)
    assert same(load(kontext).edit(items[1:])[0], edited[1])  # whatever came before
    assert not same(load(kontext, seed=4).edit(items[:1])[0], edited[0])
    assert not same(load(kontext, guidance_scale=1.0).edit(items[:1])[0], edited[0])


def test_kontext_keeps_the_pictures_shape(kontext, items):
    for size in ((48, 32), (24, 64)):
        item = Item("a", items[0].image.resize(size), items[0].instruction, "", "")
        assert load(kontext).edit([item])[0].size == size
    with pytest.raises(UserError, match="'a' is 36x32 pixels; .* multiples of 8"):
        load(kontext).edit([Item("a", items[0].image.resize((36, 32)), "", "", "")])


@pytest.mark.parametrize("plus", [False, True])
def test_qwen_image_edit_is_the_pipeline_called_by_hand(plus, tmp_path, items):
    save_qwen_image_edit(tmp_path / "model", plus=plus)
    item = Item("a", items[0].image.resize((48, 32)), items[0].instruction, "", "")
    pipeline_class = QwenImageEditPlusPipeline if plus else QwenImageEditPipeline
    theirs = silent(pipeline_class.from_pretrained(tmp_path / "model"))(
        image=item.image, prompt=item.instruction, negative_prompt=" ", true_cfg_scale=4.0, height=32, width=48,
        num_inference_steps=1, generator=item_generator("a", 3),
    ).images[0]  # fmt: skip
    ours = load(tmp_path / "model", guidance_scale=4.0, num_inference_steps=1).edit([item])[0]
    assert ours.size == (48, 32) and same(ours, theirs)


def test_wan_vace_is_the_pipeline_called_by_hand(tmp_path, items):
    save_wan_vace(tmp_path / "model")
    item = Item("a", items[0].image.resize((48, 32)), items[0].instruction, "", "")
    pipeline = silent(WanVACEPipeline.from_pretrained(tmp_path / "model"))

    def call(image):
        return pipeline(
            video=[image], prompt=item.instruction, negative_prompt=" ", height=32, width=48, num_frames=1,
            num_inference_steps=2, guidance_scale=5.0, generator=item_generator("a", 3), output_type="pil",
        ).frames[0]  # fmt: skip

    ours = load(tmp_path / "model", guidance_scale=5.0).edit([item])[0]
    assert len(call(item.image)) == 1 and ours.size == (48, 32) and same(ours, call(item.image)[0])
    assert not same(ours, call(items[1].image.resize((48, 32)))[0])  # the picture conditions
    coarse = load(tmp_path / "model", guidance_scale=5.0, dtype=torch.bfloat16)
    assert coarse.pipeline.transformer.dtype == torch.bfloat16 and coarse.pipeline.vae.dtype == torch.float32
    assert np.abs(np.asarray(coarse.edit([item])[0], dtype=int) - np.asarray(ours)).mean() < 4
    with pytest.raises(UserError, match="multiples of 16"):
        coarse.edit([Item("a", item.image.resize((40, 32)), "", "", "")])


@pytest.fixture
def given(tmp_path):
    context = make_context(tmp_path, "benchmark")
    make_benchmark({}, BenchmarkConfig(num_items=2), context)
    return {"benchmark": committed(context.out, "benchmark")}


def test_a_pipeline_is_a_method_of_the_stage(given, kontext, tiny_flux, tmp_path, monkeypatch):
    def in_process(shards, work, **options):
        for shard in shards:
            work(shard)

    for stage in ("edit", "evaluate"):
        monkeypatch.setattr(f"stages.{stage}.stage.run_shards", in_process)
    settings = {"model": str(kontext), "num_inference_steps": 2, "guidance_scale": 2.5}
    config = EditConfig(
        methods=("regenerate",), model=str(tiny_flux), num_inference_steps=2, device="cpu",
        pipelines={"kontext": settings, "kontext-free": settings | {"guidance_scale": 1.0}},
    )  # fmt: skip
    context = make_context(tmp_path, "edit")
    edit_images(given, config, context)
    tables = [name for name in context.out.list(".parquet", recursive=True) if name.startswith("edits/")]
    rows = [row for name in tables for row in context.out.read_table(name).to_pylist()]
    assert sorted({row["method"] for row in rows}) == ["kontext", "kontext-free", "regenerate"]
    assert context.rows == len(rows) == 6
    for method, guidance_scale in (("kontext", 2.5), ("kontext-free", 1.0)):
        pictures = {row["item_id"]: row["image"] for row in rows if row["method"] == method}
        for row in given["benchmark"].folder.read_table("benchmark.parquet").to_pylist():
            image = Image.open(io.BytesIO(row["image"])).convert("RGB")
            expected = load(kontext, guidance_scale, seed=0).edit(
                [Item(row["item_id"], image, row["instruction"], "", "")]
            )[0]
            assert same(Image.open(io.BytesIO(pictures[row["item_id"]])), expected)
    given["edit"] = committed(context.out, "edit")
    context = make_context(tmp_path, "evaluate")
    evaluate_edits(given, EvaluateConfig(num_resamples=100), context)
    assert set(context.figures["results"]) == {"regenerate", "kontext", "kontext-free"}
    given["evaluate"] = committed(context.out, "evaluate")
    context = make_context(tmp_path, "report")
    write_report(given, ReportConfig(), context)
    assert "<b>kontext-free</b>" in context.out.read_text("report.html")


def test_one_model_at_a_time_is_kept(given, kontext, tiny_flux, tmp_path):
    settings = PipelineSettings(model=str(kontext), num_inference_steps=1, guidance_scale=1)
    config = EditConfig(model=str(tiny_flux), num_inference_steps=1, device="cpu", pipelines={"kontext": settings})
    benchmark = given["benchmark"].folder
    item_id = benchmark.read_table("benchmark.parquet")["item_id"][0].as_py()
    shards = {method: Task(benchmark, (item_id,), method) for method in ("regenerate", "kontext")}
    work = EditShard(shards, {}, config, make_context(tmp_path, "edit").out)
    work("regenerate")
    transformer = weakref.ref(work.sampler.transformer)
    work("kontext")
    assert transformer() is None
    transformer = weakref.ref(work.pipeline.pipeline.transformer)
    work("kontext")
    assert work.pipeline.pipeline.transformer is transformer()
    work("regenerate")
    assert transformer() is None


def test_what_cannot_be_loaded_is_named_before_anything_runs(given, tiny_flux, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": "FluxFillPipeline"}))
    for model, message in (
        (tmp_path / "nothing", r"edit.pipelines.theirs.model: .*nothing can't be loaded"),
        (tmp_path / "other", "holds a FluxFillPipeline, .* FluxKontextPipeline, QwenImageEditPipeline"),
        (tiny_flux, "holds a FluxPipeline"),
    ):
        theirs = PipelineSettings(model=str(model), num_inference_steps=2, guidance_scale=1)
        with pytest.raises(UserError, match=message):
            edit_images(given, EditConfig(methods=(), pipelines={"theirs": theirs}), make_context(tmp_path, "edit"))


def test_configuration(kontext):
    settings = {"model": str(kontext), "num_inference_steps": 28, "guidance_scale": 2.5}
    for name in ("sdedit", "byg", "a/b", "../a", ""):
        with pytest.raises(ValidationError, match="already" if name.isalpha() else "pattern"):
            EditConfig(pipelines={name: settings})
    config = EditConfig(methods=("copy",), pipelines={"kontext": settings})
    assert config.all_methods == ("copy", "kontext") and str(kontext) in edit_sources(config)
    others = [EditConfig(methods=("copy",), pipelines=p) for p in ({}, {"kontext": settings | {"guidance_scale": 1}})]
    assert len({json.dumps(identity(c)) for c in (config, *others)}) == 3
