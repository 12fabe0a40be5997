"""The benchmarks' own repositories, read as a user would have them. They aren't ours to ship.

`git clone` google/dreambooth, PKU-YuanGroup/ImgEdit, TIGER-AI-Lab/VIEScore and stepfun-ai/Step1X-Edit, and set
PAIRLESS_DREAMBOOTH, PAIRLESS_IMGEDIT, PAIRLESS_VIESCORE and PAIRLESS_STEP1X to the checkouts. ImgEdit's pictures are in
an archive beside its code: here they are drawn, under the names that its list has.
"""

import ast
import collections
import io
import json
import os
import pathlib
import runpy

import pytest
from PIL import Image

from cluster.errors import UserError
from stages.evaluate.judges.imgedit.judge import EDIT_TYPES
from stages.evaluate.judges.judge import EditToJudge
from stages.evaluate.judges.tasks import get_judge
from stages.ingest.benchmarks.listing import choose
from stages.ingest.benchmarks.stage import (
    IngestBenchmarkConfig,
    IngestCustomizationBenchmarkConfig,
    ingest_benchmark,
)
from tests.stages.ingest.context import make_context
from tests.stages.ingest.pictures import png, table_rows

DREAMBOOTH, IMGEDIT, STEP1X, VIESCORE = (
    os.environ.get(f"PAIRLESS_{name}") for name in ("DREAMBOOTH", "IMGEDIT", "STEP1X", "VIESCORE")
)
needs_dreambooth = pytest.mark.skipif(not DREAMBOOTH, reason="PAIRLESS_DREAMBOOTH names no checkout")
needs_imgedit = pytest.mark.skipif(not IMGEDIT, reason="PAIRLESS_IMGEDIT names no checkout")
EDIT = EditToJudge("m/1", b"source", b"edited", "make it red", "add")


@pytest.fixture
def in_process(monkeypatch):
    """Shards are done in this process."""

    def run(shards, work, **options):
        for shard in shards:
            work(shard)

    monkeypatch.setattr("stages.ingest.benchmarks.stage.run_shards", run)


def dreambooth_lists(text):
    """The two lists of prompts as templates, read as the Python that they are; and {subject: class}."""
    lists = []
    for part in text.split("prompt_list = ")[1:]:
        calls = ast.parse(part[: part.index("]") + 1], mode="eval").body.elts
        lists.append([call.func.value.value for call in calls])
    table = text.split("subject_name,class")[1].split("Prompts")[0]
    return lists, dict(line.split(",") for line in table.strip().splitlines())


@needs_dreambooth
def test_dreambooth_has_every_subject_with_the_prompts_of_its_list():
    text = (pathlib.Path(DREAMBOOTH) / "dataset" / "prompts_and_classes.txt").read_text()
    (objects, living), classes = dreambooth_lists(text)
    assert len(objects) == len(living) == 25 and len(classes) == 30
    choice = choose(IngestCustomizationBenchmarkConfig(source=DREAMBOOTH).listing(), None)
    assert len(choice.items) == 750 and not choice.problems
    found = collections.defaultdict(dict)
    for item in choice.items:
        subject, picture, number = item.item_id.split("/")
        assert item.file == f"{subject}/{picture}.jpg" and item.src_caption == f"a {classes[subject]}"
        assert item.instruction.endswith(f": {item.tgt_caption}") and item.metadata["prompt"] == item.tgt_caption
        assert item.metadata["class"] == classes[subject]
        found[subject][int(number)] = (item.edit_type, item.tgt_caption)
    assert found.keys() == classes.keys()
    for subject, class_name in classes.items():
        kind, templates = ("live", living) if class_name in ("cat", "dog") else ("object", objects)
        wanted = [(kind, template.replace("{0} ", "").format("", class_name)) for template in templates]
        assert [found[subject][number] for number in range(25)] == wanted
    kinds = collections.Counter(prompts[0][0] for prompts in found.values())
    assert kinds == {"object": 21, "live": 9}


@needs_dreambooth
def test_dreambooths_pictures(in_process, tmp_path):
    """Plain JPEGs keep their bytes; of a telephone's, with a second picture behind the first, the first is kept."""
    context = make_context(tmp_path, "ingest_customization_benchmark")
    ingest_benchmark({}, IngestCustomizationBenchmarkConfig(source=DREAMBOOTH, trial=51), context)
    assert context.figures["title"] == "DreamBooth, trial subset of 102 items"
    files, formats = {}, set()
    for row in table_rows(context, "benchmark"):
        about = json.loads(row["metadata"])
        files.setdefault(f"{about['subject']}/{about['reference']}", row["image"])
    for name, data in files.items():
        path = pathlib.Path(DREAMBOOTH) / "dataset" / name
        with Image.open(path) as there, Image.open(io.BytesIO(data)) as kept:
            assert kept.convert("RGB").tobytes() == there.convert("RGB").tobytes() and kept.size == there.size
            assert (data == path.read_bytes()) == (there.format == "JPEG") and getattr(kept, "n_frames", 1) == 1
            formats.add(there.format)
    assert formats == {"JPEG", "MPO"}


@needs_imgedit
def test_imgedit_with_pictures_beside_its_code(in_process, tmp_path):
    """The code's repository names the edits; the archive's pictures lie elsewhere, as `imgedit.edit_json` allows."""
    edit_json = pathlib.Path(IMGEDIT) / "Benchmark" / "Basic" / "basic_edit.json"
    edits = json.loads(edit_json.read_text())
    for index, name in enumerate(sorted({edit["id"] for edit in edits.values()})):
        path = tmp_path / "pictures" / "Benchmark" / "singleturn" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index, (24, 16), "JPEG"))
    config = IngestBenchmarkConfig(
        source=str(tmp_path / "pictures"), layout="imgedit", imgedit={"edit_json": str(edit_json)}
    )
    context = make_context(tmp_path, "ingest_benchmark")
    ingest_benchmark({}, config, context)
    assert context.figures["title"] == "ImgEdit-Bench Basic" and not context.figures["problems"]
    assert context.figures["num_items"] == context.figures["num_expected"] == 737
    assert context.figures["by_type"] == {
        "extract": 117, "style": 100, "add": 95, "adjust": 94, "background": 94, "replace": 92, "remove": 86,
        "action": 36, "compose": 23,
    }  # fmt: skip
    rows = {row["item_id"]: row for row in table_rows(context, "benchmark")}
    assert {key: (row["edit_type"], row["instruction"]) for key, row in rows.items()} == {
        key: (edit["edit_type"], edit["prompt"]) for key, edit in edits.items()
    }
    assert len({row["source_id"] for row in rows.values()}) == 171
    with pytest.raises(UserError, match="no folder .*animal.* of pictures, nor has singleturn/.*Benchmark.tar"):
        IngestBenchmarkConfig(source=IMGEDIT, layout="imgedit").listing()


@needs_imgedit
def test_imgedits_words_are_filled_as_its_script_does():
    rubrics = json.loads((pathlib.Path(IMGEDIT) / "Benchmark" / "Basic" / "prompts.json").read_text())
    assert set(rubrics) == set(EDIT_TYPES)
    judge = get_judge("imgedit", IMGEDIT)
    for edit_type, rubric in rubrics.items():
        (call,) = judge.calls(EditToJudge("m/1", b"source", b"edited", "make it red. ", edit_type))
        assert [part.get("text", part.get("image")) for part in call.content] == [
            rubric.replace("<edit_prompt>", "make it red. "), b"source", b"edited",
        ]  # fmt: skip


@pytest.mark.parametrize("checkout", [VIESCORE, STEP1X], ids=["PAIRLESS_VIESCORE", "PAIRLESS_STEP1X"])
@pytest.mark.parametrize(("task", "rules", "place"), [
    ("viescore", ("two_image_edit_rule", "tie_rule_SC"), "<instruction>"),
    ("viescore_subject", ("subject_image_gen_rule", "sdig_rule_SC"), "<prompt>"),
])  # fmt: skip
def test_viescores_words_are_put_together_as_its_script_does(checkout, task, rules, place):
    if not checkout:
        pytest.skip("no checkout is named")
    (file,) = [path for path in pathlib.Path(checkout).rglob("vie_prompts.py")]
    words = runpy.run_path(str(file))  # plain strings; the project itself reads them without running the file
    context = words["_context_no_delimit"]
    said = "\n".join([context, *(words[f"_prompts_0shot_{rule}"] for rule in rules)]).replace(place, "make it red")
    sc, pq = get_judge(task, checkout).calls(EDIT)
    assert sc.content[-1]["text"] == said and [part["type"] for part in sc.content] == ["image", "image", "text"]
    assert pq.content[-1]["text"] == "\n".join([context, words["_prompts_0shot_rule_PQ"]]) and len(pq.content) == 2
