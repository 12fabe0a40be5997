"""The starter's vision-language model: tokens, packed forward, what it is taught, the shipped weights."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from stages.caption.edits import prompt as edits_prompt
from stages.evaluate.judges.viescore import prompt as viescore_prompt
from stages.starter import oracle, vlm_data, vlm_packing, vlm_questions, world
from stages.starter.vlm_measure import find_edit, tuple_is_true
from stages.starter.vlm_model import build_model, encode_images, text_hidden_states
from stages.starter.vlm_pretrain import VLMPretrainSettings, pretrain_vlm
from stages.starter.vlm_tokenizer import NUM_IMAGE_TOKENS, build_processor

MODEL = pathlib.Path(__file__).parents[3] / "stages/starter/models/qwen3vl"
TINY = VLMPretrainSettings(
    vision_steps=2,
    language_steps=4,
    num_images=2,
    num_scenes=2,
    num_pairs=2,
    num_qualities=2,
    checkpoint_seconds=0,
)


@pytest.fixture(scope="module")
def generator():
    return np.random.default_rng(3)


def draw_edits(generator, count):
    return [world.sample_edit(world.sample_scene(generator), generator) for _ in range(count)]


def documents_of(edits, generator):
    found = []
    for edit in edits:
        image = vlm_data.draw_result(edit, generator)
        asked = tuple(vlm_data.pair_questions(edit, image, generator))
        found.append(vlm_packing.Document("pair", (world.render(edit.source), image), asked))
    return found


@pytest.mark.parametrize("text", ["", "red", "Ünïcode 漢字 \t\n  two  spaces", 'a "quoted" {brace}', "\0\x7f🙂"])
def test_any_text_round_trips(text):
    tokenizer = build_processor().tokenizer
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_prompts_and_answers_are_short(generator):
    tokenizer = build_processor().tokenizer
    edit = draw_edits(generator, 1)[0]
    assert len(tokenizer.encode(edits_prompt.prompt_text(["color", "add", "style"]))) == 7
    assert len(tokenizer.encode(viescore_prompt.pq_text())) == 1
    assert len(tokenizer.encode(viescore_prompt.sc_text(edit.instruction))) <= 9
    assert len(tokenizer.encode(vlm_data.tuple_answer(edit))) < 60
    for word in ("Yes", "No", "10", '{"edit_type":"', '","tgt_caption":"'):
        assert len(tokenizer.encode(word)) == 1


def test_answers_are_what_the_grammar_admits(generator):
    edit = draw_edits(generator, 1)[0]
    row = json.loads(vlm_data.tuple_answer(edit))
    assert edits_prompt.parse(vlm_data.tuple_answer(edit)) == row
    assert tuple(row) == edits_prompt.FIELDS and ": " not in vlm_data.tuple_answer(edit)
    answer = vlm_data.quality_question(10, 3)[1]
    assert viescore_prompt.parse(answer).second == 3


def test_training_images_equal_the_processors(generator):
    images = np.stack([world.render(world.sample_scene(generator)) for _ in range(3)])
    expected = build_processor().image_processor([Image.fromarray(i) for i in images], return_tensors="pt")
    assert expected["image_grid_thw"].tolist() == [[1, 4, 4]] * 3
    patches = vlm_data.to_patches(images)
    torch.testing.assert_close(patches.flatten(0, 1), expected["pixel_values"], atol=1e-6, rtol=0)


def test_packed_forward_equals_transformers(generator):
    model = build_model(0).eval()
    processor = build_processor()
    documents = documents_of(draw_edits(generator, 2), generator)
    batch = vlm_packing.pack(documents)
    with torch.no_grad():
        embeds = encode_images(model, batch.patches).reshape(2, 2 * NUM_IMAGE_TOKENS, -1)
        packed = (batch.input_ids, embeds, batch.image_places, batch.positions, batch.segments)
        hidden, _ = text_hidden_states(model, *packed)
        logits = model.lm_head(hidden)
        for row, document in enumerate(documents):
            for segment, (question, answer) in enumerate(document.questions, start=1):
                content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": question}]
                text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
                images = [Image.fromarray(image) for image in document.images]
                inputs = processor(text=[f"{text}{answer}<|im_end|>"], images=images, return_tensors="pt")
                expected = model(**inputs).logits[0]
                places = (batch.segments[row] == 0) | (batch.segments[row] == segment)
                assert batch.input_ids[row, places].tolist() == inputs["input_ids"][0].tolist()
                torch.testing.assert_close(logits[row, places], expected, atol=1e-5, rtol=0)


def test_targets_are_the_answers(generator):
    documents = documents_of(draw_edits(generator, 2), generator)
    batch = vlm_packing.pack(documents)
    tokenizer = build_processor().tokenizer
    answers = "".join(f"{answer}<|im_end|>" for d in documents for _, answer in d.questions)
    assert tokenizer.decode(batch.targets) == answers
    following = batch.input_ids[batch.answers[:, 0], batch.answers[:, 1] + 1]
    assert torch.equal(following, batch.targets)


def test_scores_say_what_the_oracle_says(generator):
    yes = []
    for edit in draw_edits(generator, 150):
        image = vlm_data.draw_result(edit, generator)
        verdict, scores = oracle.score(edit, image), vlm_data.edit_scores(edit, image)
        assert (scores[0] >= 5, scores[1] >= 5) == (verdict.edit_success, verdict.preservation)
        assert set(scores) <= set(vlm_data.SCORES)
        yes.append((verdict.edit_success, verdict.preservation))
    for share in np.mean(yes, axis=0):
        assert 0.2 < share < 0.8  # neither verdict can be guessed


def test_held_out_captions_are_never_drawn_for_training(generator):
    drawn = [world.caption(vlm_data.draw_scene(generator)) for _ in range(200)]
    held_out = [world.caption(vlm_data.draw_scene(generator, held_out=True)) for _ in range(20)]
    assert not any(map(vlm_data.is_held_out, drawn)) and all(map(vlm_data.is_held_out, held_out))


def test_true_tuples_are_found_true_and_altered_ones_not(generator):
    for edit in draw_edits(generator, 12):
        row = json.loads(vlm_data.tuple_answer(edit))
        assert tuple_is_true(edit.source, row)
        assert not tuple_is_true(edit.source, {**row, "tgt_caption": edit.src_caption})
    scene = world.sample_scene(generator, num_objects=1)
    assert find_edit(scene, "remove", f"remove the {scene.objects[0].name}") is None


def test_killed_training_goes_on_to_the_same_weights(tmp_path):
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    pretrain_vlm(undisturbed / "model", undisturbed / "work", settings=TINY)
    code = (
        "import sys\nfrom stages.starter.vlm_pretrain import *\n"
        "settings = VLMPretrainSettings.model_validate_json(sys.argv[3])\n"
        "pretrain_vlm(sys.argv[1], sys.argv[2], settings=settings)"
    )
    arguments = [str(killed / "model"), str(killed / "work"), TINY.model_dump_json()]
    # sums depend on the number of threads, which other tests set in this process
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 240
    while not (killed / "work/language.safetensors").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    pretrain_vlm(killed / "model", killed / "work", settings=TINY)
    first, second = (
        safetensors.torch.load_file(folder / "model/model.safetensors") for folder in (undisturbed, killed)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_shipped_model_loads_plainly_and_sees():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(MODEL)
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    shipped = processor.tokenizer.get_vocab()
    assert shipped == build_processor().tokenizer.get_vocab(), "the prompts changed: train the model anew"
    generator = np.random.default_rng(11)
    scenes = [vlm_data.draw_scene(generator, held_out=True) for _ in range(12)]
    content = [{"type": "image"}, {"type": "text", "text": vlm_questions.CAPTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    right = 0
    for scene in scenes:
        image = Image.fromarray(world.render(scene))
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        right += processor.tokenizer.decode(tokens, skip_special_tokens=True) == world.caption(scene)
    assert right >= 11


def test_shipped_folder_is_small_and_safe():
    files = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert files["model.safetensors"] < 5_000_000 and sum(files.values()) < 6_000_000
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".py"))]
