"""What an artifact of a data engine holds, in the terminal and as a page."""

from __future__ import annotations

import base64
import collections
import json
import re

import pytest

from cluster.artifacts import commit
from cluster.folder import Folder
from stages.caption import inspect_page, work
from stages.caption.contents import read_contents
from stages.caption.inspect import histogram, main
from stages.caption.stage import CaptionConfig, caption_images
from tests.stages.caption.replay import NUM_SAMPLES, ReplayEngine
from tests.stages.ingest.context import make_context

GOOD = {
    "edit_type": "color",
    "src_caption": "red circle top left on gray background",
    "instruction": "make the red circle blue",
    "tgt_caption": "blue circle top left on gray background",
    "reverse_instruction": "make the blue circle red",
}


def answer(request, number):
    """One in five is never read, another one is good at its second attempt."""
    index = int(request.key, 16)
    if index % 5 == 0:
        return "<script>alert(1)</script>"
    if index % 5 == 1 and number == 0:
        return json.dumps(GOOD | {"tgt_caption": "the circle is now blue"})
    return json.dumps(GOOD | {"src_caption": GOOD["src_caption"]})


@pytest.fixture
def artifact(ingest, tmp_path, monkeypatch):
    """A caption artifact beside the samples that it was made from, in one root."""
    root = Folder(tmp_path / "root")
    for name in ingest.folder.list(recursive=True):
        root.sub(f"ingest/{ingest.fingerprint}").write_bytes(name, ingest.folder.read_bytes(name))
    context = make_context(tmp_path / "root", "caption")
    monkeypatch.setattr(work, "get_engine", lambda settings, context: ReplayEngine(answer))
    config = CaptionConfig(
        engine={"model": "<b>m</b>"}, edit_types=("color",), num_offered=1, temperatures=(0.0, 0.5), shard_size=8
    )
    caption_images({"ingest": ingest}, config, context)
    context.out.remove(".lease.json")
    commit(
        context.out, stage="caption", version="1", fingerprint=context.fingerprint, identity={},
        config=config.model_dump(mode="json"), parents={"ingest": ingest.fingerprint}, code_version="test",
        run_id="r", seconds=7.0,
    )  # fmt: skip
    return context.out.url


def test_every_row_is_counted(artifact, capsys):
    contents = read_contents(artifact)
    assert contents.outcomes == {"ok": 24, "failed": 6} and contents.attempts == {1: 18, 2: 12}
    assert contents.reasons == {("failed", "no_json"): 6} and contents.tokens["prompt_tokens"] == {50: NUM_SAMPLES}
    assert contents.lengths["instruction"] == {len(GOOD["instruction"]): 24}
    assert contents.kinds == {"color": {"ok": 24}}
    rules = contents.rules
    assert rules["no_json"]["by_attempt"] == {"1": 6, "2": 6} and rules["no_json"]["count"] == 12
    assert rules["target_tells_of_the_edit"]["by_attempt"] == {"1": 6} and rules["too_long"]["count"] == 0
    assert rules["too_long"]["meaning"] and rules["image"]["count"] == 0
    assert main([artifact]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  ok +24 +80%  █{32}$", said, re.M) and re.search(r"^  failed: no_json +6 ", said, re.M)
    assert "  no_json: 0000000000000000\n    <script>alert(1)</script>" in said and "  too_long:" not in said
    assert re.search(r"^  no_json +12 +6 +6  The answer holds", said, re.M) and re.search(
        r"^  too_long +0 ", said, re.M
    )


def test_the_page_has_rows_with_their_pictures_and_nothing_unescaped(artifact, ingest, tmp_path):
    page = tmp_path / "look.html"
    assert main([artifact, "--html", str(page)]) == 0
    text = page.read_text()
    assert text.count('<article class="item"') == 24 + 6 == text.count('src="data:image/png;base64,')
    assert "&lt;b&gt;m&lt;/b&gt;" in text and "<b>m</b>" not in text and "http" not in text.replace("http-equiv", "")
    assert text.count("<dt>the last answer</dt><dd>&lt;script&gt;alert(1)&lt;/script&gt;</dd>") == 6
    assert text.count("<summary>answers</summary>") == text.count("number fired") > 2 and "<script>alert" not in text
    assert text.count('data-right="no"') == 6 and "target_tells_of_the_edit" in text.replace("<wbr>", "")
    sizes = collections.Counter(base64.b64decode(code)[16:24] for code in re.findall(r"png;base64,([^\"]+)", text))
    assert sizes == {(32).to_bytes(4, "big") * 2: 30}


def test_a_full_page_leaves_pictures_out(artifact, monkeypatch):
    monkeypatch.setattr(inspect_page, "MAX_PICTURES_LENGTH", 20_000)
    text = inspect_page.render(read_contents(artifact))
    assert 0 < text.count("data:image/png") < 30 and "left out: the page is full" in text


def test_without_the_samples_the_page_says_so(artifact):
    folder = Folder(artifact.rsplit("/", 2)[0]).sub("ingest/" + "f" * 16)
    folder.clear()
    text = inspect_page.render(read_contents(artifact))
    assert "any more, so no picture is shown" in text and "data:image/png" not in text


def test_what_is_no_artifact_of_a_data_engine_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "has no manifest.json: it is not the finished artifact of a data engine" in said and said.count("\n") == 1


def test_histograms_count_each_value_once():
    counts = collections.Counter({1: 3, 7: 2, 8: 1, 39: 4})
    found = histogram(counts)
    assert sum(count for _, count in found) == 10 and found[0][1] == 3 and found[-1] == ("35 to 39", 4)
    assert histogram({5: 9}) == [("5", 9)] and histogram({}) == []
    assert histogram({0: 1, 1: 2, 2: 3}) == [("0", 1), ("1", 2), ("2", 3)]
