"""Pictures that look alike: a hash of 64 bits that small changes hardly move, and who of many is near whom."""

from __future__ import annotations

import array

import numpy as np
from PIL import Image

NUM_BITS = 64


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each cell of the picture, in gray on a grid of 8 x 9, is brighter than its left neighbour.

    It outlives another size, compression and light retouching. It sees neither hue nor flat areas: two empty pictures
    are alike, and so are a picture and a recoloured one whose lightness stays.
    """
    gray = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(gray[:, 1:] > gray[:, :-1]).tobytes(), "big")


class NearIndex:
    """Hashes that were kept, in the order of their coming; finds the first that is near a new one.

    Two hashes that differ in at most `distance` bits agree in at least one of `distance + 1` bands of their bits, so
    only those that share a band are compared. Memory: some 8 (distance + 2) bytes for each hash kept.
    """

    def __init__(self, distance: int):
        self._distance = distance
        edges = [NUM_BITS * band // (distance + 1) for band in range(distance + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in zip(edges, edges[1:], strict=False)]
        self._kept = np.empty(1024, dtype=np.uint64)
        self._names: list[str] = []
        self._buckets: list[dict[int, array.array]] = [{} for _ in self._bands]

    def nearest_or_keep(self, name: str, value: int) -> tuple[str, int] | None:
        """The first kept hash within the distance and how many bits differ; if there is none, this one is kept."""
        keys = [value >> low & mask for low, mask in self._bands]
        found = [bucket[key] for bucket, key in zip(self._buckets, keys, strict=True) if key in bucket]
        if found:
            places = np.unique(np.concatenate([np.array(places) for places in found]))
            bits = np.bitwise_count(self._kept[places] ^ np.uint64(value))
            near = np.flatnonzero(bits <= self._distance)
            if near.size:
                return self._names[places[near[0]]], int(bits[near[0]])
        place = len(self._names)
        if place == len(self._kept):
            self._kept = np.concatenate([self._kept, np.empty_like(self._kept)])
        self._kept[place] = value
        self._names.append(name)
        for bucket, key in zip(self._buckets, keys, strict=True):
            bucket.setdefault(key, array.array("q")).append(place)
        return None
