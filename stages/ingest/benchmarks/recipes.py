"""Which pictures and videos get which edits in ByG's own two benchmarks (section 5.1), as rows of `items.csv`."""

from __future__ import annotations

import collections
import hashlib
import posixpath
from collections.abc import Mapping, Sequence

from cluster.errors import UserError

STYLES = {
    "gta_v": "GTA V",
    "minecraft": "Minecraft",
    "american_comic": "American comic",
    "low_poly": "low-poly 3D",
    "voxel": "voxel",
    "lego": "Lego",
}  # of the long-tail set, each a folder's name and in words
PHOTOREALISTIC = "photorealistic"
VIDEO_STYLES = {"cartoon": "cartoon", PHOTOREALISTIC: PHOTOREALISTIC, "cgi": "3D-CGI"}
VIDEO_TARGETS = {
    "cartoon": (PHOTOREALISTIC,),
    PHOTOREALISTIC: ("cartoon",),
    "cgi": ("cartoon", PHOTOREALISTIC),
}
REAL_VIDEOS = {"cartoon": 25, PHOTOREALISTIC: 25, "cgi": 10}
GENERATED_VIDEOS = {"cartoon": 24, PHOTOREALISTIC: 25}
Row = dict[str, str]


def long_tail_rows(
    photos: Sequence[str],
    stylized: Mapping[str, Sequence[str]],
    captions: Mapping[str, str],
    *,
    num_images: int,
    num_edits: int,
    seed: int,
) -> list[Row]:
    """Every stylized picture is to become a photograph; the rest of the pictures are photographs, and the rest of the
    edits give these styles, as evenly as can be: the paper says how many there are in all, not how they are shared out.

    Args:
        photos: names of photorealistic pictures (the paper's are ImgEdit-Bench's), from which is drawn by a hash.
        stylized: names of pictures by style, made by a model of images (the paper's by Qwen).
        captions: what a picture shows, by name, its style left out; where there is none, the captions stay empty.

    Raises UserError if the pictures can't make these numbers.
    """
    if unknown := set(stylized) - set(STYLES):
        raise UserError(f"There is no style {sorted(unknown)[0]!r}; the folders are {', '.join(STYLES)}.")
    if empty := [style for style in STYLES if not stylized.get(style)]:
        raise UserError(f"There are no pictures in the style {empty[0]!r}; every style's folder needs some.")
    num_stylized = sum(len(names) for names in stylized.values())
    num_photos, num_to_style = num_images - num_stylized, num_edits - num_stylized
    if not 0 < num_photos <= num_to_style <= len(STYLES) * num_photos:
        raise UserError(
            f"With {num_stylized} stylized pictures, {num_images} pictures and {num_edits} edits leave {num_photos} "
            f"photographs and {num_to_style} edits of them; each photograph gets 1 to {len(STYLES)} styles. Give more "
            "or fewer stylized pictures, or other numbers with --num-images and --num-edits."
        )
    if len(photos) < num_photos:
        raise UserError(f"{num_photos} photographs are needed, and there are {len(photos)}.")
    rows = []
    chosen, styles = drawn(photos, num_photos, seed), list(STYLES)
    for number in range(num_to_style):
        # round after round over all photographs: each gets another style in each, and the styles take turns
        turn, place = divmod(number, num_photos)
        style, photo = styles[(place + turn) % len(styles)], chosen[place]
        words = STYLES[style]
        rows.append(
            _row(f"to_{style}/{_stem(photo)}", photo, f"to_{style}", f"Turn the image into {words} style")
            | {"reverse_instruction": "Turn the image into a photorealistic one"}
            | _captions(captions.get(photo), PHOTOREALISTIC, words)
        )
    for style, names in stylized.items():
        for name in names:
            rows.append(
                _row(f"from_{style}/{_stem(name)}", name, f"from_{style}", "Turn the image into a photorealistic one")
                | {"reverse_instruction": f"Turn the image into {STYLES[style]} style"}
                | _captions(captions.get(name), STYLES[style], PHOTOREALISTIC)
            )
    return rows


def video_style_rows(
    real: Mapping[str, Sequence[str]],
    generated: Mapping[str, Sequence[str]],
    captions: Mapping[str, str],
    *,
    num_real: Mapping[str, int] = REAL_VIDEOS,
    num_generated: Mapping[str, int] = GENERATED_VIDEOS,
    seed: int,
) -> list[Row]:
    """The edits of videos drawn from what a person has sorted by style: cartoons become photorealistic, photorealistic
    ones cartoons, and 3D-CGI, which training hasn't seen, both.

    Raises UserError if a style has too few videos.
    """
    rows = []
    for origin, videos, wanted in (("real", real, num_real), ("generated", generated, num_generated)):
        for style, num in wanted.items():
            names = videos.get(style, ())
            if len(names) < num:
                raise UserError(f"{num} {origin} videos of style {style!r} are needed, and there are {len(names)}.")
            for name in drawn(names, num, seed):
                for target in VIDEO_TARGETS[style]:
                    instruction = f"Turn the video to {VIDEO_STYLES[target]} style"
                    kind = f"{style}_to_{target}"
                    rows.append(
                        _row(f"{kind}/{origin}-{_stem(name)}", name, kind, instruction)
                        | {"reverse_instruction": f"Turn the video to {VIDEO_STYLES[style]} style", "origin": origin}
                        | _captions(captions.get(name), VIDEO_STYLES[style], VIDEO_STYLES[target])
                    )
    return rows


def drawn(names: Sequence[str], num: int, seed: int) -> list[str]:
    """So many of the names, by a hash: the same whatever their order, and fewer are the first of more."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())[:num]


def check_names(rows: Sequence[Row]) -> None:
    """Raises UserError where two pictures of one kind have the same name."""
    for item_id, count in collections.Counter(row["item_id"] for row in rows).items():
        if count > 1:
            raise UserError(f"{count} of the files would be item {item_id!r}. Give them different names.")


def _row(item_id: str, file: str, edit_type: str, instruction: str) -> Row:
    return {"item_id": item_id, "file": file, "edit_type": edit_type, "instruction": instruction}


def _captions(caption: str | None, source: str, target: str) -> Row:
    if not caption:
        return {"src_caption": "", "tgt_caption": ""}
    caption = caption.strip().rstrip(".")
    return {"src_caption": f"{caption}, {source} style", "tgt_caption": f"{caption}, {target} style"}


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name))[0]
