"""Small pictures and archives for the readers' tests."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image


def noise(seed, size=(10, 8)):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def encoded(pixels, format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format, **options)
    return buffer.getvalue()


def png(seed, size=(10, 8), format="PNG", **options):
    return encoded(noise(seed, size), format, **options)


def bomb(width=60_000, height=60_000):
    """A PNG of a few hundred bytes that says to have so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def add_to_tar(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def table_rows(context, folder):
    """The rows of all tables under a folder of the artifact."""
    names = [name for name in context.out.list(".parquet", recursive=True) if name.startswith(f"{folder}/")]
    return [row for name in names for row in context.out.read_table(name).to_pylist()]
