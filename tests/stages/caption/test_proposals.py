"""NP-Edit's proposals: rules of edits, captions and verdicts, offers, and the stage on replayed answers."""

import collections
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from cluster.artifacts import Artifact, commit
from cluster.config import identity
from cluster.errors import UserError
from stages.caption import work
from stages.caption.contents import read_contents
from stages.caption.offers import offer_evenly
from stages.caption.proposals import prompt
from stages.caption.proposals.rules import VerdictRule, check_edits, check_verdict
from stages.caption.proposals.stage import PROPOSALS_SCHEMA, ProposeConfig, ask_proposals, propose_edits
from stages.caption.trial import try_rows
from stages.encode.stage import tuple_rows
from tests.artifacts import committed
from tests.stages.caption.replay import NUM_SAMPLES, ReplayEngine, files_of, rows_of, text_of
from tests.stages.ingest.context import make_context

TYPES = ("color", "add", "remove", "replace", "background", "style")
EDITS = {
    "color": ("red car", "make the red car blue"),
    "add": ("kite", "add a kite in the sky"),
    "remove": ("brown dog", "remove the brown dog on the left"),
    "replace": ("bench", "replace the bench with a stone wall"),
    "background": ("background", "change the background to a beach"),
    "style": ("style", "turn the image into a watercolor"),
}
SOURCE = "A brown dog and a red car beside a bench."
EDITED = {
    "color": "A brown dog and a blue car beside a bench.",
    "add": "A brown dog and a red car beside a bench, a kite above.",
    "remove": "A red car beside a bench.",
    "replace": "A brown dog and a red car beside a stone wall.",
    "background": "A brown dog and a red car beside a bench on a beach.",
    "style": "A watercolor of a brown dog and a red car beside a bench.",
}


def edit_of(edit_type, object=None, instruction=None):
    name, words = EDITS.get(edit_type, ("thing", "turn the thing round"))
    return {
        "edit_type": edit_type,
        "object": name if object is None else object,
        "instruction": instruction or words,
    }


@pytest.mark.parametrize(
    ("edit", "reasons"),
    [
        *[(edit_of(edit_type), []) for edit_type in TYPES],
        (edit_of("text"), ["type_not_offered"]),
        (edit_of("color", instruction="blue"), ["too_short"]),
        (edit_of("style", instruction="turn it " * 13), ["too_long"]),
        (edit_of("color", instruction="make the red car blue and then wash it"), ["not_single"]),
        (edit_of("color", instruction="make the red car blue. Paint the wall green."), ["not_single"]),
        (edit_of("color", instruction="make the red car blue and remove the dog"), ["not_single"]),
        (edit_of("color", instruction='write "And then there; were none" on the red car'), []),
        (edit_of("background", object=""), ["object_empty"]),
        (edit_of("remove", object=" ."), ["object_empty"]),
        (edit_of("color", object="the big red car that stands there"), ["object_too_long"]),
        (edit_of("remove", object="gray dog"), ["object_not_in_instruction"]),
        (edit_of("color", object="vehicle"), []),
        (edit_of("add", instruction="add a kite"), ["not_placed"]),
        (edit_of("add", instruction="add a kite next to the tree"), ["placed_vaguely"]),
        (edit_of("add", instruction="add a kite near the top of the tree"), ["placed_vaguely"]),
        (edit_of("remove", instruction="remove the brown dog near the tree"), []),
        (edit_of("add", object="red circle", instruction="add a red circle top left"), []),
    ],
)
def test_edits(edit, reasons):
    assert check_edits([edit], TYPES) == [reasons]


def test_of_two_edits_of_one_type_the_second_is_bad():
    edits = [edit_of("color"), edit_of("add"), edit_of("color", instruction="make the red car green")]
    assert check_edits(edits, TYPES) == [[], [], ["type_repeated"]]


@pytest.mark.parametrize(
    ("edit_type", "caption", "reasons"),
    [
        *[(edit_type, EDITED[edit_type], []) for edit_type in TYPES],
        ("color", "Car.", ["edited_caption_too_short"]),
        ("color", "A blue car. " * 80, ["edited_caption_too_long"]),
        ("color", SOURCE.upper(), ["caption_unchanged"]),
        ("color", "A car that was changed to blue.", ["caption_tells_of_the_edit"]),
        ("color", "The car is now blue.", ["caption_tells_of_the_edit"]),
        ("remove", "A car from which the cat was removed.", ["caption_tells_of_the_edit"]),
        ("remove", "A car without company.", ["caption_tells_of_the_edit"]),
        ("color", 'A sign that reads "Do not remove" on a blue car.', []),
        ("remove", "A brown dog and a red car.", ["caption_names_removed_object"]),
        ("remove", "A dog and a red car.", ["caption_names_removed_object"]),
        ("add", "A brown dog and a red car.", ["caption_lacks_added_object"]),
    ],
)
def test_verdicts(edit_type, caption, reasons):
    assert check_verdict(True, caption, edit_of(edit_type), SOURCE) == reasons


def test_another_object_of_the_removed_ones_kind_may_stay():
    edit = edit_of("remove", "red circle", "remove the red circle")
    before = "red circle top left and blue circle top right on gray background"
    assert check_verdict(True, "blue circle top right on gray background", edit, before) == []
    assert check_verdict(True, before.replace("gray", "pink"), edit, before) == [VerdictRule.NAMES_REMOVED_OBJECT]
    assert check_verdict(False, "", edit, before) == ["not_valid"]


def test_types_are_asked_for_evenly_and_removals_as_often_as_is_wished():
    for shares, removals in (({}, 200), ({"remove": 0.25}, 300)):
        offers = offer_evenly(300, TYPES, 4, shares, seed=5)
        assert offers == offer_evenly(300, TYPES, 4, shares, seed=5) != offer_evenly(300, TYPES, 4, shares, seed=6)
        counts = collections.Counter(name for offer in offers for name in offer)
        others = (1200 - removals) / 5
        assert all(abs(counts[name] - (removals if name == "remove" else others)) <= 1 for name in TYPES)
        assert {len(set(offer)) for offer in offers} == {4} and len({offer[0] for offer in offers}) == 6
    pairs = collections.Counter(frozenset(pair) for o in offers for pair in ((a, b) for a in o for b in o if a < b))
    assert min(pairs.values()) > 60 and len(pairs) == 15  # no two types keep away from each other


def test_examples_are_one_of_each_type_and_vary():
    assert all(len(found) > 2 for found in prompt.good_examples().values())
    shown = [prompt.choose_examples(TYPES[:4], seed) for seed in range(30)]
    assert {tuple(found) for found in shown} == {TYPES[:4]} and len({found["color"] for found in shown}) > 2
    text = prompt.proposal_text(TYPES[:4], shown[0])
    assert all(f"- {name}: {instruction}\n" in text for name, instruction in shown[0].items())
    assert "Examples of good" not in prompt.proposal_text(TYPES[:4])
    with pytest.raises(ValueError, match="not size"):
        prompt.proposal_text(["size"])


def test_all_good_examples_keep_the_rules():
    for edit_type, instructions in prompt.good_examples().items():
        for words in instructions:
            noun = re.sub(r"^(?:add a|remove the|take away the|replace the) ", "", words).split(" ")[0]
            edit = edit_of(edit_type, noun, words)
            assert check_edits([edit], tuple(prompt.good_examples())) == [[]], words


def is_about(request):
    """What a request asks for: "edits", "caption" or (edit type, instruction)."""
    text = text_of(request)
    if text == prompt.caption_text():
        return "caption"
    found = re.search(r"Type of the edit: (\w+)\nInstruction: (.+)", text)
    return found.groups() if found else "edits"


def asked_types(request):
    return request.schema["properties"]["edits"]["items"]["properties"]["edit_type"]["enum"]


def said(edits):
    return json.dumps({"edits": edits})


def verdict(caption, reason="It can be done."):
    return json.dumps({"reason": reason, "is_valid": bool(caption), "edited_caption": caption})


def answer(request, number):
    """By what is asked: everything is good, but

    of picture 0 the removal isn't valid; of 1 the verdict on the removal can't be read; of 2 nothing is valid; of 3 no
    proposal can be read; of 4 additions are placed vaguely; of 5 the first proposals have a type twice.
    """
    index, about = int(request.key, 16), is_about(request)
    if about == "caption":
        return SOURCE
    if about == "edits":
        edits = [edit_of(name) for name in asked_types(request)]
        if index == 3:
            return "I can't."
        if index == 4:
            return said([e | {"instruction": e["instruction"].replace("in the sky", "near the top")} for e in edits])
        if index == 5 and number == 0:
            return said([edits[1], *edits[1:]])
        return said(edits)
    edit_type, _ = about
    if index == 2 or (index == 0 and edit_type == "remove"):
        return verdict("", "There is no dog.")
    if index == 1 and edit_type == "remove":
        return "What?"
    return verdict(EDITED[edit_type])


@pytest.fixture
def run(ingest, tmp_path, monkeypatch):
    def call(engine, name="propose", earlier=None, **fields):
        context = make_context(tmp_path / name, "propose")
        context.earlier = earlier
        monkeypatch.setattr(work, "get_engine", lambda settings, context: engine)
        propose_edits({"ingest": ingest}, config_of(**fields), context)
        return context

    return call


def config_of(**fields):
    settings = {"engine": {"model": "m"}, "shard_size": 8, "edit_types": TYPES, "remove_share": 0.25}
    return ProposeConfig(**settings | {"temperatures": (0.0, 0.6), "proposal_temperatures": (0.7, 0.9)} | fields)


def by_picture(rows):
    found = collections.defaultdict(list)
    for row in rows:
        found[int(row["sample_id"], 16)].append(row)
    return found


def test_valid_edits_are_rows_and_the_others_are_found_with_their_reasons(run):
    engine = ReplayEngine(answer)
    context = run(engine)
    good, bad = by_picture(rows_of(context, "tuples")), by_picture(rows_of(context, "dead_letters"))
    assert [len(good[index]) for index in range(7)] == [3, 3, 0, 0, 3, 4, 4]
    for index in range(6, NUM_SAMPLES):
        assert [row["edit"] for row in good[index]] == [0, 1, 2, 3] and index not in bad
        assert len({row["edit_type"] for row in good[index]}) == 4
    for row in (row for rows in good.values() for row in rows):
        assert (row["object"], row["instruction"]) == EDITS[row["edit_type"]]
        assert (row["src_caption"], row["tgt_caption"]) == (SOURCE, EDITED[row["edit_type"]])
        assert (row["outcome"], row["reason"], row["reverse_instruction"]) == ("ok", None, "")
    ((lost,), (unread,)) = bad[0], bad[1]
    assert (lost["outcome"], lost["reason"], lost["verdict"]) == ("filtered", "not_valid", "There is no dog.")
    assert (lost["object"], lost["instruction"]) == EDITS["remove"] and lost["attempts"] == 1
    assert sorted([lost["edit"], *(row["edit"] for row in good[0])]) == [0, 1, 2, 3]
    assert (unread["outcome"], unread["reason"], unread["edit_type"]) == ("failed", "no_json", "remove")
    assert unread["attempts"] == 2 == good[1][0]["attempts"]
    assert [(row["edit"], row["reason"]) for row in bad[2]] == [(number, "not_valid") for number in range(4)]
    (failed,) = bad[3]
    assert (failed["reason"], failed["instruction"], failed["edit"]) == ("no_json", None, None)
    assert [row["reason"] for row in bad[4]] == ["placed_vaguely"]
    assert context.figures["outcomes"] == {"failed": 1, "filtered": 1, "ok": 28}
    refused = {"no_json": 1, "not_valid": 5, "placed_vaguely": 1}
    assert context.figures["edits_refused"] == refused and context.figures["num_dead_letters"] == 2
    assert context.rows == sum(map(len, good.values())) == sum(context.figures["edit_types"].values())
    for name in context.out.list(".parquet", recursive=True):
        assert context.out.read_table(name).schema.equals(PROPOSALS_SCHEMA)


def test_what_is_asked_and_how_often(run):
    engine = ReplayEngine(answer)
    context = run(engine)
    asked = collections.defaultdict(list)
    for request in engine.requests:
        asked[int(request.key, 16)].append(request)
    types = asked_types(asked[6][0])
    about = [is_about(request) for request in asked[6]]
    assert about == ["edits", "caption", *((name, EDITS[name][1]) for name in types)]
    assert [request.temperature for request in asked[6]] == [0.7, 0, 0, 0, 0, 0]
    assert [request.temperature for request in asked[3]] == [0.7, 0.9]
    assert [is_about(request) for request in asked[5]][:3] == ["edits", "edits", "caption"]
    assert len({request.seed for request in engine.requests}) == len(engine.requests)
    # a verdict is final where it says no, and asked for again where it can't be read
    assert collections.Counter(is_about(r)[0] for r in asked[0] if is_about(r)[0] == "remove") == {"remove": 1}
    assert collections.Counter(is_about(r)[0] for r in asked[1] if is_about(r)[0] == "remove") == {"remove": 2}
    offered = collections.Counter(name for index in asked for name in asked_types(asked[index][0]))
    assert offered["remove"] == NUM_SAMPLES and max(offered.values()) == NUM_SAMPLES
    others = np.array([offered[name] for name in TYPES if name != "remove"])
    assert others.sum() == 3 * NUM_SAMPLES and others.max() - others.min() <= 4  # of four shards, each even to one
    rules = context.out.read_json("rules.json")["rules"]
    assert rules["type_repeated"]["by_attempt"] == {"1": 1} and rules["not_valid"]["count"] == 5
    assert rules["not_placed"]["count"] == 0 and rules["not_placed"]["meaning"]


def test_bad_edits_are_asked_for_again_and_at_last_the_good_ones_are_taken(run):
    def vague(request, number):
        index, about = int(request.key, 16), is_about(request)
        if about != "edits":
            return SOURCE if about == "caption" else verdict(EDITED[about[0]])
        edits = [edit_of(name) for name in asked_types(request)]
        if index == 0:
            return said([edits[0] | {"object": ""}, edits[1] | {"instruction": "do it and then that"}, *edits[2:]])
        if index == 1:
            return said(edits[:2])
        if index == 2:
            return said([e | {"object": ""} for e in edits])
        if index == 3:
            return said([])
        return said(edits)

    context = run(ReplayEngine(vague))
    good, bad = by_picture(rows_of(context, "tuples")), by_picture(rows_of(context, "dead_letters"))
    assert [row["edit"] for row in good[0]] == [2, 3] and [row["edit"] for row in bad[0]] == [0, 1]
    assert bad[0][0]["reason"] == "object_empty" and bad[0][1]["reason"].startswith("not_single")
    assert {row["attempts"] for row in good[0]} == {2}
    assert [row["edit"] for row in good[1]] == [0, 1] and 1 not in bad
    assert [row["reason"] for row in bad[2]] == ["object_empty"] * 4 and bad[2][0]["src_caption"] is None
    assert [(row["reason"], row["edit"]) for row in bad[3]] == [("wrong_number", None)]
    assert context.figures["outcomes"] == {"filtered": 2, "ok": 28}


def test_pictures_of_which_nothing_is_valid_are_no_errors(run):
    def nothing_valid(request, number):
        match is_about(request):
            case "edits":
                return said([edit_of(name) for name in asked_types(request)])
            case "caption":
                return SOURCE
        return verdict("")

    context = run(ReplayEngine(nothing_valid), error_rate_limit=0.0)
    assert context.rows == 0 and context.figures["edits_refused"] == {"not_valid": 4 * NUM_SAMPLES}
    with pytest.raises(UserError, match="1 of the first 30 images"):  # picture 3; those of picture 2 are no errors
        run(ReplayEngine(answer), "errors", error_rate_limit=0.0)


def test_the_result_depends_on_neither_order_nor_interruption_nor_earlier_artifacts(run):
    whole = files_of(run(ReplayEngine(answer, seed=1), "whole"))
    assert files_of(run(ReplayEngine(answer, seed=2), "other")) == whole
    with pytest.raises(KeyboardInterrupt):
        run(ReplayEngine(answer, seed=3, stop_after=90), "cut")
    engine = ReplayEngine(answer, seed=4)
    assert files_of(run(engine, "cut")) == whole and 0 < len({request.key for request in engine.requests}) < 30

    config = config_of()
    context = run(ReplayEngine(answer, seed=5), "first")
    manifest = commit(
        context.out, stage="propose", version="1", fingerprint=context.fingerprint, config={}, parents={}, run_id="r",
        identity=identity(config), code_version="test",
    )  # fmt: skip
    context.out.remove("manifest.json")
    earlier = Artifact("propose", context.fingerprint, context.out, manifest)
    twice = files_of(run(ReplayEngine(answer, seed=6), "twice", retries=1))
    engine = ReplayEngine(answer, seed=7)
    assert files_of(run(engine, "resumed", earlier, retries=1)) == twice != whole
    assert {int(request.key, 16) for request in engine.requests} == {3}  # what has a good edit, or no valid one, stays


def test_captions_may_come_with_the_pictures(ingest, tmp_path, monkeypatch, run):
    context = make_context(tmp_path / "captioned", "propose")
    samples = [row | {"metadata": json.dumps({"text": f" {SOURCE} "})} for row in read_samples(ingest)[:3]]
    samples[1]["metadata"] = '{"text": 3}'
    folder = make_context(tmp_path / "own", "ingest").out
    folder.write_table("samples/00000.parquet", pa.Table.from_pylist(samples))
    engine = ReplayEngine(lambda r, n: answer(r, n) if is_about(r) != "caption" else pytest.fail("it has one"))
    monkeypatch.setattr(work, "get_engine", lambda settings, context: engine)
    propose_edits({"ingest": committed(folder, "ingest")}, config_of(caption_key="text"), context)
    assert {row["src_caption"] for row in rows_of(context, "tuples")} == {SOURCE}
    dead = [(row["sample_id"], row["reason"]) for row in rows_of(context, "dead_letters") if row["edit"] is None]
    assert dead == [(samples[1]["sample_id"], "no_caption")]


def read_samples(ingest):
    return [
        row
        for name in ingest.folder.list(".parquet", recursive=True)
        if name.startswith("samples/")
        for row in ingest.folder.read_table(name).to_pylist()
    ]


def test_the_rows_are_encoded_as_edit_tuples_are(run, ingest):
    context = run(ReplayEngine(answer))
    rows = tuple_rows(ingest.folder, committed(context.out, "propose").folder).rows
    assert len(rows) == context.rows and len({row.id for row in rows}) == len(rows)
    texts = ("src_caption", "instruction", "tgt_caption")
    assert all(row.texts[name] for row in rows for name in texts)
    assert {row.labels["object"] for row in rows if row.labels["edit_type"] == "remove"} == {"brown dog"}


def test_inspect_counts_pictures_once_and_refused_edits_each(run):
    context = run(ReplayEngine(answer))
    context.out.remove(".lease.json")
    commit(
        context.out, stage="propose", version="1", fingerprint=context.fingerprint, identity={},
        config={"engine": {"model": "m"}}, parents={}, code_version="test", run_id="r", seconds=7.0,
    )  # fmt: skip
    contents = read_contents(context.out.url)
    assert contents.outcomes == context.figures["outcomes"] and contents.num_good == context.rows
    assert contents.reasons["filtered", "not_valid"] == 5 and contents.reasons["failed", "no_json"] == 2
    assert contents.kinds["remove"] == {"ok": context.figures["edit_types"]["remove"], "filtered": 2, "failed": 1}
    shown = {(sample.key, sample.row["edit"]) for sample in contents.bad}
    assert len(shown) == len(contents.bad) == 8


def test_a_trial_goes_on_where_an_edit_is_refused(ingest, tmp_path):
    context, config = make_context(tmp_path / "trial", "propose"), config_of()
    trial = try_rows(ask_proposals({"ingest": ingest}, config, context), config, context, ReplayEngine(answer))
    good, bad = by_picture(trial.good), by_picture(trial.bad)
    assert (len(good[0]), len(bad[0]), len(good[1]), len(bad[1])) == (3, 1, 3, 1)
    assert max(exchange.call for exchange in trial.exchanges) == 6


def test_settings_that_cannot_be_kept_are_refused():
    for fields, said in (
        ({"edit_types": TYPES[:3]}, "choose 4 or more"),
        ({"edit_types": ("color", "color", "add", "style")}, "each once"),
        ({"edit_types": ("color", "add", "style", "text", "shape")}, "edit_types has no remove"),
        ({"edit_types": TYPES[:4]}, "each picture gets all"),
        ({"remove_share": 0.3}, "less than or equal to 0.25"),
    ):
        with pytest.raises(ValidationError, match=said):
            config_of(**fields)
    assert len(ProposeConfig(engine={"model": "m"}).edit_types) == 10
