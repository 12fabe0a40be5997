"""Encoded training data on disk: latents and text embeddings, computed once, read through memory maps.

A folder holds `rows/<shard>.parquet` (an `id` and the texts of each row, by field) with
`rows/<shard>.safetensors` (one array `[num_rows, N, C]` per latents field) beside it, and
`texts/<shard>.parquet` (unique texts) with `texts/<shard>.safetensors` (one array `[num_texts, ...]` per
embedding). Rows refer to texts by the text itself, which is encoded once however many rows have it. The
Parquet file of a shard is written last: where it is, the shard is whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cluster.errors import UserError, one_line
from cluster.folder import Folder
from stages.train.roles import Batch


def rows_shard(index: int) -> str:
    """The name of a shard of rows."""
    return f"rows/{index:05d}.parquet"


def texts_shard(index: int) -> str:
    """The name of a shard of texts."""
    return f"texts/{index:05d}.parquet"


def write_rows(
    folder: Folder,
    shard: str,
    ids: Sequence[str],
    arrays: Mapping[str, torch.Tensor],
    texts: Mapping[str, Sequence[str]],
    grid: tuple[int, ...],
    labels: Mapping[str, Sequence[str | None]] | None = None,
    extras: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes one shard of rows.

    Args:
        shard: its name, as `rows_shard` makes it.
        arrays: by field (`source`; `target` where pairs are known) packed tokens `[num_rows, N, C]`, or uint8
            pictures `[num_rows, 3, H, W]` that are encoded while training.
        texts: a text per row, by field (`instruction`, ...), each of them in a shard of texts unless encoded live.
        grid: how many tokens lie along each axis, (rows, columns) of a picture; N is their product.
        labels: a word or two per row, by field (`edit_type`, ...), that no encoder reads.
        extras: what else a method reads, by field, `[num_rows, ...]`: conditions, the latents of one frame, ...
    """
    for name, tensor in (extras or {}).items():
        if len(tensor) != len(ids):
            raise ValueError(f"{name!r} of shape {list(tensor.shape)} doesn't fit {len(ids)} rows")
    for name, tensor in arrays.items():
        tokens = tensor.ndim == 3 and tensor.shape[:2] == (len(ids), math.prod(grid))
        pictures = tensor.ndim == 4 and tensor.shape[:2] == (len(ids), 3) and tensor.dtype == torch.uint8
        if not (tokens or pictures):
            shape = list(tensor.shape)
            raise ValueError(f"{name!r} {tensor.dtype} {shape} doesn't fit {len(ids)} rows of {grid} tokens")
    _write_arrays(folder, shard, {**arrays, **(extras or {})}, {"grid": "x".join(map(str, grid))})
    columns = {"id": pa.array(ids, pa.string())}
    columns |= {name: pa.array(column, pa.string()) for name, column in {**texts, **(labels or {})}.items()}
    folder.write_table(shard, pa.table(columns))


def write_texts(folder: Folder, shard: str, texts: Sequence[str], embeds: Mapping[str, torch.Tensor]) -> None:
    """Writes one shard of unique texts and their embeddings `[num_texts, ...]`, by the model's names."""
    for name, tensor in embeds.items():
        if len(tensor) != len(texts):
            shape = list(tensor.shape)
            raise ValueError(f"embeddings {name!r} of shape {shape} don't fit {len(texts)} texts")
    _write_arrays(folder, shard, embeds, {})
    folder.write_table(shard, pa.table({"text": pa.array(texts, pa.string())}))


def _write_arrays(folder: Folder, shard: str, arrays: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    arrays = {name: tensor.detach().cpu().contiguous() for name, tensor in arrays.items()}
    folder.write_bytes(_arrays_of(shard), save(arrays, metadata=metadata))


def _arrays_of(shard: str) -> str:
    return shard.removesuffix(".parquet") + ".safetensors"


@dataclasses.dataclass
class Rows:
    """The rows of a folder: ids, texts and labels by field, and arrays by field that stay memory-mapped."""

    ids: list[str]
    grid: tuple[int, ...]
    texts: dict[str, list[str]]
    shards: dict[str, list[torch.Tensor]]
    """A memory-mapped tensor per shard, by field."""
    places: list[tuple[int, int]]
    """(shard, row in it) of each row's arrays."""
    labels: dict[str, list[str | None]]

    @classmethod
    def load(cls, path: Path, arrays: Sequence[str], texts: Sequence[str], labels: Sequence[str] = ()) -> Rows:
        """Opens these fields. Raises UserError for a missing or damaged file or field, or grids that differ."""
        empty = [{name: [] for name in names} for names in (texts, arrays, labels)]
        found = cls([], (0, 0), empty[0], empty[1], [], empty[2])
        grids: set[str] = set()
        for number, (file, table) in enumerate(_shards(path, "rows", list(dict.fromkeys(["id", *texts, *labels])))):
            found.ids += table["id"].to_pylist()
            found.places += [(number, row) for row in range(len(table))]
            opened, metadata = _open_arrays(file, len(table), arrays)
            for name, tensor in opened.items():
                found.shards[name].append(tensor)
            grids.add(metadata.get("grid", ""))
            for columns in (found.texts, found.labels):
                for name, column in columns.items():
                    column += table[name].to_pylist()
        if len(grids) != 1:
            sizes = ", ".join(sorted(grids))
            raise UserError(f"The encoded data in {path} mixes picture sizes ({sizes} tokens).")
        found.grid = tuple(map(int, grids.pop().split("x")))
        return found

    def labels_of(self, rows: Sequence[int]) -> dict[str, list[str | None]]:
        """The labels of these rows, by field."""
        return {name: [column[row] for row in rows] for name, column in self.labels.items()}

    def arrays_of(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The arrays of these rows, `[B, ...]`, by field."""
        places = [self.places[row] for row in rows]
        return {name: _taken(shards, places) for name, shards in self.shards.items()}


def _taken(shards: list[torch.Tensor], places: Sequence[tuple[int, int]]) -> torch.Tensor:
    return torch.stack([shards[shard][row] for shard, row in places])


@dataclasses.dataclass
class EncodedData:
    """The rows of an encoded folder. Arrays stay memory-mapped: only the rows of a batch are read."""

    ids: list[str]
    grid: tuple[int, ...]
    latents: Rows
    texts: dict[str, list[int]]
    """Each row's text, by field, as an index into `text_places`."""
    embeds: dict[str, list[torch.Tensor]]
    text_places: list[tuple[int, int]]

    @classmethod
    def load(cls, path: Path, latents: Sequence[str], texts: Sequence[str], labels: Sequence[str] = ()) -> EncodedData:
        """Opens the fields `latents`, `texts` and `labels` of a local folder.

        Raises UserError for a missing or damaged file or field, a text that isn't encoded, grids that differ.
        """
        index_of: dict[str, int] = {}
        text_places: list[tuple[int, int]] = []
        embeds: dict[str, list[torch.Tensor]] = {}
        for number, (file, table) in enumerate(_shards(path, "texts", ["text"])):
            for row, text in enumerate(table["text"].to_pylist()):
                index_of[text] = len(text_places)
                text_places.append((number, row))
            arrays, _ = _open_arrays(file, len(table), None)
            for name, tensor in arrays.items():
                embeds.setdefault(name, []).append(tensor)

        rows = Rows.load(path, latents, texts, labels)
        indices: dict[str, list[int]] = {name: [] for name in texts}
        for name, column in rows.texts.items():
            for row, text in enumerate(column):
                if text not in index_of:
                    raise UserError(
                        f"The encoded data in {path}: row {rows.ids[row]!r} has a {name} that isn't among the "
                        f"encoded texts: {text!r}. Make it anew with --force encode."
                    )
                indices[name].append(index_of[text])
        return cls(rows.ids, rows.grid, rows, indices, embeds, text_places)

    @property
    def labels(self) -> dict[str, list[str | None]]:
        return self.latents.labels

    def __len__(self) -> int:
        return len(self.ids)

    def batch(
        self, rows: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Batch:
        """The given rows, moved to `device` and cast to `dtype`."""
        latents = {name: array.to(device, dtype) for name, array in self.latents.arrays_of(rows).items()}
        texts = {}
        for field, indices in self.texts.items():
            places = [self.text_places[indices[row]] for row in rows]
            texts[field] = {name: _taken(shards, places).to(device, dtype) for name, shards in self.embeds.items()}
        return Batch([self.ids[row] for row in rows], latents, texts, self.latents.labels_of(rows), self.grid)


def _shards(path: Path, kind: str, columns: list[str]) -> list[tuple[Path, pa.Table]]:
    files = sorted((path / kind).glob("*.parquet"))
    if not files:
        raise UserError(f"The encoded data in {path} has no {kind}. Make it anew with --force encode.")
    found = []
    for file in files:
        try:
            found.append((file, pq.read_table(file, columns=columns)))
        except (pa.ArrowException, OSError) as error:
            text = one_line(error)
            raise UserError(f"The encoded data file {file} can't be read: {text}") from None
    if not any(len(table) for _, table in found):
        raise UserError(f"The encoded data in {path} has no {kind}: every shard of them is empty.")
    missing = set(columns) - set(found[0][1].column_names)
    if missing:
        names = ", ".join(sorted(missing))
        raise UserError(f"The encoded data in {path} has no {names}, which the method needs.")
    return [(file, table) for file, table in found if len(table)]


def _open_arrays(
    file: Path, num_rows: int, names: Sequence[str] | None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Memory-mapped arrays of a shard (None: all), and its metadata."""
    arrays_file = file.with_suffix(".safetensors")
    try:
        with safe_open(arrays_file, framework="pt") as opened:
            missing = set(names or ()) - set(opened.keys())
            if missing:
                raise UserError(f"{arrays_file} has no {', '.join(sorted(missing))}, which the method needs.")
            arrays = {name: opened.get_tensor(name) for name in names or opened.keys()}
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"The encoded data file {arrays_file} can't be read: {error}") from None
    for name, tensor in arrays.items():
        if len(tensor) != num_rows:
            raise UserError(f"{arrays_file}: {name} has {len(tensor)} rows, {file.name} beside it {num_rows}.")
    return arrays, metadata


class BatchOrder:
    """Which rows each step trains on: an endless stream of passes through all rows, each in its own order.

    A function of (seed, step) alone: it goes on anywhere, on any number of ranks.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self._orders: dict[int, list[int]] = {}

    def rows(self, step: int) -> list[int]:
        """The rows of the global batch of a step."""
        first = step * self.batch_size
        places = (divmod(place, self.num_rows) for place in range(first, first + self.batch_size))
        return list(itertools.starmap(self._row, places))

    def _row(self, epoch: int, place: int) -> int:
        if epoch not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key >= epoch - 1}
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._orders[epoch] = torch.randperm(self.num_rows, generator=generator).tolist()
        return self._orders[epoch][place]


class SharedOrder:
    """Which rows each step trains on where edit types have shares: the type of each is drawn, then one of its rows.

    Types without a share have equal parts of the rest. A function of (seed, step) alone, as `BatchOrder` is. Raises
    UserError for a type that no row has.
    """

    def __init__(
        self, edit_types: Sequence[str | None], shares: Mapping[str, float], batch_size: int, seed: int
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        self._rows: dict[str | None, list[int]] = {}
        for row, edit_type in enumerate(edit_types):
            self._rows.setdefault(edit_type, []).append(row)
        if missing := sorted(set(shares) - set(self._rows)):
            known = ", ".join(sorted(map(str, self._rows)))
            raise UserError(f"type_shares: no row of the training data is of type {missing[0]}; there is {known}.")
        rest = (1 - sum(shares.values())) / max(1, len(self._rows) - len(shares))
        self._shares = torch.tensor([shares.get(name, rest) for name in self._rows], dtype=torch.float64)

    def rows(self, step: int) -> list[int]:
        """The rows of the global batch of a step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        kinds = list(self._rows.values())
        drawn = torch.multinomial(self._shares, self.batch_size, replacement=True, generator=generator).tolist()
        return [kinds[kind][int(torch.randint(len(kinds[kind]), (), generator=generator))] for kind in drawn]
