"""Editors that ran elsewhere: a folder of what one made, in a benchmark's own output layout or by id."""

from __future__ import annotations

import collections
import dataclasses
import io
import posixpath
from collections.abc import Mapping, Sequence
from typing import Literal

from PIL import Image
from pydantic import Field

from cluster.config import StageConfig
from cluster.errors import UserError
from cluster.folder import Folder
from stages.edit.benchmark import MAX_PIXELS
from stages.train.backbones.video_files import CONTAINERS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
INSIDE = ("", "fullset/")  # GEdit-Bench's layout has everything below fullset/
MAX_SHAPE_CHANGE = 0.02  # of width / height: what rounding to a model's sizes can do
MAX_FILE_BYTES = 8 * MAX_PIXELS


class FolderSettings(StageConfig):
    """The pictures or clips that somebody else's editor made."""

    path: str = Field(
        description="Folder or URL with ITEM_ID.png, or GEdit-Bench's fullset/TASK/LANGUAGE/KEY.png; of clips "
        "ITEM_ID.mp4, or their frames as ITEM_ID/00000.png."
    )
    other_shapes: Literal["unscored", "resize"] = Field(
        "unscored", description="Of edits of another shape than the source's; resize: as the official scripts do."
    )


class Unusable(Exception):
    """There is no edit of an item that can be scored; the text is the reason."""


@dataclasses.dataclass(frozen=True)
class Found:
    """The files for each item (none: missing; several: nobody knows which is meant), and those for no item.

    A clip's frames that are files of a folder stand there as `FOLDER/`. `num_frames`: of a source; 1: pictures.
    """

    folder: Folder
    files: Mapping[str, tuple[str, ...]]
    unknown: Sequence[str]
    num_frames: int = 1

    @property
    def noun(self) -> str:
        """What the files are."""
        return "picture" if self.num_frames == 1 else "clip"


def find_edits(setting: str, settings: FolderSettings, item_ids: Sequence[str], num_frames: int = 1) -> Found:
    """Looks up by name what there is of each item: a picture, or with `num_frames` above 1 a clip.

    Raises UserError, naming the `setting` that has the path, if the folder has nothing of any item.
    """
    folder, wanted = Folder(settings.path), set(item_ids)
    files: dict[str, dict[str, None]] = collections.defaultdict(dict)
    unknown: dict[str, None] = {}
    for file in folder.list(recursive=True):
        stem, suffix = posixpath.splitext(file)
        if suffix.lower() not in (SUFFIXES if num_frames == 1 else (*SUFFIXES, *CONTAINERS)):
            continue
        if num_frames > 1 and suffix.lower() in SUFFIXES and "/" in file:  # a frame
            stem = posixpath.dirname(file)
            file = f"{stem}/"
        item_id = next((stem.removeprefix(start) for start in INSIDE if stem.removeprefix(start) in wanted), None)
        if item_id is not None:
            files[item_id][file] = None
        elif not stem.endswith("_SRCIMG"):  # GEdit-Bench has the sources beside the edits
            unknown[file] = None
    found = Found(folder, {item_id: tuple(names) for item_id, names in files.items()}, list(unknown), num_frames)
    if not files:
        other = f" There are others, such as {found.unknown[0]}: is it another benchmark's?" if unknown else ""
        raise UserError(
            f"{setting}: {folder.url} has no {found.noun} of any of the {len(wanted)} items, such as "
            f"{_usual_name(item_ids[0], num_frames)}.{other}"
        )
    return found


def only_file(found: Found, item_id: str) -> str:
    """The file of an item. Raises Unusable if there is none, or nobody knows which."""
    files = found.files.get(item_id, ())
    if not files:
        raise Unusable(f"missing: {found.folder.url} has no {_usual_name(item_id, found.num_frames)}")
    if len(files) > 1:
        kind = "two_images" if found.num_frames == 1 else "two_clips"
        raise Unusable(f"{kind}: {' and '.join(files[:2])} are both for this item")
    return files[0]


def read_picture(found: Found, settings: FolderSettings, item_id: str, size: tuple[int, int]) -> bytes:
    """The own bytes of the picture of an item whose source has the `size` (width, height).

    A picture of the source's shape and another size is fine: evaluation scales it. Raises Unusable.
    """
    file = only_file(found, item_id)
    data, image = load_picture(found.folder, file)
    check_shape(settings, file, image.size, size)
    return data


def load_picture(folder: Folder, file: str) -> tuple[bytes, Image.Image]:
    """A picture's bytes and, decoded, itself. Raises Unusable."""
    try:
        with folder.open(file) as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"over {MAX_FILE_BYTES} bytes")
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are over {MAX_PIXELS}")
            image.load()
            return data, image
    except Image.UnidentifiedImageError:  # its text would name an address in memory
        raise Unusable(f"undecodable: {file} is no PNG, JPEG or WebP") from None
    except MemoryError:
        raise
    except Exception as error:  # a broken file can fail anywhere in a decoder, with any exception
        raise Unusable(f"undecodable: {file} ({' '.join(str(error).split())[:200]})") from None


def check_shape(settings: FolderSettings, file: str, size: tuple[int, int], source: tuple[int, int]) -> None:
    """Raises Unusable if the edit's width / height isn't its source's, and that matters."""
    change = size[0] * source[1] / (size[1] * source[0])
    if settings.other_shapes == "unscored" and abs(change - 1) > MAX_SHAPE_CHANGE:
        raise Unusable(f"wrong_size: {file} has {size[0]}x{size[1]} pixels, its source {source[0]}x{source[1]}")


def _usual_name(item_id: str, num_frames: int) -> str:
    return f"{item_id}.{'png' if num_frames == 1 else 'mp4'}"
