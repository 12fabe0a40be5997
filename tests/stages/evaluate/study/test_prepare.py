import io
import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cluster.errors import UserError
from stages.evaluate.study.__main__ import main
from stages.evaluate.study.definition import MEDIA, read_study
from stages.evaluate.study.prepare import KEEP, MIN_DIFFERENCE, choose, find_evaluation
from stages.train.backbones.clip_files import read_clip, write_clip
from tests.stages.evaluate.study.example_study import METHODS, RUN_ID, edit, item, noise, png, prepared, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    items = [item(index, edit_type=("add", "remove", "style")[index % 3]) for index in range(30)]
    edits = [
        edit(index, method, png(noise(100 + 2 * index + p))) for index in range(30) for p, method in enumerate(METHODS)
    ]
    write_run(root, items, edits)
    return str(root)


def pixels(folder, name):
    return np.asarray(Image.open(folder / MEDIA / name).convert("RGB"))


def test_a_study_shows_what_the_run_evaluated(run, tmp_path):
    study = prepared(run, tmp_path / "study")
    assert read_study(tmp_path / "study")[0] == study
    evaluation = find_evaluation(run, "evaluate")
    benchmark = {
        r["item_id"]: r for r in evaluation.inputs["benchmark"].folder.read_table("benchmark.parquet").to_pylist()
    }
    edits = {
        (r["item_id"], r["method"]): r for r in evaluation.inputs["edit"].folder.read_table("edits.parquet").to_pylist()
    }
    for shown in study.items:
        row = benchmark[shown.item_id]
        assert (shown.instruction, shown.edit_type) == (row["instruction"], row["edit_type"])
        given = {"reference": row["image"]} | {method: edits[shown.item_id, method]["image"] for method in METHODS}
        for name, file in ({"reference": shown.reference} | shown.outputs).items():
            assert (pixels(tmp_path / "study", file) == np.asarray(Image.open(io.BytesIO(given[name])))).all()
    assert study.num_expected == 30 and study.num_missing == 0
    assert len(study.items) == 30 - study.num_identical
    assert {path.name for path in (tmp_path / "study" / MEDIA).iterdir()} == study.media
    assert (study.origin.run_id, study.origin.stage) == (RUN_ID, "evaluate")


def test_checks_have_a_right_and_a_wrong_answer_by_construction(run, tmp_path):
    study = prepared(run, tmp_path / "study", num_items=16)
    sources = {item.reference: item.source_id for item in study.items}
    assert len(study.checks) == 4 and len({check.reference for check in study.checks}) == 4
    for check in study.checks:
        assert check.right == check.reference and check.instruction == KEEP
        assert sources[check.wrong] != sources[check.reference]
        wrong, right = (pixels(tmp_path / "study", name).astype(float) for name in (check.wrong, check.right))
        assert np.abs(wrong - right).mean() / 255 >= MIN_DIFFERENCE


def test_items_are_even_over_the_edit_types_and_drawn_by_the_seed():
    types = {f"a{index:02d}": "add" for index in range(40)} | {f"s{index}": "style" for index in range(3)}
    chosen = choose(types, 10, 1)
    assert [types[item_id] for item_id in chosen].count("style") == 3 and len(set(chosen)) == 10
    assert chosen == choose(dict(reversed(types.items())), 10, 1) != choose(types, 10, 2)
    assert set(choose(types, None, 1)) == set(types)


def test_the_same_call_makes_the_same_study(run, tmp_path):
    for name in ("one", "two"):
        prepared(run, tmp_path / name, num_items=12, num_per_rater=8)
    assert (tmp_path / "one/study.json").read_bytes() == (tmp_path / "two/study.json").read_bytes()


def test_missing_and_equal_edits_are_left_out_and_counted_and_files_say_nothing(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("model", "byg")
    buffer = io.BytesIO()
    Image.fromarray(noise(100)).save(buffer, "PNG", pnginfo=text)
    edits = [
        edit(index, method, png(noise(10 + index + 50 * place)))
        for index in range(6)
        for place, method in enumerate(METHODS)
    ]
    edits[0] = edit(0, METHODS[0], buffer.getvalue())
    edits[2] = edit(1, METHODS[0], b"no picture")
    edits[4] = edit(2, METHODS[0], None)
    edits[6] = edit(3, METHODS[0], edits[7]["image"])
    del edits[9]  # of item 4
    summary = write_run(tmp_path / "root", [item(index) for index in range(7)], edits)
    study = prepared(summary, tmp_path / "study", num_checks=1)
    assert sorted(item.item_id for item in study.items) == ["i0", "i5"]
    assert (study.num_expected, study.num_missing, study.num_identical) == (7, 4, 1)
    assert not any(b"byg" in (tmp_path / "study" / MEDIA / name).read_bytes() for name in study.media)
    assert (pixels(tmp_path / "study", study.items[0].reference) == noise(int(study.items[0].item_id[1:]))).all()


def test_clips_stay_clips(tmp_path):
    def clip(index):
        return write_clip([Image.fromarray(noise(1000 * index + frame)) for frame in range(3)])

    items = [item(index, clip=clip(index)) for index in range(2)]
    edits = [edit(i, m, png(noise(7)), clip(20 + 2 * i + p)) for i in range(2) for p, m in enumerate(METHODS)]
    edits[0]["clip"] = None  # a picture is no edit of a clip
    study = prepared(write_run(tmp_path / "root", items, edits), tmp_path / "study", num_checks=0)
    (only,) = study.items
    frames = read_clip((tmp_path / "study" / MEDIA / only.outputs[METHODS[1]]).read_bytes())
    assert (np.asarray(frames[2]) == noise(1000 * 23 + 2)).all() and len(frames) == 3
    assert study.num_missing == 1


def test_sources_that_are_all_alike_give_no_checks(tmp_path):
    items = [item(index, image=png(noise(1)), source_id=f"s{index}") for index in range(4)]
    edits = [edit(i, m, png(noise(30 + 2 * i + p))) for i in range(4) for p, m in enumerate(METHODS)]
    summary = write_run(tmp_path / "root", items, edits)
    with pytest.raises(UserError, match="0 of 4 attention checks"):
        prepared(summary, tmp_path / "study")
    assert not (tmp_path / "study").exists()
    assert prepared(summary, tmp_path / "study", num_checks=0).checks == ()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--stage", "evaluat"], "did you mean 'evaluate'"), (["--methods", "byg", "sfd"], "did you mean 'sft'"),
        (["--methods", "byg", "byg"], "given twice"), (["--run", "/nowhere"], "no finished stage"),
        (["--run", "/nowhere/runs/latest.json"], "no file"), (["--run", "/nowhere/x.json"], "is no such place"),
        (["--question", "Better"], "KEY=TEXT"), (["--num-checks", "99"], "too many"),
        (["--min-checks-right", "2"], "a share"),
    ],
)  # fmt: skip
def test_wrong_requests_say_what_is_wrong_and_leave_nothing(run, tmp_path, capsys, arguments, text):
    command = ["prepare", "--run", run, "--methods", *METHODS, "--out", str(tmp_path / "study"), *arguments]
    assert main(command) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_from_a_run_to_figures_by_commands(run, tmp_path, capsys):
    folder = str(tmp_path / "study")
    prepare = ["prepare", "--run", run, "--methods", *METHODS, "--out", folder, "--num-items", "8", "--ties"]
    assert main([*prepare, "--question", "better=Which one?", "--question", "kept=Which keeps more?"]) == 0
    assert "byg against sft on 8 items" in capsys.readouterr().out
    assert main(prepare) == 2 and "already" in capsys.readouterr().err
    assert main(["serve", folder]) == 2 and "Nobody may vote" in capsys.readouterr().err
    assert main(["tokens", folder, "--num", "2", "--url", "https://study.example/x/"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["rater-01", "rater-02"]
    assert lines[0].split("\t")[1].startswith("https://study.example/x/#token=")
    assert main(["analyse", folder, "--json"]) == 0
    analysis = json.loads(capsys.readouterr().out)
    assert (analysis["num_votes"], analysis["num_votes_expected"]) == (0, 32)
    assert main(["analyse", folder]) == 0 and "Which keeps more?" in capsys.readouterr().out
    assert main(["analyse", str(tmp_path)]) == 2 and "holds no study" in capsys.readouterr().err
