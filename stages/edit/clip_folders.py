"""The clips that somebody else's editor made: video files, or folders of frames."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence

from PIL import Image

from stages.edit.benchmark import MAX_PIXELS
from stages.edit.folders import SUFFIXES, FolderSettings, Found, Unusable, check_shape, load_picture, only_file
from stages.train.backbones.video_files import UnreadableVideo, open_video

MAX_FRAMES = 20_000  # that are counted


def read_clip_edit(
    found: Found, settings: FolderSettings, item_id: str, size: tuple[int, int]
) -> tuple[list[Image.Image], float | None]:
    """The frames of an item's clip in its source's `size` (width, height), and its seconds (None: it doesn't say).

    Frames are decoded one by one and scaled to the source's size, as evaluation does with pictures. Raises Unusable,
    also where the clip hasn't as many frames as its source.
    """
    file = only_file(found, item_id)
    if file.endswith("/"):
        frames, num_frames, rate = *_frames_of(_pictures(found, file), file, found, settings, size), None
    else:
        try:
            with found.folder.open(file) as stream, open_video(stream, posixpath.splitext(file)[1].lower()) as video:
                rate = video.rate
                if video.size[0] * video.size[1] > MAX_PIXELS:
                    raise ValueError(f"{video.size[0]}x{video.size[1]} pixels are over {MAX_PIXELS}")
                frames, num_frames = _frames_of(video.frames, file, found, settings, size)
        except (UnreadableVideo, OSError, ValueError) as error:
            raise Unusable(f"undecodable: {file} ({' '.join(str(error).split())[:200]})") from None
    if num_frames != found.num_frames:
        raise Unusable(f"wrong_length: {file} has {num_frames} frames, its source {found.num_frames}")
    return frames, float(num_frames / rate) if rate else None


def _frames_of(
    images: Iterator[Image.Image], file: str, found: Found, settings: FolderSettings, size: tuple[int, int]
) -> tuple[list[Image.Image], int]:
    """As many of the frames as the source has, scaled to its size, and how many there are."""
    frames: list[Image.Image] = []
    num_frames, first = 0, None
    for image in images:
        num_frames, first = num_frames + 1, first or image.size
        if num_frames > MAX_FRAMES:
            raise Unusable(f"wrong_length: {file} has over {MAX_FRAMES} frames, its source {found.num_frames}")
        if image.size != first:
            raise Unusable(
                f"wrong_size: {file} has frames of {first[0]}x{first[1]} and of {image.width}x{image.height} pixels"
            )
        if num_frames == 1:
            check_shape(settings, file, image.size, size)
        if num_frames <= found.num_frames:
            image = image.convert("RGB")
            frames.append(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))
    return frames, num_frames


def _pictures(found: Found, place: str) -> Iterator[Image.Image]:
    """The pictures of a folder in the order of the numbers that their names end with."""
    names = [name for name in found.folder.sub(place).list() if name.lower().endswith(SUFFIXES)]
    for name in _in_order(names, place):
        yield load_picture(found.folder, f"{place}{name}")[1]


def _in_order(names: Sequence[str], place: str) -> list[str]:
    numbers = {}
    for name in names:
        match = re.search(r"(\d+)$", posixpath.splitext(name)[0])
        if match is None or int(match[1]) in numbers:
            reason = "has no number at its end" if match is None else f"has the number of {numbers[int(match[1])]}, too"
            raise Unusable(f"undecodable: {place}{name} {reason}, so the order of the frames isn't known")
        numbers[int(match[1])] = name
    return [numbers[number] for number in sorted(numbers)]
