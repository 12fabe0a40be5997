"""What the vision-language model is taught for proposing and verifying edits, and the shipped weights."""

import io
import json
import pathlib
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from stages.caption.proposals import prompt
from stages.caption.proposals.rules import check_edits
from stages.starter import oracle, vlm_data, vlm_proposal_data, vlm_questions, world
from stages.starter.vlm_caption_measure import to_png
from stages.starter.vlm_measure import find_edit
from stages.starter.vlm_pretrain import PROPOSAL_SETTINGS, pretrain_vlm
from stages.starter.vlm_proposal_measure import agreement, is_true, judge_all
from stages.starter.vlm_tokenizer import build_processor

MODELS = pathlib.Path(__file__).parents[3] / "stages/starter/models"
SHIPPED = MODELS / "qwen3vl_proposals"


@pytest.fixture
def generator():
    return np.random.default_rng(5)


def scenes(generator, count):
    return [vlm_data.draw_scene(generator) for _ in range(count)]


def asked_about(scene, generator, count):
    """(edit type, instruction, verdict) of instructions, in turn valid and not."""
    for number in range(count):
        edit_type, instruction = vlm_proposal_data.draw_instruction(scene, number % 2 == 0, generator)
        answer = vlm_proposal_data.verify_question(scene, edit_type, instruction)[1]
        yield edit_type, instruction, json.loads(answer)


def test_new_pieces_stand_behind_the_known_ones(generator):
    known, more = (build_processor(proposals).tokenizer for proposals in (False, True))
    assert known.get_vocab().items() <= more.get_vocab().items() and len(more) > len(known)
    texts = [
        text
        for scene in scenes(generator, 3)
        for asked in vlm_data.one_image_questions(scene, generator)
        for text in asked
    ]
    assert [more.encode(text) for text in texts] == [known.encode(text) for text in texts]


def test_prompts_and_answers_are_short_and_round_trip(generator):
    tokenizer = build_processor(True).tokenizer
    for scene in scenes(generator, 20):
        asked = vlm_proposal_data.proposal_questions(scene, generator)
        for question, answer in asked:
            tokens = [tokenizer.encode(text) for text in (question, answer)]
            assert [tokenizer.decode(found) for found in tokens] == [question, answer]
            assert len(tokens[0]) <= 40 and len(tokens[1]) <= 50


def test_answers_keep_their_schemas(generator):
    for scene in scenes(generator, 10):
        (text, answer), verdict = (
            vlm_proposal_data.proposal_question(scene, generator),
            vlm_proposal_data.verify_question(scene, "style", "turn it into a night scene")[1],
        )
        edits, schema = json.loads(answer)["edits"], prompt.proposal_schema([])["properties"]["edits"]
        assert answer == json.dumps({"edits": edits}, separators=vlm_data.COMPACT)
        assert schema["minItems"] == len(edits) == len({edit["edit_type"] for edit in edits})
        assert all(list(edit) == schema["items"]["required"] for edit in edits)
        places = [text.index(f"\n- {edit['edit_type']}: ") for edit in edits]
        assert places == sorted(places)  # one for each type that was asked for, in its order
        assert list(json.loads(verdict)) == prompt.verify_schema()["required"]
        assert verdict == json.dumps(json.loads(verdict), separators=vlm_data.COMPACT)


def test_answers_are_what_the_grammar_admits(generator):
    """Token by token, as vLLM asks it: a long piece can be admitted as text and yet be masked."""
    xgrammar = pytest.importorskip("xgrammar")
    tokenizer = build_processor(True).tokenizer
    size = len(tokenizer)
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size))
    scene = scenes(generator, 1)[0]
    offered = vlm_proposal_data.offer_types(generator)
    edits = [vlm_proposal_data.propose(scene, name, generator) for name in offered]
    verdicts = [vlm_proposal_data.verify_question(scene, e["edit_type"], e["instruction"])[1] for e in edits]
    answers = [(json.dumps({"edits": edits}, separators=vlm_data.COMPACT), prompt.proposal_schema(offered))]
    for answer, schema in [*answers, *((verdict, prompt.verify_schema()) for verdict in verdicts)]:
        grammar = compiler.compile_json_schema(json.dumps(schema), any_whitespace=False, separators=vlm_data.COMPACT)
        matcher, mask = xgrammar.GrammarMatcher(grammar), xgrammar.allocate_token_bitmask(1, size)
        for token in tokenizer.encode(answer):
            matcher.fill_next_token_bitmask(mask)
            assert int(mask[0, token // 32]) >> token % 32 & 1, tokenizer.decode([token])
            assert matcher.accept_token(token)


def test_proposals_are_edits_that_the_scene_admits(generator):
    impossible = 0
    for scene in scenes(generator, 40):
        for edit in json.loads(vlm_proposal_data.proposal_question(scene, generator)[1])["edits"]:
            found = find_edit(scene, edit["edit_type"], edit["instruction"])
            if edit["edit_type"] in world.possible_edit_types(scene):
                assert found.object == edit["object"]
                assert oracle.caption_is_right(found.target, world.render(found.target))
            else:
                impossible += 1
                assert found is None and edit["object"] in edit["instruction"]
    assert 10 < impossible < 60


def test_verdicts_are_the_worlds(generator):
    """An instruction is said to be valid where the world has it as an edit; the caption is that of its target."""
    yes = []
    for scene in scenes(generator, 10):
        for edit_type, instruction, verdict in asked_about(scene, generator, 4):
            edit = find_edit(scene, edit_type, instruction)
            assert verdict["is_valid"] == (edit is not None), instruction
            assert verdict["edited_caption"] == (edit.tgt_caption if edit else "")
            yes.append(verdict["is_valid"])
    assert np.mean(yes) == 0.5


def test_reasons_are_what_the_picture_shows(generator):
    """The oracle reads the picture; instructions are taken apart here."""
    reasons = vlm_questions.VERIFY_REASONS
    seen = dict.fromkeys(reasons.values(), 0)
    for scene in scenes(generator, 250):
        reading = oracle.read(world.render(scene))
        shown = [found and f"{found[1]} {found[0]}" for found in reading.objects]
        for edit_type, instruction, verdict in asked_about(scene, generator, 6):
            reason = verdict["reason"]
            seen[reason] += 1
            if reason == reasons["absent"]:
                assert not any(name and f"the {name} " in f"{instruction} " for name in shown)
            elif reason == reasons["taken"]:
                place = next(p for p in world.PLACES if instruction.endswith(p))
                assert shown[world.PLACES.index(place)]
            elif reason == reasons["same"]:
                words = instruction.split()
                new = words[-2] if edit_type == "style" else words[-1]
                old = {"style": reading.style, "background": reading.background, "color": words[-3]}
                assert words[2:4] == words[6:] if edit_type == "replace" else new == old[edit_type], instruction
            elif reason in (reasons["last"], reasons["third"]):
                assert sum(map(bool, shown)) == (1 if reason == reasons["last"] else 2)
                assert edit_type == ("remove" if reason == reasons["last"] else "add")
            elif reason == reasons["two"]:
                (old, new) = (
                    match.split() for match in re.fullmatch(r"replace the (.+) with a (.+)", instruction).groups()
                )
                assert old[0] != new[0] and old[1] != new[1]
            elif reason == reasons["alike"]:
                words = instruction.split()
                new = {"color": [words[-1], words[-2]], "replace": words[-2:], "add": words[2:4]}[edit_type]
                assert " ".join(new) in shown
    assert min(seen.values()) > 3
    assert seen[reasons["fits"]] == 750


def test_an_edit_type_alone_tells_no_verdict(generator):
    verdicts = {name: [] for name in world.EDIT_TYPES}
    for scene in scenes(generator, 150):
        for edit_type, _, verdict in asked_about(scene, generator, 6):
            verdicts[edit_type].append(verdict["is_valid"])
    assert all(0.25 < np.mean(found) < 0.75 for found in verdicts.values())


def test_training_goes_on_from_a_trained_model(tmp_path):
    """With no step: the known pieces' embeddings and all else are the trained ones, new pieces have others."""
    settings = PROPOSAL_SETTINGS.model_copy(update={"language_steps": 0})
    folder = pretrain_vlm(tmp_path / "model", tmp_path / "work", settings=settings, start=MODELS / "qwen3vl")
    before, after = (safetensors.torch.load_file(f / "model.safetensors") for f in (MODELS / "qwen3vl", folder))
    num_known, num_all = (len(build_processor(proposals).tokenizer) for proposals in (False, True))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        tensor, now = (t[:num_known] if "embed_tokens" in name else t for t in (tensor, after[name]))
        assert torch.equal(tensor, now)
    new = next(t for name, t in after.items() if "embed_tokens" in name)[num_known:num_all].float()
    assert torch.corrcoef(new).fill_diagonal_(0).abs().max() < 0.6 and new.std() > 0.01


@pytest.fixture(scope="module")
def shipped():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(SHIPPED)
    processor.tokenizer.padding_side = "left"
    return processor, AutoModelForImageTextToText.from_pretrained(SHIPPED, dtype=torch.float32).eval()


def ask(shipped, chats):
    """What the shipped model says to (messages, schema), greedy and without the grammar of the schema."""
    processor, model = shipped
    texts = [processor.apply_chat_template(messages, add_generation_prompt=True) for messages, _ in chats]
    images = [Image.open(io.BytesIO(messages[0]["content"][0]["image"])) for messages, _ in chats]
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
    tokens = model.generate(**inputs, max_new_tokens=60, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def test_shipped_model_proposes_and_verifies(shipped):
    assert shipped[0].tokenizer.get_vocab() == build_processor(True).tokenizer.get_vocab(), (
        "the prompts changed: train the model anew"
    )
    generator = np.random.default_rng(12)
    drawn = [vlm_data.draw_scene(generator, held_out=True) for _ in range(12)]
    offers = [vlm_proposal_data.offer_types(generator) for _ in drawn]
    pictures = [to_png(world.render(scene)) for scene in drawn]
    chats = [prompt.build_proposal_chat(*about) for about in zip(pictures, offers, strict=True)]
    true = []
    for scene, offered, text in zip(drawn, offers, ask(shipped, chats), strict=True):
        edits = json.loads(text)["edits"]
        assert [edit["edit_type"] for edit in edits] == offered and not any(check_edits(edits, offered))
        true += [is_true(scene, e) for e in edits if e["edit_type"] in world.possible_edit_types(scene)]
    assert np.mean(true) >= 0.9
    instructions = [
        (scene, *vlm_proposal_data.draw_instruction(scene, number % 2 == 0, generator, held_out=True))
        for number, scene in enumerate(drawn)
    ]
    figures = agreement(judge_all(lambda chats, _: ask(shipped, chats), instructions))
    assert figures["precision"] >= 0.8 and figures["recall"] >= 0.8 and figures["caption_exact"] >= 0.8


def test_shipped_folder_is_small_and_safe():
    files = {path.name: path.stat().st_size for path in SHIPPED.iterdir()}
    assert sum(files.values()) < 3_000_000 and not [n for n in files if n.endswith((".bin", ".pt", ".pkl", ".py"))]
