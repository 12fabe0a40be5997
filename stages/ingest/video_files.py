"""Where the videos of a folder are: .mp4 files, and members of plain tars, which are read in place."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import posixpath
from collections.abc import Iterator
from typing import BinaryIO

from cluster.errors import UserError
from cluster.folder import Folder
from stages.ingest.sources import PACKED_TAR_SUFFIXES, tar_samples


@dataclasses.dataclass(frozen=True)
class Video:
    """Where a video's bytes are: a file (no size), or a part of a tar."""

    file: str
    offset: int = 0
    size: int | None = None


def list_videos(folder: Folder) -> dict[str, Video]:
    """The .mp4 files of a folder and of the plain tars in it, by their names without folder and ending.

    Raises UserError for a tar that can't be read, and for a packed archive, in whose place nothing can be read.
    """
    videos: dict[str, Video] = {}
    for name in folder.list(recursive=True):
        if name.lower().endswith(".mp4"):
            videos.setdefault(video_name(name), Video(name))
        elif name.lower().endswith((*PACKED_TAR_SUFFIXES, ".zip")):
            raise UserError(
                f"ingest_videos: {folder.path(name)} is packed, so its videos can't be read in place. Unpack it to a "
                "plain .tar or a folder first (for example gunzip FILE.tar.gz), or take it out."
            )
        elif name.lower().endswith(".tar"):
            for members in tar_samples(folder, name).values():
                for suffix, (member, offset, size) in members.items():
                    if suffix.endswith(".mp4"):
                        videos.setdefault(video_name(member), Video(name, offset, size))
    return videos


def video_name(name: str) -> str:
    """By which a caption's id finds its video: no folder, no ending."""
    base = posixpath.basename(name)
    return base[: -len(".mp4")] if base.lower().endswith(".mp4") else base


@contextlib.contextmanager
def open_video(folder: Folder, video: Video) -> Iterator[BinaryIO]:
    """The video's bytes to be read in place, never copied as a whole."""
    with folder.open(video.file) as stream:
        yield stream if video.size is None else io.BufferedReader(_Part(stream, video.offset, video.size))


class _Part(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, stream: BinaryIO, offset: int, size: int):
        self._stream, self._offset, self._size, self._position = stream, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer) -> int:
        self._stream.seek(self._offset + self._position)
        data = self._stream.read(max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
