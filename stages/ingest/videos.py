"""The ingest_videos stage: captions of published videos, as video_prompts reads them (ByG, appendix D.2), and clips of
the videos themselves where they are wanted.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cluster.artifacts import Artifact
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.shards import name_shards, run_shards
from stages.ingest.csv_rows import BadRows, csv_header, csv_rows
from stages.ingest.dead_letters import count_reasons, write_letters
from stages.ingest.frames import UnusableVideo, sample_frames, write_clip
from stages.ingest.sources import is_plain, parquet_rows
from stages.ingest.video_files import Video, list_videos, open_video, video_name

VideoLayout = Literal["videoufo", "ultravideo", "captions"]
# names of columns, the first that is there counts; capitals, spaces and signs play no part
ID_COLUMNS: dict[VideoLayout, tuple[str, ...]] = {
    "videoufo": ("id", "clip_id", "video_id"),  # WenhaoWang/VideoUFO, VideoUFO.csv
    "ultravideo": ("clip_id", "id", "video_id"),  # APRIL-AIGC/UltraVideo, short.csv and long.csv
    "captions": ("caption_id",),  # as the video_captions stage writes them
}
CAPTION_COLUMNS: dict[VideoLayout, tuple[str, ...]] = {
    "videoufo": ("detailed_caption", "caption_detailed", "caption"),
    "ultravideo": ("summarized_description", "detailed_description", "caption"),
    "captions": ("caption",),
}
MAX_CAPTION_CHARACTERS = 20_000
LETTERS_SCHEMA = pa.schema([(name, pa.string()) for name in ("caption_id", "source", "outcome", "reason")])
CLIPS_SCHEMA = pa.schema(
    [
        ("caption_id", pa.string()),
        ("clip", pa.binary()),
        ("num_frames", pa.int32()),
        ("frames_per_second", pa.float64()),
    ]
)


class IngestVideosConfig(StageConfig):
    """Which captions, how many, and whether clips are made of their videos."""

    source: str = Field("", description="Folder, path or URL. Empty: captions are those of the scene world.")
    layout: VideoLayout = "videoufo"
    id_column: str = Field("", description="Another name than the layout's.")
    caption_column: str = Field("", description="Another name than the layout's.")
    num_captions: int = Field(400, ge=1, description="Drawn by a hash of their ids.")
    clips: bool = Field(False, description="Make clips of the videos; only captions whose video is there are drawn.")
    num_frames: int = Field(81, ge=1, le=1000, description="Of a clip.")
    frames_per_second: float = Field(16.0, gt=0, le=240, description="Of a clip, from the video's first frame on.")
    height: int = Field(320, ge=16, le=2160, description="Pixels; the video is cropped at its centre.")
    width: int = Field(576, ge=16, le=3840)
    max_pixels: int = Field(
        34_000_000, ge=1, description="Of a frame; larger videos are dead letters. 8K has 33 million."
    )
    seed: int = Field(0, ge=0)
    shard_size: int = Field(16, ge=1, description="Clips in one shard.")
    num_workers: int = runtime(2, ge=1)


def ingest_videos_sources(config: IngestVideosConfig) -> Sequence[str]:
    """The outside files whose content belongs to the stage's fingerprint."""
    return [config.source] if config.source else []


@dataclasses.dataclass(frozen=True)
class MakeClips:
    """Samples the clips of one shard, and writes them and the dead letters."""

    folder: Folder
    shards: Mapping[str, Mapping[str, Video]]
    config: IngestVideosConfig
    out: Folder

    def __call__(self, shard: str) -> None:
        config, rows, letters = self.config, [], []
        for caption_id, video in self.shards[shard].items():
            try:
                with open_video(self.folder, video) as stream:
                    frames = sample_frames(
                        stream, config.num_frames, config.frames_per_second, (config.width, config.height),
                        config.max_pixels,
                    )  # fmt: skip
                clip = write_clip(frames, config.frames_per_second)
                rows.append((caption_id, clip, config.num_frames, config.frames_per_second))
            except UnusableVideo as error:
                letters.append(_letter(caption_id, video.file, str(error)))
        write_letters(self.out, shard.replace("clips/", "clips-"), letters, LETTERS_SCHEMA)
        rows = [dict(zip(CLIPS_SCHEMA.names, row, strict=True)) for row in rows]
        self.out.write_table(shard, pa.Table.from_pylist(rows, CLIPS_SCHEMA))


def ingest_videos(inputs: Mapping[str, Artifact], config: IngestVideosConfig, context: Context) -> None:
    """Writes `captions.parquet` (`caption_id`, `caption`), with `clips` also `clips/`, and `dead_letters/`.

    Captions are drawn by a hash of their ids, from all CSV and Parquet files of the folder with the layout's columns;
    of several with one id the first counts. A video is an .mp4 file, or one in a plain tar, that is named by the id. A
    caption whose video turns out bad stays.

    Raises:
        UserError: no source is set or isn't there, no file has the columns, one is broken, or no caption is left.
    """
    if not config.source:
        raise UserError("ingest_videos: no source is set. Name a folder with --set ingest_videos.source=PATH.")
    folder = Folder(config.source)
    videos = list_videos(folder) if config.clips else None
    captions, bad, counts = _draw(folder, videos, config, context)
    letters = [_letter(None, source, reason) for source, reason in bad.reasons.items()]
    write_letters(context.out, "rows.parquet", letters, LETTERS_SCHEMA)
    if not captions:
        without = f", of {counts['num_rows_without_video']} the video isn't there" if videos is not None else ""
        raise UserError(
            f"ingest_videos: none of the {counts['num_rows']} rows in {folder.url} gives a caption ({len(letters)} "
            f"can't be read{without}). The reasons stand in {context.out.path('dead_letters')}."
        )
    if videos is not None:
        shards = name_shards(list(captions), config.shard_size, prefix="clips/")
        places = {name: {key: videos[video_name(key)] for key in keys} for name, keys in shards.items()}
        work = MakeClips(folder, places, config, context.out)
        run_shards(
            list(shards), work, context=context, num_workers=config.num_workers, total=len(captions), unit="clips"
        )
    table = pa.table({"caption_id": list(captions), "caption": list(captions.values())})
    context.out.write_table("captions.parquet", table)
    context.set_rows(len(captions))
    reasons = count_reasons(context.out)
    context.set_figures(
        {
            "num_captions": len(captions),
            "num_clips": len(captions) - reasons.total() + len(letters) if videos is not None else 0,
            **{name: counts[name] for name in ("num_rows", "num_rows_repeated", "num_rows_without_video")},
            "num_dead_letters": reasons.total(),
            "dead_letter_reasons": dict(sorted(reasons.items())),
        }
    )


def _draw(
    folder: Folder, videos: Mapping[str, Video] | None, config: IngestVideosConfig, context: Context
) -> tuple[dict[str, str], BadRows, collections.Counter[str]]:
    """The captions with the smallest hashes, sorted by id; memory holds twice as many at most."""
    bad, counts = BadRows(), collections.Counter[str]()
    drawn: dict[str, tuple[str, str]] = {}
    bound = "~"  # after every hash
    for name, number, key, caption in _rows(folder, config, bad):
        if counts["num_rows"] % 10_000 == 0:
            context.check()
        counts["num_rows"] += 1
        reason = _problem(key, caption)
        if reason:
            bad.add(folder, name, number, reason)
            continue
        if videos is not None and video_name(key) not in videos:
            counts["num_rows_without_video"] += 1
            continue
        place = hashlib.sha256(f"{config.seed}:{key}".encode()).hexdigest()
        if key in drawn:
            counts["num_rows_repeated"] += 1
        elif place < bound:
            drawn[key] = (place, " ".join(caption.split()))
            if len(drawn) >= 2 * config.num_captions:
                drawn, bound = _first(drawn, config.num_captions)
    drawn, _ = _first(drawn, config.num_captions)
    return {key: drawn[key][1] for key in sorted(drawn)}, bad, counts


def _first(drawn: dict[str, tuple[str, str]], num: int) -> tuple[dict[str, tuple[str, str]], str]:
    kept = sorted(drawn.items(), key=lambda item: item[1][0])[:num]
    return dict(kept), kept[-1][1][0] if kept else "~"


def _problem(key: Any, caption: Any) -> str:
    if key in (None, ""):
        return "empty_field: the row has no id"
    if not isinstance(caption, str) or not caption.strip():
        return "empty_field: the row has no caption"
    if len(caption) > MAX_CAPTION_CHARACTERS:
        return f"too large: a caption of over {MAX_CAPTION_CHARACTERS} characters"
    return ""


def _rows(folder: Folder, config: IngestVideosConfig, bad: BadRows) -> Iterator[tuple[str, int, str, Any]]:
    """File, row, id and caption of every row of every table with the layout's columns."""
    seen: dict[str, list[str]] = {}
    used = False
    for name in folder.list(recursive=True):
        if name.lower().endswith(".csv"):
            columns = csv_header(folder, name)
        elif name.lower().endswith(".parquet"):
            columns = _parquet_columns(folder, name)
        else:
            continue
        seen[name] = columns
        key = _column(columns, config.id_column, ID_COLUMNS[config.layout])
        text = _column(columns, config.caption_column, CAPTION_COLUMNS[config.layout])
        if key is None or text is None:
            continue
        used = True
        if name.lower().endswith(".csv"):
            rows: Iterator[tuple[int, dict[str, Any]]] = csv_rows(folder, name, bad)
        else:
            rows = parquet_rows(folder, name, None, [key, text])
        for number, row in rows:
            value = row[key]
            yield name, number, "" if value is None else str(value).strip(), row[text]
    if not used:
        wanted = f"{config.id_column or ID_COLUMNS[config.layout][0]} and "
        wanted += config.caption_column or CAPTION_COLUMNS[config.layout][0]
        found = "; ".join(f"{name}: {', '.join(columns)[:300]}" for name, columns in list(seen.items())[:5])
        raise UserError(
            f"ingest_videos: no CSV or Parquet file in {folder.url} has columns for ids and captions (layout "
            f"{config.layout}: {wanted}). There is {found or 'no such file'}. Name them with --set "
            "ingest_videos.id_column=NAME ingest_videos.caption_column=NAME."
        )


def _parquet_columns(folder: Folder, name: str) -> list[str]:
    try:
        with folder.open(name) as stream:
            schema = pq.ParquetFile(stream).schema_arrow
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"ingest_videos: {folder.path(name)} is not a readable Parquet file ({error}). Download it again."
        ) from None
    return [field.name for field in schema if is_plain(field.type)]


def _column(columns: Sequence[str], named: str, known: Sequence[str]) -> str | None:
    if named:
        return named if named in columns else None
    plain = {re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_"): column for column in reversed(columns)}
    return next((plain[name] for name in known if name in plain), None)


def _letter(caption_id: str | None, source: str, reason: str) -> dict[str, Any]:
    return {"caption_id": caption_id, "source": source, "outcome": "failed", "reason": reason}
