"""Builds ByG's two benchmarks, which aren't published, from pictures and videos of one's own.

    python -m stages.ingest.benchmarks.build long_tail --photos DIR --stylized DIR --out DIR
    python -m stages.ingest.benchmarks.build video_style --real DIR --generated DIR --out DIR

--photos is a folder of photographs, --stylized has a folder of pictures for each of six styles, --real and --generated
a folder of MP4 files for each style of video. NAME.txt beside a file may say what it shows, without the style. What
is drawn is copied to --out, with items.csv: ingest_benchmark.layout long_tail, ingest_video_benchmark.layout
video_style.
"""

from __future__ import annotations

import argparse
import csv
import io
import posixpath
from collections.abc import Iterable, Mapping, Sequence

from cluster.errors import UserError, exit_code
from cluster.folder import Folder
from stages.ingest.benchmarks.recipes import Row, check_names, long_tail_rows, video_style_rows
from stages.ingest.benchmarks.table import OPTIONAL, TABLE, TEXTS
from stages.ingest.sources import IMAGE_SUFFIXES

MAX_CAPTION_BYTES = 64 * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where the files can't make the set."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    styles = commands.add_parser("long_tail")
    styles.add_argument("--photos", required=True)
    styles.add_argument("--stylized", required=True)
    styles.add_argument("--num-images", type=int, default=335)
    styles.add_argument("--num-edits", type=int, default=487)
    videos = commands.add_parser("video_style")
    videos.add_argument("--real", required=True)
    videos.add_argument("--generated", required=True)
    for command in (styles, videos):
        command.add_argument("--out", required=True)
        command.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    return exit_code(lambda: _long_tail(arguments) if arguments.command == "long_tail" else _video_style(arguments))


def _long_tail(arguments: argparse.Namespace) -> None:
    photos, stylized = Folder(arguments.photos), Folder(arguments.stylized)
    for name, folder in (("photos", photos), ("stylized", stylized)):
        if not _files(folder, IMAGE_SUFFIXES):
            raise UserError(f"--{name}: {folder.url} holds no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    chosen = _files(photos, IMAGE_SUFFIXES)
    places = {f"photos/{name}": (photos, name) for name in chosen}
    by_style = {}
    for style in stylized.subfolders():
        names = [f"{style}/{name}" for name in _files(stylized.sub(style), IMAGE_SUFFIXES)]
        places |= {f"stylized/{name}": (stylized, name) for name in names}
        by_style[style] = [f"stylized/{name}" for name in names]
    rows = long_tail_rows(
        [f"photos/{name}" for name in chosen],
        by_style,
        _captions(places),
        num_images=arguments.num_images,
        num_edits=arguments.num_edits,
        seed=arguments.seed,
    )
    _write(Folder(arguments.out), rows, places, "image")


def _video_style(arguments: argparse.Namespace) -> None:
    places, sorted_videos = {}, {}
    for origin in ("real", "generated"):
        folder = Folder(getattr(arguments, origin))
        if not _files(folder, (".mp4",)):
            raise UserError(f"--{origin}: {folder.url} holds no videos (.mp4).")
        sorted_videos[origin] = {}
        for style in folder.subfolders():
            names = [f"{style}/{name}" for name in _files(folder.sub(style), (".mp4",))]
            places |= {f"{origin}/{name}": (folder, name) for name in names}
            sorted_videos[origin][style] = [f"{origin}/{name}" for name in names]
    rows = video_style_rows(sorted_videos["real"], sorted_videos["generated"], _captions(places), seed=arguments.seed)
    _write(Folder(arguments.out), rows, places, "video")


def _files(folder: Folder, suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in folder.list(recursive=True) if name.lower().endswith(suffixes)]


def _captions(places: Mapping[str, tuple[Folder, str]]) -> dict[str, str]:
    """What NAME.txt says, by the name of its picture. Raises UserError if one isn't UTF-8 or is too long."""
    captions = {}
    for name, (folder, file) in places.items():
        text = f"{posixpath.splitext(file)[0]}.txt"
        if folder.exists(text):
            with folder.open(text) as stream:
                data = stream.read(MAX_CAPTION_BYTES + 1)
            if len(data) > MAX_CAPTION_BYTES:
                raise UserError(f"{folder.path(text)} has over {MAX_CAPTION_BYTES} bytes. Is it a caption?")
            try:
                captions[name] = " ".join(data.decode("utf-8").split())
            except UnicodeDecodeError as error:
                raise UserError(f"{folder.path(text)} isn't UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    return captions


def _write(out: Folder, rows: Sequence[Row], places: Mapping[str, tuple[Folder, str]], column: str) -> None:
    """Copies the files under short names, then writes the table. Raises UserError if one is there already."""
    if out.exists(TABLE):
        raise UserError(f"{out.path(TABLE)} is there already. Name another folder with --out.")
    check_names(rows)
    names = {}
    for row in rows:
        if row["file"] not in names:
            folder, file = places[row["file"]]
            suffix = posixpath.splitext(file)[1].lower()
            names[row["file"]] = f"{column}s/{len(names):04d}{suffix}"
            out.write_bytes(names[row["file"]], folder.read_bytes(file), durable=False)
    header = [*TEXTS, column, *OPTIONAL, *(["origin"] if column == "video" else [])]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {column: names[row["file"]]} for row in rows)
    out.write_text(TABLE, buffer.getvalue())
    print(f"{out.path(TABLE)}: {len(rows)} edits of {len(names)} {column}s; {_counts(rows)}")


def _counts(rows: Iterable[Row]) -> str:
    types = [row["edit_type"] for row in rows]
    return ", ".join(f"{name} {types.count(name)}" for name in dict.fromkeys(types))


if __name__ == "__main__":
    raise SystemExit(main())
