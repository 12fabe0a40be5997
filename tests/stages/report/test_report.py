import base64
import csv
import dataclasses
import html.parser
import io
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cluster.artifacts import Artifact
from cluster.folder import Folder
from stages.report import kinds
from stages.report.data import StageNode, choose_items, gather
from stages.report.gallery import MAX_FRAMES, gallery, picture
from stages.report.page import pipeline, render_page
from stages.report.results import lead
from stages.report.sample import MAX_REPLY, Disagreement, details
from stages.report.stage import ReportConfig, write_report
from tests.artifacts import committed
from tests.stages.ingest.context import make_context
from tests.stages.report.example_run import RUN_ID, SHARE_RIGHT, build_run

HOSTILE = """make it <script>alert(1)</script> "red" '<img src=x onerror=alert(2)>' & https://evil.example/a.png"""
VOID = {"meta", "img", "br", "input"}


class Page(html.parser.HTMLParser):
    """The page's elements and text; checks that every element is closed where it was opened."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    return str(root), build_run(str(root), num_items=30, instruction=HOSTILE)


@pytest.fixture(scope="module")
def page(run):
    root, inputs = run
    text = render_page(gather(inputs, root, RUN_ID, 30), 'Title with <b> & "quotes"')
    return text, Page(text)


def test_nothing_comes_from_outside(page):
    text, parsed = page
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            if attributes.get(name):
                assert attributes[name].startswith("data:image/png;base64,"), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    policy = next(a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "http" not in policy
    assert "url(" not in text and "@import" not in text


def test_hostile_text_stays_text(page):
    text, parsed = page
    assert HOSTILE in parsed.text  # shown as it is written
    assert sum(tag == "script" for tag, _ in parsed.elements) == 1
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    assert 'Title with <b> & "quotes"' in parsed.text
    assert "<script>alert" not in text


def test_the_headline_states_the_result_of_the_summary(run, page):
    root, inputs = run
    data = gather(inputs, root, RUN_ID, 0)
    share = data.summary["byg", "all", "whole_scene_right"]["mean"]
    headline = re.search(r"<h1>(.*?)</h1>", page[0]).group(1)
    assert f"{100 * share:.0f}%" in headline
    assert "30 held-out edits" in page[1].text


def test_the_others_that_were_trained_here_are_named_beside_the_best(run):
    root, inputs = run
    data = gather(inputs, root, RUN_ID, 0)
    named = {"sft": "np_edit"}
    methods = [named.get(method, method) for method in data.methods]
    summary = {(named.get(method, method), *rest): row for (method, *rest), row in data.summary.items()}
    share = summary["byg", "all", "whole_scene_right"]["mean"]
    text = lead(dataclasses.replace(data, methods=methods, summary=summary))
    assert f"Of the others that were trained here, ByG gets {100 * share:.0f}%." in text
    assert "Of the others" not in lead(data)


def test_all_parts_are_there(page):
    sections = [attributes["id"] for tag, attributes in page[1].elements if tag == "section"]
    assert sections == ["stages", "results", "types", "gallery", "training", "judge", "metrics", "problems"]
    text = page[1].text
    for name in (
        "train_byg",
        "5\xa0min 11\xa0s".replace("\xa0", " "),
        "Supervised",
        "loss/prior",
        "target_not_new",
    ):
        assert name in text.replace("\xa0", " ")
    assert "it was started again" in text


def test_a_run_takes_from_its_first_start_to_its_last_end(run):
    """Two stages side by side, of 100 s up to 1,000 and of 30 s up to 1,005; one kept from a day that is long gone."""
    nodes = [
        StageNode("train_byg", "ran", 100.0, 5, (), 1000.0),
        StageNode("train_sft", "ran", 30.0, 5, (), 1005.0),
        StageNode("scenes", "cached", 7.0, 5, (), 12.0),
        StageNode("report", "running", None, None, ("train_byg",)),
    ]
    root, inputs = run
    data = gather(inputs, root, RUN_ID, 0)
    text = " ".join(pipeline(dataclasses.replace(data, nodes=nodes)).split())
    assert "This run took 1 min 45 s." in text
    assert "This run" not in pipeline(dataclasses.replace(data, nodes=nodes[2:]))


def test_training_says_what_it_started_from(page):
    assert re.search(r"<h3>train_byg, [\d,]+ steps, from the adapter models/warmup</h3>", page[0])


def test_gallery_shows_every_item_with_every_method(page):
    items = [attributes for tag, attributes in page[1].elements if tag == "article"]
    assert len(items) == 30
    pixelated = [attributes for tag, attributes in page[1].elements if tag == "img" and attributes.get("class")]
    assert len(pixelated) >= 30 * (1 + len(SHARE_RIGHT))
    assert {attributes["data-right"] for attributes in items} == {"yes", "no"}


def test_gallery_takes_edit_types_evenly_and_ignores_scores():
    scores = [
        {"item_id": f"{i}", "edit_type": "color" if i < 6 else "remove", "whole_scene_right": i % 2} for i in range(9)
    ]
    assert choose_items(scores, 4) == ["0", "6", "1", "7"]
    assert len(choose_items(scores, 100)) == 9
    assert choose_items([], 5) == []


def test_artifact_and_tables(run, tmp_path):
    root, inputs = run
    context = make_context(tmp_path, "report")
    context.root = root
    write_report(inputs, ReportConfig(num_gallery=5), context)
    assert context.rows == 5
    assert context.out.read_text("report.html").startswith("<!doctype html>")
    rows = list(csv.DictReader(io.StringIO(context.out.read_text("tables/scores.csv"))))
    assert len(rows) == 30 * len(SHARE_RIGHT)
    assert {"summary", "comparisons", "agreement", "discrimination"} <= {
        name.removeprefix("tables/").removesuffix(".csv") for name in context.out.list(".csv", recursive=True)
    }


@pytest.mark.parametrize("kept", [(), ("ingest",), ("ingest", "caption", "train_byg"), ("scenes", "evaluate")])
def test_it_uses_what_is_there(run, kept):
    root, inputs = run
    given: dict[str, Artifact] = {name: inputs[name] for name in kept}
    page = Page(render_page(gather(given, root, RUN_ID, 4), "pairless"))
    assert ("no scores yet" in page.text) == ("evaluate" not in kept)


def test_a_run_without_a_record(run, tmp_path):
    _, inputs = run
    page = Page(render_page(gather(inputs, str(tmp_path), "another", 2), "pairless"))
    assert "train_byg" in page.text


def test_broken_and_missing_pictures_leave_a_box(run):
    root, inputs = run
    data = gather(inputs, root, RUN_ID, 2)
    item = data.gallery[0]
    item.edits["byg"] = (b"broken", item.edits["byg"][1])
    item.edits["copy"] = (None, item.edits["copy"][1])
    text = render_page(data, "pairless")
    assert text.count("no image") == 2


def test_a_clip_plays_and_rests_at_its_end():
    """As many frames as the page can bear, the first and the last among them."""
    shades = np.linspace(0, 255, 60).round().astype(np.uint8)
    frames = [Image.fromarray(np.full((16, 24, 3), shade)) for shade in shades]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=40, lossless=True)
    element = picture(buffer.getvalue(), "turn <it> white")
    assert 'alt="turn &lt;it&gt; white, as a clip"' in element and 'width="24" height="16"' in element
    with Image.open(io.BytesIO(base64.b64decode(element.split("base64,")[1].split('"')[0]))) as clip:
        shown = []
        for index in range(clip.n_frames):
            clip.seek(index)
            clip.load()
            shown.append((np.asarray(clip.convert("RGB"))[0, 0, 0], clip.info["duration"]))
    assert len(shown) == MAX_FRAMES and shown[0][0] == 0 and shown[-1][0] == 255
    assert [shade for shade, _ in shown] == sorted({shade for shade, _ in shown})
    assert shown[-1][1] > 10 * shown[0][1]


def test_pictures_take_no_more_than_their_room(run, monkeypatch):
    root, inputs = run
    data = gather(inputs, root, RUN_ID, 6)
    whole = gallery(data)
    monkeypatch.setattr("stages.report.gallery.MAX_PICTURES_LENGTH", 20_000)
    bounded = gallery(data)
    assert "left out: the page is full" in bounded and "left out" not in whole
    assert sum(map(len, re.findall("<img[^>]*>", bounded))) <= 20_000 < sum(map(len, re.findall("<img[^>]*>", whole)))


def test_a_photo_takes_little_room():
    noise = np.random.default_rng(0).normal(128, 25, (1024, 1024, 3)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    element = picture(buffer.getvalue(), "noise")
    assert 'width="384" height="384"' in element and len(element) < 150_000 < len(buffer.getvalue())


def test_what_a_model_wrote_stays_text_and_is_cut():
    page = Page(details({"judge_sc_text": HOSTILE + "</pre></template>", "unscored": "<b>", "judge_overall": 3.0}))
    assert HOSTILE + "</pre></template>" in page.text and {tag for tag, _ in page.elements} >= {"dl", "pre"}
    assert not {tag for tag, _ in page.elements} & {"script", "img", "b", "template"}
    assert "(1000 more characters" in details({"judge_sc_text": "x" * (MAX_REPLY + 1000)})


def test_replies_of_every_call_are_read_where_there_is_a_table_of_them(run, tmp_path):
    root, inputs = run
    folder = Folder(tmp_path / "evaluate")
    for name in ("scores.parquet", "figures/summary.parquet"):
        folder.write_table(name, inputs["evaluate"].folder.read_table(name))
    rows = [("0000", "sc", 0, "cut"), ("0000", "sc", 1, "<i>7"), ("zzzz", "sc", 0, "of another")]
    folder.write_table("judge_replies.parquet", pa.Table.from_pylist(
        [{"item_id": i, "method": "byg", "call": c, "pass": 0, "attempt": a, "text": t, "error": None}
         for i, c, a, t in rows]
    ))  # fmt: skip
    data = gather(inputs | {"evaluate": committed(folder, "evaluate")}, root, RUN_ID, 30)
    scores = next(item for item in data.gallery if item.item_id == "0000").edits["byg"][1]
    assert scores["replies"] == [("sc, pass 0, attempt 0", "cut"), ("sc, pass 0, attempt 1", "<i>7")]
    assert "<h4>sc, pass 0, attempt 1</h4><pre>&lt;i&gt;7</pre>" in details(scores)


def test_the_judge_is_held_against_the_oracle_or_a_metric():
    by_oracle = Disagreement([{"edit_success": 1.0}])
    row = {"judge_success": 9.0, "edit_success": 1.0, "judge_over_editing": 4.0, "preservation": 1.0}
    assert by_oracle(row) == (pytest.approx(0.6), True)
    assert by_oracle(row | {"judge_over_editing": 5.0}) == (pytest.approx(0.5), False)
    assert by_oracle({"edit_success": 1.0}) is None
    lost = {"judge_p_done": 0.2, "edit_success": 1.0, "whole_scene_right": 0.0}  # another object in the right setting
    assert by_oracle(lost) == (pytest.approx(0.8), True)
    assert by_oracle(lost | {"edit_type": "customization"}) == (pytest.approx(0.2), False)
    rows = [{"judge_overall": float(j), "clip_directional": c} for j, c in ((1, 0.4), (5, 0.1), (6, 0.2), (9, 0.3))]
    by_metric = Disagreement(rows)
    assert [by_metric(row) for row in rows] == [(0.75, True), (0.25, False), (0.25, False), (0.25, False)]
    assert Disagreement([{"judge_overall": 1.0}])({"judge_overall": 1.0}) is None


def test_of_other_settings_the_judge_is_quoted_with_its_own_questions(run):
    root, inputs = run
    data = gather(inputs, root, RUN_ID, 0)
    row = dict(data.agreement[0]) | {"method": "all", "judge_metric": "judge_p_done", "threshold": 0.5}
    for items, question in (("edits", "Is the edit done?"), ("settings", "Is the object in its new setting?")):
        text = kinds.judge(dataclasses.replace(data, agreement=[row], items=items))
        assert text.count(f"{question} (probability)") == 3 and "A score of 0.5 or more counts as yes" in text
