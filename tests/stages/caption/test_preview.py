"""What a data engine asks about one row, without a model and with replayed answers."""

from __future__ import annotations

import contextlib
import json

import pytest
from PIL import Image

from stages.caption import preview
from stages.caption.engines import ENGINES
from stages.caption.preview import main
from tests.stages.caption.replay import ReplayEngine, images_of
from tests.stages.caption.test_video import make_clip

GOOD = {
    "edit_type": "color",
    "src_caption": "red circle top left on gray background",
    "instruction": "make the red circle blue",
    "tgt_caption": "blue circle top left on gray background",
    "reverse_instruction": "make the blue circle red",
}
ONLY_COLOR = ["--set", "caption.edit_types=[color]", "caption.num_offered=1"]


@pytest.fixture
def files(tmp_path):
    """Two pictures and a clip, as paths."""
    for name, size in (("a.png", (64, 32)), ("b.png", (48, 48))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    (tmp_path / "c.webp").write_bytes(make_clip(9))
    return tmp_path


def arguments_of(engine, files):
    picture, other, clip = (str(files / name) for name in ("a.png", "b.png", "c.webp"))
    return ["--engine", engine] + {
        "caption": ["--image", picture],
        "evolve": ["--image", picture, other, "--instruction", "make it blue", "--edit-type", "color"],
        "video_prompts": ["--caption", "An animated film of a cat."],
        "verify_clips": ["--clip", clip, "--style", "night"],
        "customize": ["--image", picture],
        "propose": ["--image", picture],
    }[engine]


SAID = {
    "caption": ["<picture 1: PNG, 64 x 32 pixels,", '"edit_type"', "captions_equal "],
    "evolve": ["<picture 2: PNG, 48 x 48 pixels,", ": make it blue\n", "instruction_copied "],
    "video_prompts": ["An animated film of a cat.", '"caption"', "style_left "],
    "verify_clips": ["<picture 4: PNG, 8 x 8 pixels,", "night", "none: the answer is free text", "style_not_seen "],
    "customize": ["<picture 1: PNG, 64 x 32", '"is_unique"', "Call 2 depends on the answer", "settings_alike "],
    "propose": [
        "<picture 1: PNG, 64 x 32",
        '"edits"',
        "placed_vaguely ",
        "Calls 3 to 6 depend on",
        "caption_unchanged ",
    ],
}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_chat_is_printed_without_a_model(engine, files, capsys):
    assert main(arguments_of(engine, files)) == 0
    said = capsys.readouterr().out
    assert "[user]\n" in said and "JSON schema of the answer: " in said and "Rules of its answer:" in said
    assert all(part in said for part in SAID[engine])


@pytest.fixture
def replayed(monkeypatch):
    def use(answer):
        @contextlib.contextmanager
        def opened(config, context):
            yield ReplayEngine(answer)

        monkeypatch.setattr(preview, "opened", opened)

    return use


def test_answers_are_judged_by_every_rule_and_the_row_is_shown(files, replayed, capsys):
    bad = GOOD | {"tgt_caption": "the circle is now blue on gray background", "reverse_instruction": "undo it"}
    answers = ["I can't.", json.dumps(bad), json.dumps(GOOD)]
    replayed(lambda request, number: answers[number])
    assert main([*arguments_of("caption", files), *ONLY_COLOR, "--run"]) == 0
    said = capsys.readouterr().out
    unread, broken, good = said.split("\n\nAttempt ")[1:]
    assert "BROKEN  no_json " in unread and "kept" not in unread and "> I can't." in unread
    assert "50 prompt tokens, 40 answer tokens, ended by stop" in broken
    assert "BROKEN  target_tells_of_the_edit" in broken and "BROKEN  reverse_not_self_contained" in broken
    assert "kept    no_json" in broken and "kept    too_long" in broken
    assert "n/a     object_not_found" in broken and "n/a     style_not_offered" in broken
    good, row = good.split("Row of tuples/: ")
    assert "temperature 0.8" in good and "BROKEN" not in good
    row = json.loads(row)
    assert {name: row[name] for name in GOOD} == GOOD and (row["outcome"], row["attempts"]) == ("ok", 3)


def test_later_calls_are_shown_with_rules_of_their_own(files, replayed, capsys):
    def answer(request, number):
        if images_of(request):
            return json.dumps({"reason": "One.", "is_unique": True, "object": "the bear"})
        return json.dumps({"backgrounds": ["on a bear rug", "in the snow", "on a table"]})

    replayed(answer)
    assert main([*arguments_of("customize", files), "--run"]) == 0
    said = capsys.readouterr().out
    assert "kept    not_unique" in said and "Call 2 to " in said and said.count("BROKEN  setting_names_object") == 4
    assert "n/a" not in said
    row = json.loads(said.split("Row of dead_letters/: ")[1])
    assert (row["outcome"], row["reason"], row["object"]) == ("filtered", "setting_names_object", "bear")


def test_what_was_not_judged_any_more_is_not_called_kept(files, replayed, capsys):
    replayed(lambda request, number: json.dumps({"reason": "Two.", "is_unique": False, "object": ""}))
    assert main([*arguments_of("customize", files), "--run"]) == 0
    said = capsys.readouterr().out
    assert "BROKEN  not_unique" in said and "n/a     object_empty" in said and "n/a     object_too_long" in said
    assert "kept    empty_field" in said


def test_a_row_that_no_model_is_asked_about_says_so(files, capsys):
    arguments = arguments_of("evolve", files)
    assert main([*arguments[:-1], "lighting"]) == 0
    assert "The model isn't asked: the row is failed before, unknown_edit_type:lighting." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "caption asks one edit of a picture: give it --image PATH"),
        (["--image", "a.png", "b.png"], "caption asks one edit of a picture: give it --image PATH"),
        (["--image", "nowhere.png"], "nowhere.png can't be read: "),
        (
            ["--image", "a.png", "--set", "caption.num_ofered=1"],
            "no field caption.num_ofered; did you mean 'num_offered'",
        ),
        (["--image", "a.png", "--set", "encode.model=x"], "only settings of caption matter here"),
        (["--image", "a.png", "--profile", "startr"], "no profile 'startr'"),
    ],
)
def test_errors_are_one_paragraph(more, message, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    assert main(["--engine", "caption", *more]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().split("\n")) == 1


def test_a_file_that_is_no_picture_is_shown_as_such(files, capsys):
    (files / "text.png").write_text("no picture")
    assert main(["--engine", "customize", "--image", str(files / "text.png")]) == 0
    assert "10 bytes that are no picture" in capsys.readouterr().out


def test_help_lists_the_engines(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in ENGINES)
