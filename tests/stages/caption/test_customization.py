"""Customization: rules of names and settings, and the stage on replayed answers."""

import json

import pytest
from pydantic import ValidationError

from cluster.errors import UserError
from stages.caption import work
from stages.caption.customization import prompt
from stages.caption.customization.rules import check_object, check_settings
from stages.caption.customization.stage import (
    CUSTOMIZATION_SCHEMA,
    CustomizeConfig,
    customize_images,
    customize_sources,
)
from stages.caption.words import plain_name
from stages.encode.rows import tuple_rows
from tests.artifacts import committed
from tests.stages.caption.replay import NUM_SAMPLES, ReplayEngine, images_of, rows_of, text_of
from tests.stages.ingest.context import make_context

SETTINGS = ["on a wooden bench, with trees behind", "in the snow at dusk", "on a kitchen table beside a cup"]


@pytest.mark.parametrize(
    ("is_unique", "name", "reasons"),
    [
        (True, "teddy bear", []),
        (True, "red old-fashioned bicycle with basket", []),
        (False, "", ["not_unique"]),
        (False, "tree", ["not_unique"]),
        (True, "", ["object_empty"]),
        (True, "small red bag with a long strap", ["object_too_long"]),
    ],
)
def test_objects(is_unique, name, reasons):
    assert check_object(is_unique, name) == reasons


def test_an_articles_is_no_part_of_a_name():
    assert [plain_name(name) for name in (" The red bag.", "an Anchor", "Theo doll")] == [
        "red bag",
        "Anchor",
        "Theo doll",
    ]


@pytest.mark.parametrize(
    ("settings", "reasons"),
    [
        (SETTINGS, []),
        (["top left on pink background", "top right on pink background", "top left on teal background at night"], []),
        (SETTINGS[:2], ["wrong_number"]),
        ([*SETTINGS[:2], 3], ["not_text"]),
        ([*SETTINGS[:2], "outside"], ["too_short"]),
        ([*SETTINGS[:2], "on a hill " * 30], ["too_long"]),
        ([*SETTINGS[:2], "on a chair among other bears"], ["setting_names_object"]),
        ([*SETTINGS[:2], "In snow, at the dusk."], ["settings_alike"]),
    ],
)
def test_settings(settings, reasons):
    assert check_settings(settings, "teddy bear", 3) == reasons


@pytest.fixture
def run(ingest, tmp_path, monkeypatch):
    def call(engine, name="customize", **fields):
        context = make_context(tmp_path / name, "customize")
        monkeypatch.setattr(work, "get_engine", lambda settings, context: engine)
        config = CustomizeConfig(**{"engine": {"model": "m"}, "shard_size": 8} | fields)
        customize_images({"ingest": ingest}, config, context)
        return context

    return call


def answer(request, number):
    """One sample in three shows one thing; one of these is first called by too long a name."""
    index = int(request.key, 16)
    if not images_of(request):
        return json.dumps({"backgrounds": SETTINGS})
    if index % 3:
        return json.dumps({"reason": "Two things.", "is_unique": False, "object": ""})
    name = "a very long name of a small thing" if index == 6 and number == 0 else "a teddy bear"
    return json.dumps({"reason": "One thing.", "is_unique": True, "object": name})


def test_each_setting_of_a_fit_picture_is_a_row_and_the_others_are_no_errors(run):
    engine = ReplayEngine(answer)
    context = run(engine, error_rate_limit=0.0)
    rows, bad = rows_of(context, "tuples"), rows_of(context, "dead_letters")
    fit = [f"{index:016x}" for index in range(0, NUM_SAMPLES, 3)]
    assert [row["sample_id"] for row in rows] == [sample_id for sample_id in fit for _ in range(3)]
    assert {(row["outcome"], row["reason"], row["attempts"]) for row in bad} == {("filtered", "not_unique", 1)}
    assert len(bad) == 20 and {row["edit_type"] for row in rows + bad} == {"customization"}
    first = rows[0]
    assert first["instruction"] == (
        "Generate the main object shown in the first image in a different setting and pose: " + SETTINGS[0]
    )
    assert (first["src_caption"], first["tgt_caption"]) == ("A picture of the teddy bear", f"teddy bear {SETTINGS[0]}")
    assert (first["object"], first["setting"], first["reverse_instruction"]) == ("teddy bear", SETTINGS[0], "")
    assert [row["setting"] for row in rows[:3]] == SETTINGS
    assert context.rows == context.figures["num_tuples"] == 30
    assert context.figures["outcomes"] == {"filtered": 20, "ok": 10}
    asked = [text_of(request) for request in engine.requests if not images_of(request)]
    assert asked == [prompt.backgrounds_text("teddy bear")] * 10
    for name in context.out.list(".parquet", recursive=True):
        assert context.out.read_table(name).schema.equals(CUSTOMIZATION_SCHEMA)


def test_settings_are_sampled_and_objects_are_not(run):
    def refuse_once(request, number):
        if request.key == f"{0:016x}" and number == 1:
            return json.dumps({"backgrounds": ["on a bear rug"] * 3})
        return answer(request, number)

    engine = ReplayEngine(refuse_once)
    rows = rows_of(run(engine, temperatures=(0.0, 0.5), setting_temperatures=(1.0, 0.9)), "tuples")
    settings = [request for request in engine.requests if not images_of(request)]
    assert {request.temperature for request in engine.requests if images_of(request)} == {0.0, 0.5}
    assert [request.temperature for request in settings if request.key == f"{0:016x}"] == [1.0, 0.9]
    assert len({request.seed for request in settings}) == len(settings) == 11 and len(rows) == 30


def test_the_rows_are_read_for_encoding_as_edit_tuples_are(run, ingest):
    context = run(ReplayEngine(answer), instruction_template="show it {setting}")
    rows = tuple_rows(ingest.folder, committed(context.out, "customize").folder).rows
    assert len(rows) == 30 and len({row.id for row in rows}) == 30
    assert [row.id for row in rows[:3]] == ["0" * 16, "0" * 16 + "-1", "0" * 16 + "-2"]
    assert rows[1].texts["instruction"] == f"show it {SETTINGS[1]}"
    assert rows[1].labels == {"edit_type": "customization", "object": "teddy bear"}


def test_an_example_goes_before_each_picture_and_belongs_to_the_fingerprint(run, tmp_path):
    example = tmp_path / "example.png"
    example.write_bytes(b"a picture")
    engine = ReplayEngine(answer)
    run(engine, example=str(example))
    asked = [images_of(request) for request in engine.requests if images_of(request)]
    assert {len(images) for images in asked} == {2} and {images[0] for images in asked} == {b"a picture"}
    assert customize_sources(CustomizeConfig(engine={"model": "m"}, example=str(example)))[-1] == str(example)
    with pytest.raises(UserError, match="customize.example: .*nowhere.png can't be read"):
        run(ReplayEngine(answer), "none", example=str(tmp_path / "nowhere.png"))


def test_templates_without_their_places_are_refused():
    with pytest.raises(ValidationError, match="has no {setting}"):
        CustomizeConfig(caption_template="{object}")
    with pytest.raises(ValidationError, match="has no {object}"):
        CustomizeConfig(source_template="A picture")
