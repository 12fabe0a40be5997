"""Frames of a video file at given times, by PyAV, and clips as animated WebP."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

from PIL import Image, ImageOps

from cluster.errors import one_line

MAX_DECODED_FRAMES = 20_000  # of one video, on the way to the last frame that is wanted
CONTAINER = "mp4"  # FFmpeg's reader of MP4 and MOV, and no other, whatever a file seems to be


class UnusableVideo(Exception):
    """This file can't become a clip; the text is the dead letter's reason."""


def sample_frames(
    stream: BinaryIO, num_frames: int, frames_per_second: float, size: tuple[int, int], max_pixels: int
) -> list[Image.Image]:
    """What a video shows at `num_frames` times, `1 / frames_per_second` seconds apart, from its first frame on.

    At each time it is the frame with the latest timestamp that isn't after it, whatever the video's own rate; frames
    are neither blended nor made up. Each is cropped at the centre and scaled to `size` (width, height). Frames are
    decoded one after the other, and only those that are sampled are kept.

    Raises:
        UnusableVideo: no MP4, no video in it, broken, too large, or shorter than the clip.
    """
    import av

    try:
        with av.open(stream, format=CONTAINER) as container:
            if not container.streams.video:
                raise UnusableVideo("unreadable: no video in the file")
            video = container.streams.video[0]
            if video.codec_context is None:
                raise UnusableVideo("unreadable: no decoder for it")
            if video.width * video.height > max_pixels:
                raise UnusableVideo(f"too large: {video.width}x{video.height} pixels, over max_pixels={max_pixels}")
            if not video.width or not video.average_rate:
                raise UnusableVideo("unreadable: neither size nor rate is known")
            return _at_times(container, video, num_frames, frames_per_second, size)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnusableVideo(f"corrupt: {one_line(error, 200)}") from None


def _at_times(container, video, num_frames: int, frames_per_second: float, size: tuple[int, int]) -> list[Image.Image]:
    step, frame_seconds = 1 / frames_per_second, float(1 / video.average_rate)
    frames: list[Image.Image] = []
    shown: Image.Image | None = None
    last, start = None, 0.0
    for number, frame in enumerate(container.decode(video)):
        if number >= MAX_DECODED_FRAMES:
            raise UnusableVideo(f"too large: over {MAX_DECODED_FRAMES} frames until {len(frames) * step:.1f} s")
        time = number * frame_seconds if frame.time is None else frame.time
        start = time if last is None else start
        while last is not None and len(frames) < num_frames and len(frames) * step < time - start - 1e-6:
            shown = shown or ImageOps.fit(last.to_image(), size, Image.Resampling.LANCZOS)
            frames.append(shown)
        if len(frames) == num_frames:
            return frames
        last, shown, end = frame, None, time - start + frame_seconds
    while last is not None and len(frames) < num_frames and len(frames) * step < end - 1e-6:
        shown = shown or ImageOps.fit(last.to_image(), size, Image.Resampling.LANCZOS)
        frames.append(shown)
    if len(frames) < num_frames:
        raise UnusableVideo(f"too_short: it ends after {len(frames)} of {num_frames} frames, {step:.4f} s apart")
    return frames


def write_clip(frames: Sequence[Image.Image], frames_per_second: float) -> bytes:
    """The frames as a lossless animated WebP, the form of clips in all tables; times are whole milliseconds."""
    edges = [round(1000 * index / frames_per_second) for index in range(len(frames) + 1)]
    durations = [after - before for before, after in zip(edges, edges[1:], strict=False)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0, lossless=True
    )
    return buffer.getvalue()
