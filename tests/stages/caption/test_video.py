"""ByG on video: captions without their style, prompts with one, and clips that have it."""

import collections
import io
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError

from cluster.config import identity
from cluster.errors import UserError
from stages.caption import work
from stages.caption.video import clips as stored
from stages.caption.video import prompt
from stages.caption.video.clips import even_frames, seen_at_even_moments
from stages.caption.video.prompts import PROMPTS_SCHEMA, VideoPromptsConfig, draw_styles, write_video_prompts
from stages.caption.video.rules import check_clean
from stages.caption.video.verify import (
    VERIFIED_SCHEMA,
    VerifyClipsConfig,
    read_overrides,
    verify_clips,
    verify_clips_sources,
)
from stages.starter.stages import VideoCaptionsConfig, make_video_captions
from tests.artifacts import committed
from tests.stages.caption.replay import ReplayEngine, files_of, images_of, rows_of, text_of
from tests.stages.ingest.context import make_context

CAT = "A cinematic, photo-realistic shot of two gray cats that chase a red ball through a long hall in warm light."
CLEAN = "Two gray cats that chase a red ball through a long hall."
NAMES = ("cartoon", "photo-realistic")
DAY_AND_NIGHT = {
    "day": {"template": "{caption}", "instruction": "turn it into a day scene"},
    "night": {"template": "{caption} at night", "instruction": "turn it into a night scene"},
}


@pytest.mark.parametrize(
    ("clean", "reasons"),
    [
        (CLEAN, []),
        (f"A video of two gray cats{CLEAN[13:]}", []),
        (CAT.replace("cinematic, ", ""), ["style_left:photo-realistic", "style_left:photo"]),
        (CLEAN.replace("a long", "a cartoonish long"), ["style_left:cartoonish"]),
        (CLEAN.replace(" through a long hall", ""), ["words_lost"]),
        (CLEAN.replace("hall", "hall full of old clocks"), ["words_added"]),
        (CLEAN.replace("gray", "red").replace("a red", "a gray"), ["words_lost", "words_added"]),
        ("Cats", ["words_lost", "too_short"]),
        (CLEAN * 40, ["words_added", "too_long"]),
    ],
)
def test_a_clean_caption_keeps_all_but_the_style(clean, reasons):
    assert check_clean(clean, CAT, NAMES) == reasons


def test_the_configured_styles_are_style_words_too():
    caption = "red circle top left on gray background then nothing changes at night"
    assert check_clean(caption, caption, ("day", "night")) == ["style_left:night"]
    assert check_clean(caption.removesuffix(" at night"), caption, ("day", "night")) == []
    assert check_clean("A dog runs", "A dog runs in black and white", NAMES) == []
    assert check_clean("A black dog and a cat", "A black dog and a white cat", NAMES) == ["words_lost"]


def test_a_long_caption_has_some_room_for_other_words():
    nouns = "cat ball hall clock door lamp rug chair table vase shelf plant mirror stool box stair rail hat coat shoe"
    long = " and ".join(f"old {noun}" for noun in nouns.split())
    for num, reasons in ((2, []), (3, ["words_lost"])):
        assert check_clean(long.replace("old ", "", num), long, NAMES) == reasons


def test_styles_are_drawn_evenly_in_every_shard():
    styles = ["a", "b", "c"]
    drawn = draw_styles(32, styles, seed=1)
    assert drawn == draw_styles(32, styles, 1) != draw_styles(32, styles, 2)
    counts = collections.Counter(own for own, _ in drawn)
    assert sorted(counts.values()) == [10, 11, 11] and all(own != other for own, other in drawn)
    assert len(set(drawn)) == 6
    left_over = {draw_styles(1, styles, seed)[0][0] for seed in range(30)}
    assert left_over == set(styles)  # what a shard has too many of differs from shard to shard


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Runs a stage's function on a table with a given engine."""

    def call(function, need, table, config, engine, name):
        source = make_context(tmp_path / f"{name}-source", need)
        source.out.write_table("part/rows.parquet", table)
        context = make_context(tmp_path / name, function.__name__.removeprefix("write_"))
        monkeypatch.setattr(work, "get_engine", lambda settings, context: engine)
        function({need: committed(source.out, need)}, config, context)
        return context

    return call


@pytest.fixture
def captions(tmp_path):
    context = make_context(tmp_path, "video_captions")
    make_video_captions({}, VideoCaptionsConfig(num_captions=40), context)
    return context.out.read_table("captions.parquet")


def cleaned(request, number):
    caption = re.fullmatch(r".*?: (.*?)\n.*", text_of(request), re.DOTALL)[1]
    return json.dumps({"caption": caption.removesuffix(" at night")})


def test_captions_become_prompts_in_a_style_of_their_own(ask, captions):
    config = VideoPromptsConfig(engine={"model": "m"}, styles=DAY_AND_NIGHT, shard_size=10)
    engine = ReplayEngine(cleaned)
    context = ask(write_video_prompts, "video_captions", captions, config, engine, "prompts")
    rows = rows_of(context, "prompts")
    assert [row["caption_id"] for row in rows] == captions["caption_id"].to_pylist()
    raw = dict(zip(captions["caption_id"].to_pylist(), captions["caption"].to_pylist(), strict=True))
    assert any(text.endswith(" at night") for text in raw.values())
    for row in rows:
        clean, by_night = row["caption"], row["style"] == "night"
        assert clean == raw[row["caption_id"]].removesuffix(" at night")
        assert row["prompt"] == row["src_caption"] == (f"{clean} at night" if by_night else clean)
        assert row["tgt_caption"] == (clean if by_night else f"{clean} at night")
        ways = ["turn it into a day scene", "turn it into a night scene"]
        assert [row["instruction"], row["reverse_instruction"]] == (ways if by_night else ways[::-1])
    assert context.figures["styles"] == {"day": 20, "night": 20}
    assert not any(images_of(request) for request in engine.requests)
    assert context.out.read_table(context.out.list("parquet", recursive=True)[0]).schema.equals(PROMPTS_SCHEMA)
    again = ask(write_video_prompts, "video_captions", captions, config, ReplayEngine(cleaned, seed=5), "again")
    assert files_of(again) == files_of(context)


def test_a_caption_that_keeps_its_style_is_asked_for_again_and_then_set_aside(ask, captions):
    table = captions.set_column(1, "caption", [[" ", *captions["caption"].to_pylist()[1:]]])
    late, never = captions["caption_id"].to_pylist()[1:3]

    def answer(request, number):
        if request.key == never or (request.key == late and number == 0):
            return json.dumps({"caption": json.loads(cleaned(request, number))["caption"] + " by night"})
        return cleaned(request, number)

    config = VideoPromptsConfig(engine={"model": "m"}, styles=DAY_AND_NIGHT, temperatures=(0.0, 0.5, 0.9))
    context = ask(write_video_prompts, "video_captions", table, config, ReplayEngine(answer), "prompts")
    bad = {row["caption_id"]: row for row in rows_of(context, "dead_letters")}
    empty = captions["caption_id"][0].as_py()
    assert set(bad) == {empty, never} and bad[empty]["reason"] == "empty_field:caption"
    assert (bad[never]["outcome"], bad[never]["reason"], bad[never]["attempts"]) == ("filtered", "style_left:night", 3)
    assert bad[never]["style"] in DAY_AND_NIGHT and bad[never]["prompt"] is None
    (row,) = [row for row in rows_of(context, "prompts") if row["caption_id"] == late]
    assert row["attempts"] == 2


def test_styles_without_a_place_for_the_caption_are_refused():
    bad = DAY_AND_NIGHT | {"day": {"template": "by day", "instruction": "make it day"}}
    with pytest.raises(ValidationError, match="has no {caption}"):
        VideoPromptsConfig(styles=bad)
    with pytest.raises(ValidationError, match="at least 2 items"):
        VideoPromptsConfig(styles={"day": DAY_AND_NIGHT["day"]})
    assert identity(VideoPromptsConfig(styles=DAY_AND_NIGHT)) != identity(VideoPromptsConfig())


def make_clip(num_frames: int, side: int = 8, grays: list[int] | None = None) -> bytes:
    """A lossless clip whose frames have these gray values; frame number i has 10 i where none are given."""
    grays = grays or [10 * index for index in range(num_frames)]
    frames = [Image.fromarray(np.full((side, side, 3), gray, np.uint8)) for gray in grays]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    return buffer.getvalue()


def grays(frames: list[bytes]) -> list[int]:
    return [int(np.asarray(Image.open(io.BytesIO(frame)))[0, 0, 0]) for frame in frames]


def test_frames_are_spread_over_the_clip():
    clip = make_clip(9)
    assert grays(even_frames(clip, 2)) == [0, 80]
    assert grays(even_frames(clip, 4)) == [0, 30, 60, 80]
    assert grays(even_frames(clip, 1)) == [40]
    assert grays(even_frames(make_clip(1), 2)) == [0, 0]
    assert seen_at_even_moments([100 * index for index in range(1, 82)], 5) == [0, 20, 40, 60, 80]


def test_a_frame_that_lasts_counts_as_long_as_it_is_seen():
    """The format stores like neighbours once: six frames alike and three others are four."""
    clip = make_clip(9, grays=[50] * 6 + [60, 70, 80])
    with Image.open(io.BytesIO(clip)) as image:
        assert image.n_frames == 4
    assert grays(even_frames(clip, 4)) == [50, 50, 60, 80]
    assert grays(even_frames(clip, 1)) == [50]


def test_clips_that_cannot_be_shown_say_why(monkeypatch):
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    for data, reason in ((b"", "no bytes"), (None, "no bytes"), (png.getvalue(), "cannot identify"), (b"RIFF", ".")):
        with pytest.raises(ValueError, match=reason):
            even_frames(data, 2)
    with pytest.raises(ValueError):
        even_frames(make_clip(9, 64)[:-60], 9)
    monkeypatch.setattr(stored, "MAX_FRAMES", 4)
    with pytest.raises(ValueError, match="5 frames of 8x8 pixels are over 4 frames"):
        even_frames(make_clip(5), 2)
    monkeypatch.setattr(stored, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="over .* 100 pixels"):
        even_frames(make_clip(2), 2)
    monkeypatch.setattr(stored, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="over 10 bytes"):
        even_frames(make_clip(2), 2)


@pytest.fixture
def clips():
    rows = [
        {"caption_id": f"clip{number}", "clip": make_clip(5 + number), "style": ("day", "night")[number % 2]}
        for number in range(6)
    ]
    rows[4]["clip"] = b"broken"
    return pa.Table.from_pylist(rows)


def saw(request, number):
    """The first clip is in another style; the second one is told of in other words at first."""
    if request.key == "clip0":
        return "No, it is drawn."
    return "It depends." if request.key == "clip1" and number == 0 else "Yes"


def test_clips_that_have_their_style_are_kept_by_their_ids(ask, clips):
    engine = ReplayEngine(saw)
    config = VerifyClipsConfig(engine={"model": "m"}, num_frames=2, error_rate_limit=0.2)
    context = ask(verify_clips, "clips", clips, config, engine, "verify_clips")
    kept, bad = rows_of(context, "verified"), {row["caption_id"]: row for row in rows_of(context, "dead_letters")}
    assert [(row["caption_id"], row["attempts"]) for row in kept] == [
        ("clip1", 2), ("clip2", 1), ("clip3", 1), ("clip5", 1),
    ]  # fmt: skip
    assert (bad["clip0"]["outcome"], bad["clip0"]["reason"]) == ("filtered", "style_not_seen")
    assert bad["clip4"]["outcome"] == "failed" and bad["clip4"]["reason"].startswith("clip: ")
    assert set(bad) == {"clip0", "clip4"} and "clip" not in VERIFIED_SCHEMA.names
    (request,) = [request for request in engine.requests if request.key == "clip3"]
    assert grays(images_of(request)) == [0, 70] and text_of(request) == prompt.verify_text("night")
    assert request.schema is None and request.max_tokens == 16
    assert context.figures["styles"] == {"day": 1, "night": 3}


def test_a_persons_word_wins_and_unknown_clips_are_refused(ask, clips, tmp_path):
    file = tmp_path / "seen.csv"
    file.write_text("caption_id,keep,note\nclip0,yes,it is right\nclip2, No ,blurred\n")
    engine = ReplayEngine(saw)
    config = VerifyClipsConfig(engine={"model": "m"}, num_frames=2, overrides=str(file))
    context = ask(verify_clips, "clips", clips, config, engine, "verify_clips")
    kept = {row["caption_id"]: row["decided_by"] for row in rows_of(context, "verified")}
    assert kept == {"clip0": "person", "clip1": "model", "clip3": "model", "clip5": "model"}
    bad = {row["caption_id"]: row for row in rows_of(context, "dead_letters")}
    assert (bad["clip2"]["outcome"], bad["clip2"]["reason"]) == ("filtered", "dropped_by_person")
    assert not {"clip0", "clip2"} & {request.key for request in engine.requests}
    assert verify_clips_sources(config)[-1] == str(file)
    file.write_text("caption_id,keep\nclip9,yes\n")
    with pytest.raises(UserError, match="'clip9' in row 2 of .*seen.csv is no caption_id of a clip"):
        ask(verify_clips, "clips", clips, config, engine, "unknown")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,keep\na,yes\n", "first line of .* must be caption_id,keep"),
        ("", "first line of .* must be caption_id,keep"),
        ("caption_id,keep\na,perhaps\n", "'a' in row 2 of .* has keep = 'perhaps'"),
        ("caption_id,keep\na\n", "has keep = ''"),
        ("caption_id,keep\na,1\nb,0\na,0\n", "'a' in row 4 of .* stands there before"),
    ],
)
def test_bad_overrides_are_named(tmp_path, text, message):
    (tmp_path / "o.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_overrides(str(tmp_path / "o.csv"), ["a", "b"])
    with pytest.raises(UserError, match="can't be read"):
        read_overrides(str(tmp_path / "p.csv"), [])


def test_more_frames_than_a_request_takes_are_refused():
    assert VerifyClipsConfig().num_frames == 4
    with pytest.raises(ValidationError, match="engine.limit_images is 2"):
        VerifyClipsConfig(engine={"model": "m"})
