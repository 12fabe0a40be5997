"""An artifact: the folder `<root>/<stage>/<fingerprint>/` and its manifest, which is written last and makes
it final.
"""

import functools
import hashlib
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.folder import Folder, cache_path

MANIFEST = "manifest.json"


class FileEntry(BaseModel):
    size: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact is and how it came to be. `created` is in seconds since the epoch, `seconds` the time
    it took.
    """

    # Manifests outlive the code that wrote them: a field that a later version adds must not make an artifact
    # unreadable.
    model_config = ConfigDict(extra="ignore", protected_namespaces=(), populate_by_name=True)

    stage: str
    version: str
    fingerprint: str
    files: dict[str, FileEntry]
    table_schemas: dict[str, dict[str, str]] = Field({}, alias="schema")
    rows: int | None = None
    config: dict[str, Any]
    identity: dict[str, Any]
    sources: dict[str, str] = {}
    parents: dict[str, str]
    code_version: str
    run_id: str
    mlflow_run_id: str | None = None
    created: float
    seconds: float = 0.0
    figures: dict[str, Any] = {}


@dataclass(frozen=True)
class Artifact:
    """A finished artifact, as a stage gets it from the stages that it needs."""

    stage: str
    fingerprint: str
    folder: Folder
    manifest: Manifest


def artifact_folder(root: Folder, stage: str, fingerprint: str) -> Folder:
    return root.sub(f"{stage}/{fingerprint}")


def scratch_path(root: Folder, stage: str, fingerprint: str) -> Path:
    """Where the making of an artifact keeps its local files: beside the root if that is local."""
    name = f"{stage}-{fingerprint}"
    if root.is_local:
        return Path(root.url) / ".scratch" / name
    key = hashlib.sha256(root.url.encode()).hexdigest()[:12]
    return cache_path() / "scratch" / key / name


def read_artifact(root: Folder, stage: str, fingerprint: str) -> Artifact | None:
    """The artifact if its manifest is there, else None. Its files aren't looked at: see `damage`."""
    folder = artifact_folder(root, stage, fingerprint)
    try:
        manifest = Manifest.model_validate(folder.read_json(MANIFEST))
    except FileNotFoundError:
        return None
    except (
        ValidationError,
        ValueError,
    ):  # not written by this frame, or cut off by a broken disk: make it anew
        return None
    return Artifact(stage, fingerprint, folder, manifest)


def damage(artifact: Artifact) -> str | None:
    """What is wrong with an artifact's files (one is missing or of another size), or None."""
    sizes = artifact.folder.sizes()
    for name, entry in artifact.manifest.files.items():
        if name not in sizes:
            return f"{name} is missing from the artifact"
        if sizes[name] != entry.size:
            return f"{name} of the artifact has {sizes[name]} bytes instead of {entry.size}"
    return None


def newest_manifest(root: Folder, stage: str) -> Manifest | None:
    """The manifest of the stage's artifact that was made last, to explain why another one is needed now."""
    folder = root.sub(stage)
    if folder.is_local:
        changed = {path.parent.name: path.stat().st_mtime for path in Path(folder.url).glob(f"*/{MANIFEST}")}
    else:
        paths = folder.fs.glob(folder.path(f"*/{MANIFEST}"))
        changed = {path.split("/")[-2]: folder.fs.modified(path).timestamp() for path in paths}
    newest: Manifest | None = None
    for fingerprint in sorted(changed, key=changed.__getitem__, reverse=True):
        # Stores give whole seconds only: among the last few the manifests themselves decide.
        if newest is not None and changed[fingerprint] < changed[newest.fingerprint] - 2:
            break
        artifact = read_artifact(root, stage, fingerprint)
        if artifact and (newest is None or artifact.manifest.created > newest.created):
            newest = artifact.manifest
    return newest


def commit(folder: Folder, **fields: Any) -> Manifest:
    """Hashes every file in the folder and writes the manifest: from here on the artifact is there and final.

    `fields` are the manifest's other fields. Row count: `rows` if given, else the sum over the Parquet files
    at the top of the folder, if there are any.
    """
    sizes = {name: size for name, size in folder.sizes().items() if name != MANIFEST}
    with ThreadPoolExecutor(max_workers=1 if folder.is_local else 16) as pool:
        hashes = list(pool.map(folder.sha256, sizes))
    files = {name: FileEntry(size=sizes[name], sha256=sha256) for name, sha256 in zip(sizes, hashes, strict=True)}
    schemas, counted = _read_tables(folder, [name for name in sizes if name.endswith(".parquet")])
    if fields.get("rows") is None:
        fields["rows"] = counted
    manifest = Manifest(files=files, table_schemas=schemas, created=time.time(), **fields)
    folder.write_json(MANIFEST, manifest.model_dump(mode="json", by_alias=True), sort_keys=False)
    return manifest


def _read_tables(folder: Folder, names: list[str]) -> tuple[dict[str, dict[str, str]], int | None]:
    """Schemas {folder within the artifact: {column: type}} and the rows of the tables at the top, or None."""
    if not names:
        return {}, None
    import pyarrow.parquet as pq

    schemas: dict[str, dict[str, str]] = {}
    rows = None
    for name in names:
        with folder.open(name) as file:
            parquet = pq.ParquetFile(file)
            place = name.rpartition("/")[0] or "."
            schemas.setdefault(place, {field.name: str(field.type) for field in parquet.schema_arrow})
            if place == ".":
                rows = (rows or 0) + parquet.metadata.num_rows
    return schemas, rows


@functools.cache
def code_version() -> str:
    """The project's commit, with `+changes` if files differ from it; `unknown` outside of a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def parent_fingerprints(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    return {name: artifact.fingerprint for name, artifact in inputs.items()}
