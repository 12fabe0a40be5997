import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from cluster.config import identity
from cluster.errors import UserError
from cluster.folder import Folder
from stages.encode.rows import tuple_rows
from stages.encode.stage import EncodeConfig, encode_pairs, encode_sources, encode_tuples, load_encoder, read_image
from stages.ingest.stage import SAMPLES_SCHEMA
from stages.starter.stages import PairsConfig, make_pairs
from stages.train.backbones.pictures import to_pixels
from stages.train.data import EncodedData
from stages.train.live import LiveData, open_data
from tests.artifacts import committed
from tests.stages.ingest.context import make_context

FIELDS = ("src_caption", "instruction", "tgt_caption", "reverse_instruction")


def png(seed, size=(32, 32)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def sample(index, outcome="ok", size=(32, 32)):
    row = dict.fromkeys(SAMPLES_SCHEMA.names)
    row |= {"sample_id": f"sample{index}", "outcome": outcome, "width": size[0], "height": size[1]}
    return row | ({"image": png(index, size)} if outcome == "ok" else {"reason": "corrupt"})


def training_tuple(index, outcome="ok", instruction=None):
    texts = ("a circle", instruction or f"make it {index}", "a square", "undo")
    row = {"sample_id": f"sample{index}", "outcome": outcome, "edit_type": "color", "object": None, "attempts": 1}
    return row | dict(zip(FIELDS, texts, strict=True))


def inputs(tmp_path, samples, tuples):
    """Two shards of samples and two of tuples, of other sizes."""
    ingest, caption = Folder(tmp_path / "ingest"), Folder(tmp_path / "caption")
    middle = len(samples) // 2
    for number, rows in enumerate((samples[:middle], samples[middle:])):
        ingest.write_table(f"samples/{number:05d}.parquet", pa.Table.from_pylist(rows, SAMPLES_SCHEMA))
    for number, rows in enumerate((tuples[:1], tuples[1:])):
        caption.write_table(f"tuples/{number:05d}.parquet", pa.Table.from_pylist(rows))
    return {"ingest": committed(ingest, "ingest"), "caption": committed(caption, "caption")}


@pytest.fixture
def work(tiny_flux, tmp_path, monkeypatch):
    """Runs a stage's function, its shards in this process; returns its context and the shards done."""

    def run(function, given, name="encode", reverse=False, **settings):
        context = make_context(tmp_path, name)
        done = []

        def in_process(shards, shard_work, *, context, **options):
            for shard in reversed(shards) if reverse else shards:
                if not context.out.exists(shard):
                    shard_work(shard)
                    done.append(shard)

        monkeypatch.setattr("stages.encode.stage.run_shards", in_process)
        function(given, EncodeConfig(**{"model": str(tiny_flux)} | settings), context)
        return context, done

    return run


def test_ok_rows_are_joined_and_encoded_once(tmp_path, tiny_flux, work):
    samples = [sample(0), sample(1, "failed"), sample(2), sample(3), sample(4)]
    tuples = [
        training_tuple(4),
        training_tuple(0),
        training_tuple(2, "failed"),
        training_tuple(3),
        training_tuple(3, instruction="make it big"),
    ]
    context, _ = work(encode_tuples, inputs(tmp_path, samples, tuples), shard_size=3, batch_size=2)
    data = EncodedData.load(context.out.local(), ("source",), FIELDS)
    assert data.ids == ["sample0", "sample3", "sample3-1", "sample4"]
    assert data.grid == (4, 4)
    assert context.rows == 4
    for name in context.out.sub("rows").list(".safetensors"):  # no target among them
        assert set(load(context.out.sub("rows").read_bytes(name))) == {"source"}
        columns = context.out.sub("rows").read_table(name.replace(".safetensors", ".parquet")).column_names
        assert set(columns) == {"id", *FIELDS, "nothing", "edit_type", "object"}
    tables = [context.out.sub("texts").read_table(f"{index:05d}.parquet") for index in range(3)]
    texts = [text for table in tables for text in table["text"].to_pylist()]
    assert texts == ["a circle", "a square", "do nothing", "make it 0", "make it 3", "make it 4", "make it big", "undo"]

    encoder = load_encoder(EncodeConfig(model=str(tiny_flux)))
    batch = data.batch(range(4))
    images = [Image.open(io.BytesIO(png(index))).convert("RGB") for index in (0, 3, 3, 4)]
    assert torch.allclose(batch.latents["source"], encoder.encode_pixels(to_pixels(images)), atol=1e-5)
    expected = encoder.encode_text(["make it 0", "make it 3", "make it big", "make it 4"])
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        assert torch.allclose(batch.texts["instruction"][name], expected[name], atol=1e-5)
    assert not torch.allclose(expected["prompt_embeds"][0], expected["prompt_embeds"][1])


def test_order_of_work_and_interruption_change_no_byte(tmp_path, work):
    given = inputs(tmp_path, [sample(i) for i in range(5)], [training_tuple(i) for i in range(5)])
    whole, done = work(encode_tuples, given, shard_size=2)
    other, _ = work(encode_tuples, given, name="other", reverse=True, shard_size=2)
    names = [name for name in whole.out.list(recursive=True)]
    assert names == other.out.list(recursive=True)
    assert all(whole.out.read_bytes(name) == other.out.read_bytes(name) for name in names)
    lost = done[-1]
    other.out.remove(lost)
    _, again = work(encode_tuples, given, name="other", shard_size=2)
    assert again == [lost]
    assert all(whole.out.read_bytes(name) == other.out.read_bytes(name) for name in names)


def test_pairs_have_source_and_target(tmp_path, work, tiny_flux):
    making = make_context(tmp_path, "pairs")
    make_pairs({}, PairsConfig(num_pairs=4), making)
    context, _ = work(encode_pairs, {"pairs": committed(making.out, "pairs")})
    data = EncodedData.load(context.out.local(), ("source", "target"), ("instruction",))
    encoder = load_encoder(EncodeConfig(model=str(tiny_flux)))
    rows = making.out.read_table("pairs.parquet").to_pylist()
    batch = data.batch(range(4))
    for field in ("source", "target"):
        images = [Image.open(io.BytesIO(row[f"{field}_image"])) for row in rows]
        assert torch.allclose(batch.latents[field], encoder.encode_pixels(to_pixels(images)), atol=1e-5)


@pytest.mark.parametrize("backbone", ["flux", "sd3"])
def test_live_keeps_pictures_and_texts_and_gives_training_the_same_batches(
    tmp_path, work, tiny_flux, tiny_sd3, backbone
):
    model = str({"flux": tiny_flux, "sd3": tiny_sd3}[backbone])
    samples, tuples = [sample(i) for i in range(4)], [training_tuple(i) for i in range(4)]
    given = inputs(tmp_path, samples, tuples)
    before, _ = work(encode_tuples, given, name="before", shard_size=3, model=model)
    live, _ = work(encode_tuples, given, name="live", shard_size=3, live=True, model=model)
    assert live.out.list(recursive=True) == [
        "live.json", *(f"rows/0000{shard}.{kind}" for shard in (0, 1) for kind in ("parquet", "safetensors"))
    ]  # fmt: skip
    expected = open_data(before.out.local(), ("source",), FIELDS, "cpu")
    data = open_data(live.out.local(), ("source",), FIELDS, "cpu")
    assert isinstance(data, LiveData) and len(data) == 4 and data.grid == expected.grid
    ours, theirs = data.batch([3, 0, 1]), expected.batch([3, 0, 1])
    assert ours.ids == theirs.ids
    assert torch.allclose(ours.latents["source"], theirs.latents["source"], atol=1e-5)
    for field in FIELDS:
        for name, tensor in theirs.texts[field].items():
            assert torch.allclose(ours.texts[field][name], tensor, atol=1e-5), (field, name)


def test_a_damaged_marker_is_named(tmp_path):
    (tmp_path / "live.json").write_text('{"model": "x"}')
    with pytest.raises(UserError, match="live.json can't be read.*--force encode"):
        open_data(tmp_path, ("source",), FIELDS, "cpu")


def test_on_ray(tmp_path, tiny_flux, local_ray):
    given = inputs(tmp_path, [sample(i) for i in range(3)], [training_tuple(i) for i in range(3)])
    context = make_context(tmp_path, "encode")
    encode_tuples(given, EncodeConfig(model=str(tiny_flux), shard_size=2, num_cpus=0.5), context)
    assert len(EncodedData.load(context.out.local(), ("source",), FIELDS)) == 3


def test_resolution_crops_the_centre():
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:30] = 200
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    image = np.asarray(read_image("a", buffer.getvalue(), 20))
    assert image.shape == (20, 20, 3) and (image == 200).all()
    assert read_image("a", buffer.getvalue(), 16).size == (16, 16)
    assert read_image("a", png(0, (48, 33)), 64).size == (64, 64)


def test_bfloat16_latents(tmp_path, work):
    samples = [sample(index, size=(40, 32)) for index in range(2)]
    given = inputs(tmp_path, samples, [training_tuple(index) for index in range(2)])
    context, _ = work(encode_tuples, given, dtype="bfloat16", resolution=16)
    data = EncodedData.load(context.out.local(), ("source",), FIELDS)
    assert data.latents.shards["source"][0].dtype == torch.bfloat16 and data.grid == (2, 2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(32, 32), (32, 32), (40, 32)], "'sample2' has 40x32 pixels, the first one 32x32; .*resolution=N"),
        ([(36, 32)] * 3, "'sample0' has 36x32 pixels; .* multiples of 8"),
    ],
)
def test_pictures_of_wrong_sizes_are_named(tmp_path, work, sizes, message):
    samples = [sample(index, size=size) for index, size in enumerate(sizes)]
    with pytest.raises(UserError, match=message):
        work(encode_tuples, inputs(tmp_path, samples, [training_tuple(i) for i in range(3)]), shard_size=1)


def test_what_does_not_fit_together_is_named(tmp_path, work):
    given = inputs(tmp_path, [sample(0), sample(1)], [training_tuple(0), training_tuple(7)])
    with pytest.raises(UserError, match="sample7"):
        tuple_rows(given["ingest"].folder, given["caption"].folder)
    failed = [training_tuple(index, "failed") for index in range(2)]
    given = inputs(tmp_path / "failed", [sample(0), sample(1)], failed)
    with pytest.raises(UserError, match="nothing to encode"):
        work(encode_tuples, given)
    with pytest.raises(UserError, match="picture 'x' can't be read"):
        read_image("x", b"\x89PNG nonsense", None)


def test_a_missing_model_is_named():
    with pytest.raises(UserError, match="--set encode.model"):
        load_encoder(EncodeConfig(model="/no/model"))


def test_scaling_is_no_part_of_the_identity(tiny_flux):
    model = str(tiny_flux)
    config = EncodeConfig(model=model)
    scaled = EncodeConfig(model=model, num_workers=9, batch_size=3, num_cpus=2, num_gpus=1, device="cpu")
    assert identity(config) == identity(scaled) != identity(EncodeConfig(model=model, resolution=512))
    assert encode_sources(config) == [str(tiny_flux)]
    assert encode_sources(EncodeConfig(model="black-forest-labs/FLUX.1-dev")) == []
