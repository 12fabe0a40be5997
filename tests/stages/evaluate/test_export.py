"""A run's edits in the official layouts, and back again as somebody else's pictures."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cluster.folder import Folder
from stages.edit.folders import FolderSettings, find_edits, read_picture
from stages.edit.shard import EDITS_SCHEMA
from stages.evaluate import export
from stages.evaluate.imgedit_scores import item_score, type_scores
from stages.ingest.benchmarks.listing import BENCHMARK_SCHEMA
from tests.artifacts import committed
from tests.stages.ingest.pictures import noise, png

GEDIT = ["subject-add/en/k0", "subject-add/en/k1", "text_change/en/k0"]


def make_run(root, kind, item_ids, replies=None, lacking=()):
    """A finished run with two methods; returns its summary's path."""
    items, edits = [], []
    for index, item_id in enumerate(item_ids):
        values = dict.fromkeys(BENCHMARK_SCHEMA.names, "") | {
            "item_id": item_id,
            "edit_type": ("add", "style")[index % 2],
        }
        items.append(values | {"image": png(index, (12, 8), "JPEG"), "metadata": json.dumps({"benchmark": kind})})
        for method in ("ours", "theirs"):
            row = {"item_id": item_id, "method": method, "image": png(50 + index), "seconds": 0.1}
            edits.append(row | ({"image": None, "reason": "missing: none"} if (method, item_id) in lacking else {}))
    made = {"ingest_benchmark": ("benchmark/00000.parquet", pa.Table.from_pylist(items, BENCHMARK_SCHEMA))}
    made["edit"] = ("edits/00000.parquet", pa.Table.from_pylist(edits, EDITS_SCHEMA))
    if replies:
        made["evaluate"] = ("calls.parquet", pa.Table.from_pylist(replies))
    stages = {"benchmark": {"status": "skipped", "artifact": "", "fingerprint": ""}}
    for stage, (name, table) in made.items():
        folder = Folder(root / stage / "ffff")
        folder.write_table(name, table)
        committed(folder, stage)
        stages[stage] = {"status": "ran", "artifact": f"/gone/{stage}/ffff", "fingerprint": "ffff"}
    Folder(root / "runs" / "r1").write_json("summary.json", {"run_id": "r1", "stages": stages})
    return str(root / "runs" / "r1" / "summary.json")


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_gedit_layout(tmp_path, capsys):
    summary = make_run(tmp_path / "root", "gedit", GEDIT)
    out = tmp_path / "results"
    assert export.main(["--run", summary, "--layout", "gedit", "--out", str(out)]) == 0
    assert f"{out}/ours: 3 of 3 pictures" in capsys.readouterr().out
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    wanted = [f"{method}/fullset/{item_id}{end}.png" for method in ("ours", "theirs") for item_id in GEDIT
              for end in ("", "_SRCIMG")]  # fmt: skip
    assert names == sorted(wanted)
    assert np.array_equal(pixels(out / "ours/fullset/subject-add/en/k1.png"), noise(51))
    source = Image.open(io.BytesIO(png(1, (12, 8), "JPEG"))).convert("RGB")
    assert np.array_equal(pixels(out / "ours/fullset/subject-add/en/k1_SRCIMG.png"), np.asarray(source))
    settings = FolderSettings(path=str(out / "ours"))
    found = find_edits("edit.folders.ours.path", settings, GEDIT)
    assert not found.unknown and read_picture(found, settings, GEDIT[1], (10, 8)) == png(51)


def test_a_picture_that_is_missing_is_named_and_the_exit_code_is_1(tmp_path, capsys):
    summary = make_run(tmp_path / "root", "gedit", GEDIT, lacking=[("theirs", GEDIT[0])])
    command = ["--run", summary, "--layout", "gedit", "--out", str(tmp_path / "out")]
    assert export.main(command) == 1
    assert "theirs: 2 of 3 pictures; without a picture is subject-add/en/k0 (missing: none)" in capsys.readouterr().out
    assert export.main([*command, "--methods", "ours"]) == 0
    folder = Folder(tmp_path / "root" / "ingest_benchmark" / "ffff")
    missing = {"item_id": "text_change/en/k7", "source_id": "x", "edit_type": "text_change", "reason": "absent: no k7"}
    folder.write_table("missing/absent.parquet", pa.Table.from_pylist([missing]))
    folder.write_json("benchmark.json", {"num_expected": 4})
    capsys.readouterr()
    assert export.main([*command, "--methods", "ours"]) == 1
    assert "ours: 3 of 4 pictures; without a picture is text_change/en/k7 (absent: no k7)" in capsys.readouterr().out


def test_imgedit_layout_with_the_judges_files(tmp_path):
    texts = {"7": "Brief: fine\nPrompt Compliance: 4\nVisual: 5\nDetail: 4", "8": "no scores", "9": "A: 1\nB: 2\nC: 2"}
    replies = [{"item_id": key, "method": "ours", "call": "imgedit", "text": text} for key, text in texts.items()]
    replies.append({"item_id": "7", "method": "ours", "call": "pq", "text": "X: 1"})
    summary = make_run(tmp_path / "root", "imgedit", ["7", "8", "9"], replies)
    assert export.main(["--run", summary, "--layout", "imgedit", "--out", str(tmp_path / "out")]) == 0
    ours = tmp_path / "out" / "ours"
    assert sorted(path.name for path in ours.glob("*.png")) == ["7.png", "8.png", "9.png"]
    assert json.loads((ours / "result.json").read_text()) == texts
    assert json.loads((ours / "average_score.json").read_text()) == {"7": 4.33, "9": 1.67}
    assert json.loads((ours / "typescore.json").read_text()) == {"add": 3.0}
    assert not (tmp_path / "out" / "theirs" / "result.json").exists()


def test_imgedit_scores_by_hand():
    """The replies of the benchmark's own description, with their sums by hand: 3 / 3, 9 / 3, 11 / 3."""
    ones = "Brief reasoning: none.\nPrompt Compliance: 1\nVisual Seamlessness: 1\nPhysical & Detail Fidelity: 1"
    assert item_score(ones) == 1.0
    assert item_score(ones.replace("Seamlessness: 1", "Seamlessness: 4").replace("Fidelity: 1", "Fidelity: 4")) == 3.0
    assert item_score("Style Fidelity: 1\nContent Preservation: 5\nRendering Quality: 5") == 3.67
    assert item_score("Quality: 3/5\nratio: a: 4\n") is None
    assert type_scores({"a": 1.0, "b": 3.67, "c": 4.0}, {"a": "style", "b": "style", "c": "add"}) == {
        "add": 4.0, "style": 2.33,
    }  # fmt: skip  # (1 + 3.67) / 2 = 2.335 is 2.33 in binary floating point, as the official script has it


def test_what_cannot_be_exported(tmp_path, capsys):
    summary = make_run(tmp_path / "root", "table", ["a/b", "c"])

    def refused(*arguments, run=summary):
        assert export.main(["--run", run, "--out", str(tmp_path / "out"), *arguments]) == 2
        return capsys.readouterr().err

    assert "isn't one of the benchmark of --layout gedit; --layout items is for it" in refused("--layout", "gedit")
    assert "no finished stage edit_customization; it has edit, ingest_benchmark" in refused(
        "--layout", "items", "--stage", "edit_customization"
    )
    told = "edit has no edits by other; it has some by ours, theirs"
    assert told in refused("--layout", "items", "--methods", "ours", "other")
    assert "is no summary.json of a run" in refused("--layout", "items", run=str(tmp_path / "summary.json"))
    (tmp_path / "odd.json").write_text('{"stages": {"edit": "ran"}}')
    assert "is no summary.json of a run" in refused("--layout", "items", run=str(tmp_path / "odd.json"))
    (tmp_path / "out").write_text("a file")
    assert "--out" in (said := refused("--layout", "items")) and "can't be written (Not a directory)" in said
    (tmp_path / "out").unlink()
    assert export.main(["--run", summary, "--layout", "items", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "ours" / "a" / "b.png").exists()
    table = tmp_path / "root" / "edit" / "ffff" / "edits" / "00000.parquet"
    size = table.stat().st_size
    for data, wrong in (
        (bytes(size), "00000.parquet can't be read ("),
        (b"PAR1", "00000.parquet of the artifact has 4 b"),
    ):
        table.write_bytes(data)
        assert export.main(["--run", summary, "--layout", "items", "--out", str(tmp_path / "out")]) == 1
        assert wrong in capsys.readouterr().err
    Folder(tmp_path / "root" / "edit" / "ffff").remove("manifest.json")
    assert "the artifact of edit isn't at /gone/edit/ffff any more" in refused("--layout", "items")


@pytest.mark.parametrize("stage, benchmark", [("edit", "benchmark"), ("edit_customization", "customization_benchmark")])
def test_the_benchmark_is_the_stages_own(tmp_path, stage, benchmark):
    folder = Folder(tmp_path / benchmark / "ffff")
    folder.write_text("x", "x")
    committed(folder, benchmark)
    stages = {benchmark: {"status": "cached", "artifact": folder.url, "fingerprint": "ffff"}}
    assert export._benchmark(stages, str(tmp_path / "runs" / "latest.json"), stage) == folder
