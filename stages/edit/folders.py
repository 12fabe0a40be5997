"""Editors that ran elsewhere: a folder of the pictures that one made, in a benchmark's own output layout or by id."""

from __future__ import annotations

import collections
import dataclasses
import io
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from cluster.config import StageConfig
from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.benchmark import MAX_PIXELS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
INSIDE = ("", "fullset/")  # GEdit-Bench's layout has everything below fullset/
MAX_SHAPE_CHANGE = 0.02  # of width / height: what rounding to a model's sizes can do
MAX_FILE_BYTES = 8 * MAX_PIXELS


class FolderSettings(StageConfig):
    """The pictures that somebody else's editor made."""

    path: str = Field(description="Folder or URL with ITEM_ID.png, or GEdit-Bench's fullset/TASK/LANGUAGE/KEY.png.")
    other_shapes: Literal["unscored", "resize"] = Field(
        "unscored", description="Of pictures of another shape than the source's; resize: as the official scripts do."
    )


@dataclasses.dataclass(frozen=True)
class Found:
    """The files for each item (none: missing; several: nobody knows which is meant), and those for no item."""

    folder: Folder
    files: Mapping[str, tuple[str, ...]]
    unknown: Sequence[str]


def find_pictures(name: str, settings: FolderSettings, item_ids: Sequence[str]) -> Found:
    """Looks the items' pictures up by their names. Raises UserError if the folder has none of them."""
    folder, wanted = Folder(settings.path), set(item_ids)
    files: dict[str, list[str]] = collections.defaultdict(list)
    unknown = []
    for file in folder.list(recursive=True):
        stem, suffix = posixpath.splitext(file)
        if suffix.lower() not in SUFFIXES:
            continue
        item_id = next((stem.removeprefix(start) for start in INSIDE if stem.removeprefix(start) in wanted), None)
        if item_id is not None:
            files[item_id].append(file)
        elif not stem.endswith("_SRCIMG"):  # GEdit-Bench has the sources beside the edits
            unknown.append(file)
    if not files:
        other = f" There are others, such as {unknown[0]}: is it another benchmark's?" if unknown else ""
        raise UserError(
            f"edit.folders.{name}.path: {folder.url} has no picture of any of the {len(wanted)} items, such as "
            f"{item_ids[0]}.png.{other}"
        )
    return Found(folder, {item_id: tuple(names) for item_id, names in files.items()}, unknown)


def read_edit(found: Found, settings: FolderSettings, item_id: str, size: tuple[int, int]) -> dict[str, Any]:
    """The columns `image`, the file's own bytes, and `reason`, why there are none, of an item whose source has the
    `size` (width, height).

    A picture of the source's shape and another size is fine: evaluation scales it.
    """
    files = found.files.get(item_id, ())
    if not files:
        return _reason(f"missing: {found.folder.url} has no {item_id}.png")
    if len(files) > 1:
        return _reason(f"two_images: {' and '.join(files[:2])} are both for this item")
    try:
        with found.folder.open(files[0]) as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"over {MAX_FILE_BYTES} bytes")
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are over {MAX_PIXELS}")
            image.load()
            width, height = image.size
    except Image.UnidentifiedImageError:  # its text would name an address in memory
        return _reason(f"undecodable: {files[0]} is no PNG, JPEG or WebP")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return _reason(f"undecodable: {files[0]} ({' '.join(str(error).split())[:200]})")
    change = width * size[1] / (height * size[0])
    if settings.other_shapes == "unscored" and abs(change - 1) > MAX_SHAPE_CHANGE:
        return _reason(f"wrong_size: {files[0]} has {width}x{height} pixels, its source {size[0]}x{size[1]}")
    return {"image": data, "reason": None}


def _reason(text: str) -> dict[str, Any]:
    return {"image": None, "reason": text}
