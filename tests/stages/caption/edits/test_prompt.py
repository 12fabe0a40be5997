"""The edit tuple's request and the parser of its answer."""

import json

import pytest

from stages.caption.edits import prompt

ROW = {
    "edit_type": "color",
    "src_caption": "a red car",
    "instruction": "make the car blue",
    "tgt_caption": "a blue car",
    "reverse_instruction": "make the car red",
}
TEXT = json.dumps(ROW)


def test_chat_offers_exactly_these_types():
    messages, schema = prompt.build_chat(b"png", ["remove", "style"])
    image, text = messages[0]["content"]
    assert image == {"type": "image", "image": b"png"}
    assert "- remove: " in text["text"] and "- style: " in text["text"] and "- color: " not in text["text"]
    assert schema["properties"]["edit_type"]["enum"] == ["remove", "style"]
    assert tuple(schema["properties"]) == prompt.FIELDS == tuple(schema["required"])


def test_style_target_can_be_forced():
    text = prompt.prompt_text(["style"], ["photorealistic"])
    assert "photorealistic" in text and "watercolor" not in text
    assert "watercolor" in prompt.prompt_text(["style"])


@pytest.mark.parametrize("offered", [[], ["colour"]])
def test_unknown_type_is_refused(offered):
    with pytest.raises(ValueError, match="offer one or more of color"):
        prompt.build_chat(b"", offered)


def test_hash_follows_the_words():
    assert len(prompt.prompt_hash()) == 16 and int(prompt.prompt_hash(), 16) >= 0


@pytest.mark.parametrize(
    "answer",
    [
        TEXT,
        f"\n  {TEXT}\n",
        f"```json\n{TEXT}\n```",
        f"Here it is:\n```\n{TEXT}\n```\nI hope that helps {{really}}.",
        f'<think>A first try: {{"edit_type": "add"}}. Better color.</think>\n\n{TEXT}',
        f"thinking without its opening tag {{}} </think>{TEXT}",
        f"I choose {{one}} of these: {TEXT} as asked.",
        json.dumps(ROW, indent=2),
        TEXT.replace("a red car", "a red\n car").replace('"color"', '"Color "'),
    ],
)
def test_parse_finds_the_row(answer):
    assert prompt.parse(answer) == ROW


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no_json"),
        ("I can't edit this image.", "no_json"),
        (TEXT[:-20], "no_json"),
        (f"<think>{TEXT} but no answer followed", "no_json"),
        ("[" + "[" * 5000, "no_json"),
        (json.dumps({k: v for k, v in ROW.items() if k != "tgt_caption"}), "missing_field:tgt_caption"),
        (json.dumps({**ROW, "note": "x"}), "extra_field:note"),
        (json.dumps({**ROW, "instruction": ["make"]}), "not_text:instruction"),
        (json.dumps({**ROW, "src_caption": "  "}), "empty_field:src_caption"),
    ],
)
def test_parse_names_the_reason(answer, reason):
    assert prompt.parse(answer) == reason
