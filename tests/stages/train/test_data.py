"""Encoded rows: what was written comes back, whatever is wrong is named, and the order covers every row."""

import shutil

import pytest
import torch

from cluster.errors import UserError
from cluster.folder import Folder
from stages.train.data import BatchOrder, EncodedData, SharedOrder, rows_shard, texts_shard, write_rows, write_texts


def small(folder: Folder, latents: torch.Tensor, texts: list[str], grid=(1, 2)) -> None:
    unique = sorted(set(texts))
    write_texts(folder, texts_shard(0), unique, {"embeds": torch.arange(float(len(unique))).reshape(-1, 1)})
    ids = [f"row{row}" for row in range(len(texts))]
    write_rows(folder, rows_shard(0), ids, {"source": latents}, {"instruction": texts}, grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_from_any_shard(tmp_path, dtype):
    latents = torch.randn(3, 2, 4).to(dtype)
    folder = Folder(tmp_path)
    small(folder, latents[:2], ["b", "a"])
    write_rows(folder, rows_shard(1), ["last"], {"source": latents[2:]}, {"instruction": ["b"]}, (1, 2))
    data = EncodedData.load(tmp_path, ["source"], ["instruction"])
    assert (len(data), data.grid) == (3, (1, 2))
    batch = data.batch([2, 0, 1], dtype=dtype)
    assert batch.ids == ["last", "row0", "row1"]
    assert torch.equal(batch.latents["source"], latents[[2, 0, 1]])
    assert batch.texts["instruction"]["embeds"].flatten().tolist() == [1, 1, 0]
    assert data.batch([0]).latents["source"].dtype == torch.float32


def test_equal_rows_give_equal_bytes(tmp_path):
    latents = torch.randn(2, 2, 4)
    for name in "ab":
        small(Folder(tmp_path / name), latents, ["x", "y"])
    names = Folder(tmp_path / "a").list(recursive=True)
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_missing_is_named(tmp_path):
    small(Folder(tmp_path), torch.zeros(1, 2, 4), ["x"])
    with pytest.raises(UserError, match="no target, which the method needs"):
        EncodedData.load(tmp_path, ["source", "target"], ["instruction"])
    with pytest.raises(UserError, match="tgt_caption"):
        EncodedData.load(tmp_path, ["source"], ["tgt_caption"])
    with pytest.raises(UserError, match="has no texts"):
        EncodedData.load(tmp_path / "nowhere", ["source"], ["instruction"])
    write_rows(
        Folder(tmp_path),
        rows_shard(1),
        ["r"],
        {"source": torch.zeros(1, 2, 4)},
        {"instruction": ["z"]},
        (1, 2),
    )
    with pytest.raises(UserError, match="row 'r' has a instruction that isn't among the encoded texts: 'z'"):
        EncodedData.load(tmp_path, ["source"], ["instruction"])


def test_damage_is_named(tmp_path):
    small(Folder(tmp_path), torch.zeros(2, 2, 4), ["x", "y"])
    file = tmp_path / "rows" / "00000.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    with pytest.raises(UserError, match="rows/00000.safetensors can't be read"):
        EncodedData.load(tmp_path, ["source"], ["instruction"])
    file.write_bytes(whole)
    write_rows(
        Folder(tmp_path / "b"),
        rows_shard(0),
        ["r"],
        {"source": torch.zeros(1, 2, 4)},
        {"instruction": ["x"]},
        (1, 2),
    )
    shutil.copy(tmp_path / "b/rows/00000.safetensors", file)
    with pytest.raises(UserError, match="source has 1 rows, 00000.parquet beside it 2"):
        EncodedData.load(tmp_path, ["source"], ["instruction"])


def test_mixed_sizes_are_refused(tmp_path):
    small(Folder(tmp_path), torch.zeros(1, 2, 4), ["x"])
    write_rows(
        Folder(tmp_path),
        rows_shard(1),
        ["r"],
        {"source": torch.zeros(1, 2, 4)},
        {"instruction": ["x"]},
        (2, 1),
    )
    with pytest.raises(UserError, match="mixes picture sizes"):
        EncodedData.load(tmp_path, ["source"], ["instruction"])
    with pytest.raises(ValueError, match="doesn't fit 1 rows"):
        write_rows(
            Folder(tmp_path),
            rows_shard(2),
            ["r"],
            {"source": torch.zeros(1, 2, 4)},
            {"instruction": ["x"]},
            (2, 2),
        )


def test_the_order_covers_every_row_in_each_pass():
    order = BatchOrder(10, 4, seed=3)
    stream = [row for step in range(10) for row in order.rows(step)]
    passes = [stream[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(rows) == list(range(10)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 4
    assert BatchOrder(10, 4, seed=3).rows(7) == order.rows(7)  # whatever was asked before
    assert order.rows(0) == stream[:4]
    assert BatchOrder(10, 4, seed=4).rows(0) != stream[:4]


def test_a_batch_larger_than_the_data_repeats_rows():
    rows = BatchOrder(3, 8, seed=0).rows(0)
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 1, 2]


def test_types_have_their_shares_of_the_rows_whatever_there_is_of_each():
    types = ["add"] * 50 + ["remove"] * 3 + ["style"] * 7 + ["color"] * 40
    order = SharedOrder(types, {"remove": 0.25}, 16, seed=3)
    drawn = [row for step in range(500) for row in order.rows(step)]
    found = {name: sum(types[row] == name for row in drawn) / len(drawn) for name in set(types)}
    assert found == pytest.approx({"remove": 0.25, "add": 0.25, "style": 0.25, "color": 0.25}, abs=0.02)
    assert set(drawn) == set(range(100))  # every row of a type is as good as another
    assert order.rows(7) == SharedOrder(types, {"remove": 0.25}, 16, seed=3).rows(7) != order.rows(8)
    most = SharedOrder(types, {"remove": 0.7}, 16, seed=4)
    assert sum(types[row] == "remove" for step in range(500) for row in most.rows(step)) / 8000 == pytest.approx(
        0.7, abs=0.02
    )
    with pytest.raises(UserError, match="no row of the training data is of type text; there is add, color"):
        SharedOrder(types, {"text": 0.1}, 16, seed=0)
