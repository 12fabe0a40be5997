"""The data engines by the names of their stages: how each is configured, what it reads and what it asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cluster.artifacts import Artifact
from cluster.dag import Context
from stages.caption.asking import Asking, AskingConfig
from stages.caption.customization.stage import CustomizeConfig, ask_settings
from stages.caption.evolution.stage import EvolveConfig, ask_evolutions
from stages.caption.proposals.stage import ProposeConfig, ask_proposals
from stages.caption.stage import CaptionConfig, ask_captions
from stages.caption.video.prompts import VideoPromptsConfig, ask_clean_captions
from stages.caption.video.verify import VerifyClipsConfig, ask_about_clips


@dataclasses.dataclass(frozen=True)
class DataEngine:
    """need: the stage whose tables it reads. asks: what is asked about them. about: what that is, in a line."""

    config: type[AskingConfig]
    need: str
    asks: Callable[[Mapping[str, Artifact], Any, Context], Asking]
    about: str


ENGINES = {
    "caption": DataEngine(CaptionConfig, "ingest", ask_captions, "one edit of a picture"),
    "evolve": DataEngine(EvolveConfig, "pairs", ask_evolutions, "how a picture becomes its edit"),
    "video_prompts": DataEngine(
        VideoPromptsConfig, "video_captions", ask_clean_captions, "a video's caption without its style"
    ),
    "verify_clips": DataEngine(VerifyClipsConfig, "clips", ask_about_clips, "whether a clip has its style"),
    "customize": DataEngine(CustomizeConfig, "ingest", ask_settings, "settings for a picture's one object"),
    "propose": DataEngine(ProposeConfig, "ingest", ask_proposals, "four edits of a picture, and which are valid"),
}
