"""The encode_clips stage: the clips that were made, and found to have their style, in the form that ByG reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cluster.artifacts import Artifact
from cluster.config import runtime
from cluster.dag import Context
from cluster.errors import UserError, one_line
from cluster.folder import Folder
from stages.encode.rows import TEXT_FIELDS, Row, Rows
from stages.encode.stage import EncodeConfig, EncodeShard, cropped, run_encoding
from stages.train.backbones.clip_files import read_clip

if TYPE_CHECKING:
    from stages.train.backbones.pictures import Picture

CLIP_COLUMNS = ("caption_id", "clip", *TEXT_FIELDS)


class EncodeClipsConfig(EncodeConfig):
    """By which model, at which size and length."""

    model: str = Field("stages/starter/models/wan/t2v", description="The pipeline of Wan that is to be trained.")
    num_frames: int = Field(5, ge=2, description="Of a clip, 1 + 4 k; a longer or shorter one is sampled so.")
    live: Literal[False] = Field(False, description="Clips are always encoded before the training.")
    shard_size: int = Field(64, ge=1, description="Rows, or texts, in one shard.")
    batch_size: int = runtime(16, ge=1)


def encode_clips(inputs: Mapping[str, Artifact], config: EncodeClipsConfig, context: Context) -> None:
    """Encodes the clips of `clips` that `verify_clips` calls ok, as `source`, and their four texts.

    Writes `rows/` and `texts/` as `stages.train.data` defines them.

    Raises:
        UserError: no clip is ok or one can't be read, they don't fit the model or each other.
    """
    rows = clip_rows(inputs["clips"].folder, inputs["verify_clips"].folder)
    run_encoding(rows, config, context, EncodeClipsShard)


def clip_rows(clips: Folder, verified: Folder) -> Rows:
    """The clips whose check is ok, in their own order.

    Raises UserError for a check of a clip that isn't there.
    """
    ok = {
        row["caption_id"]
        for name in verified.tables_with(("caption_id", "outcome"))
        for row in verified.read_table(name, ["caption_id", "outcome"]).to_pylist()
        if row["outcome"] == "ok"
    }
    rows = []
    for file in clips.tables_with(CLIP_COLUMNS):
        for row in clips.read_table(file, ["caption_id", *TEXT_FIELDS]).to_pylist():
            key = row.pop("caption_id")
            if key in ok:
                ok.remove(key)
                rows.append(Row(key, file, key, row, {}))
    if ok:
        raise UserError(
            f"encode_clips: clip {min(ok)!r} (and {len(ok) - 1} more) was checked, but isn't in {clips.url}. "
            "Make both anew with --from clips."
        )
    return Rows(clips, "caption_id", {"source": "clip"}, rows)


@dataclasses.dataclass
class EncodeClipsShard(EncodeShard):
    """Encodes one shard of clips, or of texts."""

    @staticmethod
    def read(key: str, data: bytes | None, config: EncodeConfig) -> Picture:
        """The frames of a clip. Raises UserError, naming it, if it can't be read."""
        try:
            frames = read_clip(data, config.num_frames)
        except (OSError, ValueError, SyntaxError) as error:
            text = one_line(error, 200)
            raise UserError(f"encode_clips: clip {key!r} can't be read ({text}). Use --from clips.") from None
        return [cropped(frame, config.resolution) for frame in frames]
