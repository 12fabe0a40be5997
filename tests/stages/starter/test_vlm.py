"""The starter's vision-language model: tokens, packed forward, what it is taught, the shipped weights."""

import io
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

from stages.caption.customization import prompt as customization_prompt
from stages.caption.edits import prompt as edits_prompt
from stages.caption.evolution import prompt as evolution_prompt
from stages.caption.video import prompt as video_prompt
from stages.evaluate.judges.viescore import prompt as viescore_prompt
from stages.starter import clips, oracle, vlm_caption_data, vlm_data, vlm_packing, vlm_questions, world
from stages.starter.customization import parse_setting
from stages.starter.vlm_caption_measure import measure_captioners, to_png
from stages.starter.vlm_measure import find_edit, tuple_is_true
from stages.starter.vlm_model import HIDDEN_SIZE, build_model, encode_images, text_hidden_states
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
    num_evolutions=2,
    num_clips=2,
    num_customizations=2,
    num_texts=2,
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


def test_the_other_engines_prompts_and_answers_are_short(generator):
    tokenizer = build_processor().tokenizer
    clip = clips.clip_of(world.sample_edit(world.sample_scene(generator, 1), generator, ["color"]))
    asked = [
        (vlm_caption_data.evolution_question(draw_edits(generator, 1)[0]), 18),
        (vlm_caption_data.clean_question(clip.caption, clip.content), 30),
        (vlm_caption_data.backgrounds_question("red circle", generator), 24),
        (vlm_caption_data.object_question(clip.source), 9),
        *((question, 4) for question in vlm_caption_data.style_questions({"day": True, "night": False})),
    ]
    for (question, answer), most in asked:
        assert len(tokenizer.encode(question)) + len(tokenizer.encode(answer)) <= most
    text = "a b a, top left to the night then"  # words that are pieces too don't hinder others
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_other_engines_answers_keep_their_schemas(generator):
    """Keys in the schema's order and values of its types, without the spaces that the grammar refuses."""
    types = {"string": str, "boolean": bool, "array": list}
    scene = world.sample_scene(generator)
    for (_, answer), schema in (
        (vlm_caption_data.evolution_question(draw_edits(generator, 1)[0]), evolution_prompt.answer_schema()),
        (vlm_caption_data.clean_question("a at night", "a"), video_prompt.answer_schema()),
        (vlm_caption_data.object_question(scene), customization_prompt.object_schema()),
        (vlm_caption_data.backgrounds_question("red circle", generator), customization_prompt.backgrounds_schema()),
    ):
        row = json.loads(answer)
        assert answer == json.dumps(row, separators=vlm_data.COMPACT) and list(row) == schema["required"]
        assert all(isinstance(row[name], types[s["type"]]) for name, s in schema["properties"].items())


def test_settings_thought_up_are_unlike_each_other(generator):
    found = set()
    for _ in range(60):
        answer = vlm_caption_data.backgrounds_question("red circle", generator)[1]
        settings = [parse_setting(text) for text in json.loads(answer)["backgrounds"]]
        assert len({s.place for s in settings}) == len({s.background for s in settings}) == 3
        found |= set(settings)
    assert len(found) > 30  # of 40


def test_cleaned_captions_lose_their_style_alone(generator):
    at_night = 0
    for _ in range(60):
        caption, content = vlm_caption_data.draw_captions(generator)
        assert "night" not in content and caption in (content, f"{content} at night")
        at_night += caption != content
    assert 5 < at_night < 40


def test_frames_are_in_the_style_that_is_said(generator):
    """Their mean brightness lies between that of the same scenes by day and by night where no style is right."""
    said = {(True, False): 0, (False, True): 0, (False, False): 0}
    for _ in range(150):
        frames, in_style = vlm_caption_data.draw_frames(generator)
        said[tuple(in_style.values())] += 1
        if in_style["day"] or in_style["night"]:
            backgrounds = [np.array(color).max() for color in world.BACKGROUNDS.values()]
            brightness = [np.median(frame.max(axis=-1)) for frame in frames]
            assert max(brightness) < 0.85 * max(backgrounds) or not in_style["night"]
            assert min(brightness) > 0.65 * min(backgrounds) or not in_style["day"]
    assert min(said.values()) > 20


def test_customized_pictures_are_asked_about_truly(generator):
    yes = []
    for _ in range(120):
        scene, setting = vlm_caption_data.draw_customization(generator)
        image = vlm_caption_data.draw_customized(scene, setting, generator)
        asked = vlm_caption_data.customization_questions(scene, setting, image)
        assert setting.text in asked[0][0] and scene.objects[0].name in asked[1][0]
        yes.append([answer == "Yes" for _, answer in asked])
    assert all(same for new, same in yes if new)  # in its setting it is there
    for share in np.mean(yes, axis=0):
        assert 0.2 < share < 0.9


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


def test_packed_texts_without_a_picture_equal_transformers(generator):
    model, processor = build_model(0).eval(), build_processor()
    asked = [vlm_caption_data.clean_question(*vlm_caption_data.draw_captions(generator)) for _ in range(4)]
    asked.append(vlm_caption_data.backgrounds_question("red circle", generator))
    batch = vlm_packing.pack([vlm_packing.Document("text", (), tuple(asked[k::2])) for k in range(2)])
    with torch.no_grad():
        embeds = encode_images(model, batch.patches).reshape(2, 0, HIDDEN_SIZE)
        packed = (batch.input_ids, embeds, batch.image_places, batch.positions, batch.segments)
        logits = model.lm_head(text_hidden_states(model, *packed)[0])
        for number, (question, answer) in enumerate(asked):
            text = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
            inputs = processor(text=[f"{text}{answer}<|im_end|>"], return_tensors="pt")
            row, segment = number % 2, number // 2 + 1
            places = (batch.segments[row] == 0) | (batch.segments[row] == segment)
            assert batch.input_ids[row, places].tolist() == inputs["input_ids"][0].tolist()
            torch.testing.assert_close(logits[row, places], model(**inputs).logits[0], atol=1e-5, rtol=0)


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


@pytest.fixture(scope="module")
def shipped():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(MODEL)
    processor.tokenizer.padding_side = "left"
    return processor, AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()


def answers(shipped, chats, temperature=0.0):
    """What the shipped model says to (messages, schema), without the grammar of the schema."""
    processor, model = shipped
    texts = [processor.apply_chat_template(messages, add_generation_prompt=True) for messages, _ in chats]
    parts = [part for messages, _ in chats for part in messages[0]["content"] if isinstance(part, dict)]
    images = [Image.open(io.BytesIO(part["image"])) for part in parts if part["type"] == "image"]
    inputs = processor(text=texts, images=images or None, return_tensors="pt", padding=True)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    torch.manual_seed(0)
    tokens = model.generate(**inputs, max_new_tokens=60, **sampling)[:, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def test_shipped_model_loads_plainly_and_sees(shipped):
    processor, model = shipped
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert processor.tokenizer.get_vocab() == build_processor().tokenizer.get_vocab(), (
        "the prompts changed: train the model anew"
    )
    generator = np.random.default_rng(11)
    scenes = [vlm_data.draw_scene(generator, held_out=True) for _ in range(12)]
    question = {"type": "text", "text": vlm_questions.CAPTION}
    contents = [[{"type": "image", "image": to_png(world.render(scene))}, question] for scene in scenes]
    said = answers(shipped, [([{"role": "user", "content": content}], None) for content in contents])
    assert sum(text == world.caption(scene) for text, scene in zip(said, scenes, strict=True)) >= 11


def test_shipped_model_answers_the_caption_engines(shipped):
    figures = measure_captioners(lambda chats, temperature: answers(shipped, chats, temperature), 12)
    assert figures["evolution"]["exact"] >= 0.9 and figures["clean_exact"] >= 0.9 and figures["object"] >= 0.9
    assert figures["backgrounds_at_1"]["well_formed"] >= 0.9 and figures["backgrounds_at_1"]["num_settings"] > 12
    for name in ("style", "new_setting", "same_object"):
        assert figures[name]["right"] >= 0.75


def test_shipped_folder_is_small_and_safe():
    files = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert files["model.safetensors"] < 5_000_000 and sum(files.values()) < 6_000_000
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".py"))]
