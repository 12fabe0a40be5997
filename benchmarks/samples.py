"""Ingest's tables with pictures of the scene world, for benchmarks of what reads them."""

from __future__ import annotations

import functools
import json

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.artifacts import Artifact, commit
from cluster.folder import Folder
from stages.ingest.stage import SAMPLES_SCHEMA
from stages.starter.stages import item_generator, png
from stages.starter.world import IMAGE_SIZE, render, sample_scene

_ROWS_IN_FILE = 512


def make_samples(
    folder: Folder,
    num_rows: int,
    first: int = 0,
    num_pictures: int | None = None,
    size: int = IMAGE_SIZE,
    broken_every: int | None = None,
) -> Artifact:
    """A finished artifact of ingest with the scenes `first`, `first + 1`, ..., `size` pixels wide and high.

    With `num_pictures` there are no more pictures than that, each again and again under other ids. With `broken_every`
    each so-manieth picture is cut off.
    """

    @functools.lru_cache(maxsize=num_pictures or 1)
    def picture(index: int) -> bytes:
        pixels = render(sample_scene(item_generator("scenes", 0, index)))
        whole = png(np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)))
        return whole[: len(whole) // 2] if broken_every and (index + 1) % broken_every == 0 else whole

    for start in range(0, num_rows, _ROWS_IN_FILE):
        rows = []
        for index in range(first + start, first + min(start + _ROWS_IN_FILE, num_rows)):
            row = dict.fromkeys(SAMPLES_SCHEMA.names) | {
                "sample_id": f"{index:016x}",
                "source": f"{index:08d}.png",
                "image": picture(index % num_pictures if num_pictures else index),
                "width": size,
                "height": size,
                "metadata": json.dumps({}),
                "outcome": "ok",
            }
            rows.append(row)
        table = pa.Table.from_pylist(rows, SAMPLES_SCHEMA)
        folder.write_table(f"samples/{start // _ROWS_IN_FILE:05d}.parquet", table)
    fingerprint = f"{first:08x}{num_rows:08x}"
    manifest = commit(
        folder, stage="ingest", version="1", fingerprint=fingerprint, config={}, identity={}, parents={},
        run_id="benchmark", code_version="benchmark",
    )  # fmt: skip
    return Artifact("ingest", fingerprint, folder, manifest)
