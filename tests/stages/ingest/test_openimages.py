"""OpenImages in its published layout, and pictures that look alike."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from cluster.errors import UserError
from stages.ingest.csv_rows import MAX_BAD_ROWS
from stages.ingest.near_duplicates import NearIndex, difference_hash
from stages.ingest.stage import IngestConfig, ingest_images
from tests.stages.ingest.context import make_context
from tests.stages.ingest.pictures import encoded, noise, png, table_rows

pytestmark = pytest.mark.usefixtures("local_ray")

# the first lines of version 7's validation-images-with-rotation.csv and its companions
IMAGES = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    "Thumbnail300KURL,Rotation"
)
LABELS = "ImageID,Source,LabelName,Confidence"
LICENSE = "https://creativecommons.org/licenses/by/2.0/"


def image_row(image_id, title="A title", rotation="0.0"):
    told = f"https://u/{image_id}.jpg,https://l,{LICENSE},https://a"
    return f'{image_id},validation,{told},"Doe, Jane",{title},9,md5==,,{rotation}'


@pytest.fixture
def openimages(tmp_path):
    folder = tmp_path / "openimages"
    (folder / "validation").mkdir(parents=True)
    for index, name in enumerate(("000a", "000b", "000c", "000d")):
        (folder / "validation" / f"{name}.jpg").write_bytes(png(index, (30, 20), format="JPEG"))
    rows = [
        IMAGES,
        image_row("000a", '"Two\nlines, ""quoted"""'),
        image_row("000b", rotation="90.0"),
        "000c,validation,too,short",
        image_row("000d"),
        image_row("000d", "another title"),
        image_row(""),
        image_row("ffff"),
    ]
    (folder / "validation-images-with-rotation.csv").write_text("\r\n".join(rows) + "\r\n")
    labels = [LABELS, "000a,verification,/m/01,1", "000a,verification,/m/02,0", "000d,crowdsource-verification,/m/03,1"]
    labels += ["ffff,verification,/m/01,1", "000b,verification,/m/01,sure", "000b,verification,/m/09,1"]
    (folder / "oidv7-val-annotations-human-imagelabels.csv").write_text("\n".join(labels))
    classes = "LabelName,DisplayName\n/m/01,Cat\n/m/02,Dog\n/m/03,Cartoon\n"
    (folder / "oidv7-class-descriptions.csv").write_text(classes)
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    return folder


def ingest(tmp_path, source, **options):
    context = make_context(tmp_path, "ingest")
    ingest_images({}, IngestConfig(source=str(source), num_workers=1, **options), context)
    return context


@pytest.mark.parametrize("shard_size", [1, 256])
def test_pictures_get_what_the_csv_files_say(tmp_path, openimages, shard_size):
    context = ingest(tmp_path, openimages, layout="openimages", shard_size=shard_size)
    rows = {row["source"].split("/")[1][:4]: row for row in table_rows(context, "samples")}
    told = {name: json.loads(row["metadata"]) for name, row in rows.items()}
    assert told["000a"]["Title"] == 'Two\nlines, "quoted"' and told["000a"]["Author"] == "Doe, Jane"
    assert told["000a"]["License"] == LICENSE and told["000a"]["labels"] == ["Cat"]
    assert told["000b"]["labels"] == ["/m/09"] and (rows["000b"]["width"], rows["000b"]["height"]) == (20, 30)
    assert told["000c"] == {}
    assert told["000d"]["Title"] == "A title" and told["000d"]["photorealistic"] is False
    assert "photorealistic" not in told["000a"]
    turned = np.asarray(Image.open(io.BytesIO(rows["000b"]["image"])))
    with Image.open(openimages / "validation" / "000b.jpg") as original:
        assert np.array_equal(turned, np.rot90(np.asarray(original)))
    letters = {row["source"]: row["reason"] for row in table_rows(context, "dead_letters")}
    assert letters == {
        "validation-images-with-rotation.csv#5": "unreadable: 4 fields, the first line has 12",
        "validation-images-with-rotation.csv#8": "unreadable: no ImageID",
        "oidv7-val-annotations-human-imagelabels.csv#6": "unreadable: Confidence 'sure' is no number",
    }
    assert context.figures == {
        "num_csv_rows": 6, "num_csv_rows_without_image": 1, "num_images_without_csv_row": 1, "num_samples": 4,
        "num_dead_letters": 3, "dead_letter_reasons": {"unreadable": 3},
    }  # fmt: skip


def test_an_exif_rotation_is_not_doubled(tmp_path, openimages):
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by 90 degrees against the clock
    (openimages / "validation" / "000b.jpg").write_bytes(png(1, (30, 20), format="JPEG", exif=exif))
    rows = table_rows(ingest(tmp_path, openimages, layout="openimages"), "samples")
    assert [(row["width"], row["height"]) for row in rows] == [(30, 20), (20, 30), (30, 20), (30, 20)]


def test_classes_without_a_first_line(tmp_path, openimages):
    (openimages / "oidv7-class-descriptions.csv").unlink()
    (openimages / "class-descriptions-boxable.csv").write_text("/m/01,Tom cat\n/m/03,Drawing\n")
    rows = table_rows(ingest(tmp_path, openimages, layout="openimages"), "samples")
    assert [json.loads(row["metadata"]).get("labels") for row in rows] == [["Tom cat"], ["/m/09"], None, ["Drawing"]]


def test_a_missing_or_broken_list_of_images_is_one_paragraph(tmp_path, openimages):
    listed = openimages / "validation-images-with-rotation.csv"
    listed.write_text("\n".join([IMAGES, *["too,short"] * (MAX_BAD_ROWS + 1)]))
    with pytest.raises(UserError, match=r"validation-images-with-rotation.csv: over 1000 rows up to line 1002 can't"):
        ingest(tmp_path / "broken", openimages, layout="openimages")
    listed.unlink()
    with pytest.raises(UserError, match="none of the 3 CSV files .* ImageID and OriginalURL"):
        ingest(tmp_path / "missing", openimages, layout="openimages")


def soft(seed, size=(64, 48)):
    """A picture with large, soft structure, as photographs have."""
    coarse = Image.fromarray(noise(seed, (9, 8)))
    return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shard_size", [1, 3])
def test_near_duplicates_become_dead_letters(tmp_path, shard_size):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(soft(0)))
    (folder / "b.jpg").write_bytes(encoded(soft(0), "JPEG", quality=30))
    (folder / "c.png").write_bytes(encoded(soft(0, (32, 24))))
    (folder / "d.png").write_bytes(encoded(soft(1)))
    (folder / "e.png").write_bytes(encoded(soft(0)))
    context = ingest(tmp_path, folder, near_duplicates=4, shard_size=shard_size)
    assert [row["source"] for row in table_rows(context, "samples")] == ["a.png", "d.png"]
    letters = {row["source"]: row["reason"] for row in table_rows(context, "dead_letters")}
    assert letters.pop("e.png") == "duplicate: the same picture as a.png"
    assert set(letters) == {"b.jpg", "c.png"}
    assert all(r.startswith("near_duplicate: ") and r.endswith(" differ from a.png") for r in letters.values())
    assert context.figures["dead_letter_reasons"] == {"duplicate": 1, "near_duplicate": 2}
    files = {name: context.out.read_bytes(name) for name in context.out.list(recursive=True)}
    again = ingest(tmp_path, folder, near_duplicates=4, shard_size=shard_size)
    assert {name: again.out.read_bytes(name) for name in again.out.list(recursive=True)} == files
    assert len(table_rows(ingest(tmp_path / "all", folder), "samples")) == 4


def test_the_index_finds_what_comparing_all_finds():
    generator = np.random.default_rng(0)
    centers = generator.integers(0, 1 << 63, 40)
    flips = [sum(1 << int(bit) for bit in generator.choice(64, generator.integers(0, 9), False)) for _ in range(1500)]
    hashes = [int(generator.choice(centers)) ^ flip for flip in flips]
    for distance in (0, 3, 7):
        index, kept = NearIndex(distance), []
        for place, value in enumerate(hashes):
            near = [(name, (other ^ value).bit_count()) for name, other in kept]
            expected = next(((name, bits) for name, bits in near if bits <= distance), None)
            assert index.nearest_or_keep(str(place), value) == expected
            if expected is None:
                kept.append((str(place), value))


def test_the_hash_is_the_brightness_of_neighbours():
    rising = np.repeat(np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))[:, :, None], 3, axis=2)
    assert difference_hash(Image.fromarray(rising)) == (1 << 64) - 1
    assert difference_hash(Image.fromarray(rising[:, ::-1].copy())) == 0
    one = np.zeros((8, 9, 3), np.uint8)
    one[0, 1] = 255
    assert difference_hash(Image.fromarray(one)) == 1 << 63
