"""The shared words of a request go before its picture, and nothing else changes."""

import json
from pathlib import Path

import pytest

from stages.caption import work
from stages.caption.edits import prompt as edits
from stages.caption.order import shared_paragraphs, words_first
from stages.caption.proposals import prompt as proposals
from stages.caption.stage import CaptionConfig, caption_images
from stages.caption.video import prompt as video
from tests.stages.caption.edits.test_prompt import ROW
from tests.stages.caption.replay import ReplayEngine, files_of, images_of, text_of
from tests.stages.ingest.context import make_context

REQUESTS = {
    "edit": (edits, edits.build_chat(b"png", ["remove", "style"])[0]),
    "proposals": (proposals, proposals.build_proposal_chat(b"png", ["remove", "style", "add", "color"])[0]),
    "verify": (proposals, proposals.build_verify_chat(b"png", "remove", "remove the car")[0]),
    "clean": (video, video.build_clean_chat("a cartoon of a car")[0]),
}


def paragraphs(messages: list[dict]) -> list[str]:
    texts = [content if isinstance(content := message["content"], str) else content[-1]["text"] for message in messages]
    return [part for text in texts for part in text.split("\n\n")]


@pytest.mark.parametrize("name", REQUESTS)
def test_every_word_stays_and_what_differs_comes_last(name: str):
    prompt, messages = REQUESTS[name]
    system, user = ordered = words_first(messages, shared_paragraphs(Path(prompt.__file__).parent / "v1"))
    assert sorted(paragraphs(ordered)) == sorted(paragraphs(messages))
    assert system["role"] == "system" and len(system["content"]) > 150
    if name == "edit":
        image, text = user["content"]
        assert image == {"type": "image", "image": b"png"}
        assert text["text"].startswith("Types on offer") and len(text["text"]) < len(system["content"]) / 4
    if name == "verify":
        assert "Instruction: remove the car" in user["content"][-1]["text"]


def test_requests_without_shared_words_stay_as_they_are():
    messages = video.build_verify_chat([b"one", b"two"], "cartoon")
    assert words_first(messages, shared_paragraphs(Path(video.__file__).parent / "v1")) == messages


def test_the_stage_asks_so(ingest, tmp_path, monkeypatch):
    def answer(request, number):
        (offered,) = [request.schema["properties"]["edit_type"]["enum"]]
        return json.dumps(ROW | {"edit_type": "color"}) if "color" in offered else "no"

    found = {}
    for first in (False, True):
        engine = ReplayEngine(answer)
        monkeypatch.setattr(work, "get_engine", lambda settings, context, engine=engine: engine)
        config = CaptionConfig(engine={"model": "m"}, words_first=first, temperatures=[0.0], error_rate_limit=1)
        context = make_context(tmp_path / str(first), "caption")
        caption_images({"ingest": ingest}, config, context)
        found[first] = engine.requests, files_of(context)
    before, after = found[False][0], found[True][0]
    assert {request.key: images_of(request) for request in before} == {r.key: images_of(r) for r in after}
    assert {len(request.messages) for request in before} == {1} and {len(request.messages) for request in after} == {2}
    assert len({request.messages[0]["content"] for request in after}) == 1
    assert len({text_of(request) for request in after}) > 1
    assert found[False][1] == found[True][1]
