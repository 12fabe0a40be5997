"""Clips as video files: read frame by frame, and written without loss. PyAV is imported where it is needed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import BinaryIO

from PIL import Image

CONTAINERS = {".mp4": "mp4", ".mov": "mp4", ".webm": "webm"}  # FFmpeg's reader for a file's ending, and no other
MAX_RATE = 240


class UnreadableVideo(Exception):
    """No video that can be decoded; the text says why."""


@dataclasses.dataclass(frozen=True)
class Video:
    """An open video: its frames come one at a time, as RGB pictures. `rate`: frames a second; None: not known."""

    size: tuple[int, int]
    rate: Fraction | None
    frames: Iterator[Image.Image]


@contextlib.contextmanager
def open_video(stream: BinaryIO, suffix: str) -> Iterator[Video]:
    """A video file by its ending, one of CONTAINERS.

    Raises UnreadableVideo, also from within the block, where the file or its next frame can't be decoded.
    """
    import av

    if not stream.read(1):
        raise UnreadableVideo("the file is empty")
    stream.seek(0)
    try:
        with av.open(stream, format=CONTAINERS[suffix]) as container:
            if not container.streams.video:
                raise UnreadableVideo("no video in the file")
            video = container.streams.video[0]
            if video.codec_context is None:
                raise UnreadableVideo("no decoder for it")
            if not video.width or not video.height:
                raise UnreadableVideo("its size isn't known")
            rate = video.average_rate if video.average_rate and 0 < video.average_rate <= MAX_RATE else None
            frames = (frame.to_image() for frame in container.decode(video))
            yield Video((video.width, video.height), rate, frames)
    except av.FFmpegError as error:
        raise UnreadableVideo(error.strerror or type(error).__name__) from None


def write_video(frames: Sequence[Image.Image], seconds: float) -> bytes:
    """The frames as an MP4 file that lasts so long: H.264 of RGB without loss, which FFmpeg reads, but few browsers."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(len(frames)) / Fraction(seconds).limit_denominator(1000)
        stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return buffer.getvalue()
