"""Evolution captions: their rules on hand-written rows, and the stage on replayed answers."""

import json

import pyarrow as pa
import pytest

from cluster.config import identity
from cluster.errors import UserError
from cluster.folder import Folder
from stages.caption import work
from stages.caption.evolution import prompt
from stages.caption.evolution.rules import check_polish, check_process
from stages.caption.evolution.stage import EVOLUTION_SCHEMA, EvolveConfig, evolve_captions, evolve_sources
from stages.starter import clips, world
from stages.starter.stages import PairsConfig, make_pairs, sample_edits
from tests.artifacts import committed
from tests.stages.caption.replay import ReplayEngine, images_of, rows_of, text_of
from tests.stages.ingest.context import make_context

COAT = ("Make the woman's coat dark green.", "The woman's red coat slowly turns dark green while all else stays still.")
GOOD = (
    COAT,
    ("Remove the brown dog beside the sofa.", "The brown dog beside the sofa gradually fades away."),
    ("Change the background to a forest", "The background slowly transforms into a dense forest behind the man."),
    ("make him smile", "The man's lips slowly curve until he is smiling."),
    ("put a golden frame around the mirror", "A golden frame gradually grows around the mirror."),
    ("turn it into a night scene", "night falls"),
)


@pytest.mark.parametrize(("instruction", "caption"), GOOD)
def test_good_caption_breaks_no_rule(instruction, caption):
    assert check_process(caption, instruction) == []


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("make the woman's coat dark green", "instruction_copied"),
        ("Slowly make the woman's coat dark green, step by step.", "instruction_copied"),
        ("Everything gradually turns as it was asked for.", "change_not_named"),
        ("The first image shows a red coat, which turns dark green.", "tells_of_the_request"),
        ("The red coat turns dark green, as the instruction asks.", "tells_of_the_request"),
        ("The red coat is edited to be dark green.", "tells_of_the_request"),
        ("Over the frames the red coat turns dark green.", "tells_of_the_request"),
        ("Green", "too_short"),
        ("The coat turns dark green. " * 30, "too_long"),
    ],
)
def test_rule_fires(caption, reason):
    assert reason in check_process(caption, COAT[0])


@pytest.mark.parametrize(
    ("polished", "reasons"),
    [
        ("Smoothly and gradually, the woman's red coat turns dark green, and all else stays still.", []),
        ("The red coat of the woman slowly turns a dark green while everything else stays still.", []),
        ("The coat slowly turns dark green.", ["polish_lost_words"]),
        (
            "The woman's red coat slowly turns dark green while all else stays still and birds cross a stormy sky.",
            ["polish_added_words"],
        ),
        ("The man's yellow hat slowly turns dark green.", ["polish_lost_words", "polish_added_words"]),
    ],
)
def test_polishing_changes_wording_alone(polished, reasons):
    assert check_polish(polished, COAT[1], COAT[0]) == reasons


def test_the_worlds_own_captions_keep_the_rules_and_those_of_other_edits_rarely_do():
    edits = sample_edits("pairs", 240, 0)
    captions = [clips.evolution_caption(edit) for edit in edits]
    for edit, caption in zip(edits, captions, strict=True):
        assert check_process(caption, edit.instruction) == [] == check_polish(caption, caption, edit.instruction)
        assert check_process(edit.instruction, edit.instruction) == ["instruction_copied"]
    other_types = [(edit, captions[index - 1]) for index, edit in enumerate(edits)]  # the types take turns
    caught = sum(check_process(caption, edit.instruction) != [] for edit, caption in other_types)
    assert caught > 100


@pytest.fixture
def pairs(tmp_path):
    context = make_context(tmp_path, "pairs")
    make_pairs({}, PairsConfig(num_pairs=12), context)
    table = context.out.read_table("pairs.parquet")
    return table.drop_columns(["evolution_caption"])


@pytest.fixture
def run(tmp_path, monkeypatch):
    def call(engine, table, name="evolve", **fields):
        folder = Folder(tmp_path / f"{name}-pairs")
        folder.write_table("any/name.parquet", table)
        context = make_context(tmp_path / name, "evolve")
        monkeypatch.setattr(work, "get_engine", lambda settings, context: engine)
        config = EvolveConfig(**{"engine": {"model": "m"}, "shard_size": 5} | fields)
        evolve_captions({"pairs": committed(folder, "pairs")}, config, context)
        return context

    return call


TRUE = {edit.instruction: clips.evolution_caption(edit) for edit in sample_edits("pairs", 12, 0)}


def answer(request, number):
    """The world's own caption to the first call; the second one gets it back with another word."""
    text = text_of(request)
    if images_of(request):
        (caption,) = [caption for instruction, caption in TRUE.items() if f": {instruction}\n" in text]
        return json.dumps({"evolution_caption": caption})
    caption = text.split("\n")[0].split(": ", 1)[1]
    return json.dumps({"evolution_caption": f"Slowly {caption}"})


def test_every_pair_is_told_and_then_polished(run, pairs):
    engine = ReplayEngine(answer)
    context = run(engine, pairs, suffix="All is smooth.")
    rows, given = rows_of(context, "captions"), pairs.to_pylist()
    assert [row["pair_id"] for row in rows] == [pair["pair_id"] for pair in given]
    for row, pair in zip(rows, given, strict=True):
        assert row["evolution_caption"] == f"Slowly {TRUE[pair['instruction']]}. All is smooth."
        assert (row["edit_type"], row["instruction"]) == (pair["edit_type"], pair["instruction"])
        first, second = [request for request in engine.requests if request.key == row["pair_id"]]
        assert images_of(first) == [pair["source_image"], pair["target_image"]]
        assert text_of(first) == prompt.prompt_text(pair["instruction"], pair["edit_type"]) and not images_of(second)
    assert set(context.figures["edit_types"]) == set(world.EDIT_TYPES) and context.rows == 12
    assert context.out.read_table(context.out.list("parquet", recursive=True)[0]).schema.equals(EVOLUTION_SCHEMA)


def test_without_polish_a_pair_is_one_call_and_the_caption_stays_as_it_is(run, pairs):
    engine = ReplayEngine(answer)
    rows = rows_of(run(engine, pairs, polish=False, suffix=""), "captions")
    assert [row["evolution_caption"] for row in rows] == [TRUE[row["instruction"]] for row in rows]
    assert len(engine.requests) == 12


def test_pairs_without_a_caption_say_why(run, pairs):
    rows = pairs.to_pylist()
    rows[0]["instruction"] = " "
    rows[1]["edit_type"] = "lighting"
    stubborn, slow = rows[2]["pair_id"], rows[3]["pair_id"]

    def bad(request, number):
        if request.key == stubborn and not images_of(request):
            return json.dumps({"evolution_caption": "A cat jumps over seven lazy dogs."})
        if request.key == slow and number == 0:
            return json.dumps({"evolution_caption": rows[3]["instruction"]})
        return answer(request, number)

    context = run(ReplayEngine(bad), pa.Table.from_pylist(rows, pairs.schema), temperatures=(0.0, 0.7))
    found = {row["pair_id"]: (row["outcome"], row["reason"]) for row in rows_of(context, "dead_letters")}
    reason = found.pop(stubborn)[1]
    assert "polish_lost_words" in reason and "polish_added_words" in reason
    assert found == {
        rows[0]["pair_id"]: ("failed", "empty_field:instruction"),
        rows[1]["pair_id"]: ("failed", "unknown_edit_type:lighting"),
    }
    (late,) = [row for row in rows_of(context, "captions") if row["pair_id"] == slow]
    assert late["attempts"] == 2 and context.figures["rules_broken"]["instruction_copied"] == 1


def test_pairs_without_the_columns_are_refused(run, pairs):
    with pytest.raises(UserError, match="no table with the columns pair_id, edit_type, instruction, source_image"):
        run(ReplayEngine(answer), pairs.drop_columns(["edit_type"]))
    with pytest.raises(UserError, match="evolve: the tables in .* hold no pair"):
        run(ReplayEngine(answer), pairs.slice(0, 0), "empty")


def test_what_belongs_to_the_fingerprint(tmp_path):
    config = EvolveConfig(engine={"model": str(tmp_path)})
    assert [path.rsplit("/", 2)[-2:] for path in evolve_sources(config)[1:]] == [["evolution", "v1"]]
    assert identity(EvolveConfig(engine={"model": str(tmp_path)}, suffix="")) != identity(config)
