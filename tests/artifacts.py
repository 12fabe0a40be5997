"""Finished artifacts as inputs of one stage's function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.artifacts import Artifact, commit
from cluster.folder import Folder


def committed(folder: Folder, stage: str, config: Mapping[str, Any] | None = None) -> Artifact:
    """The folder as a finished artifact of `stage`."""
    manifest = commit(
        folder, stage=stage, version="1", fingerprint="f" * 16, config=dict(config or {}), identity={}, parents={},
        run_id="r", code_version="test",
    )  # fmt: skip
    return Artifact(stage, "f" * 16, folder, manifest)
