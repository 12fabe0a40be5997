"""NP-Edit's proposals on replayed answers: what becomes of every edit, what is asked and how often."""

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
from stages.caption.proposals import prompt
from stages.caption.proposals.stage import PROPOSALS_SCHEMA, ProposeConfig, ask_proposals, propose_edits
from stages.caption.trial import try_rows
from stages.encode.rows import tuple_rows
from tests.artifacts import committed
from tests.stages.caption.proposals.examples import EDITED, EDITS, SOURCE, TYPES, edit_of
from tests.stages.caption.replay import NUM_SAMPLES, ReplayEngine, files_of, rows_of, text_of
from tests.stages.ingest.context import make_context


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
