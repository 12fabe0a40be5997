"""ImgEdit-Bench Basic: `basic_edit.json` of its repository, and the pictures of its archive under `singleturn/`."""

from __future__ import annotations

import json
import posixpath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import UserError
from cluster.folder import Folder
from stages.ingest.benchmarks.listing import Listed, Listing, plain_path, published

EDIT_JSON = "basic_edit.json"
ROOTS = ("singleturn", "Benchmark/singleturn", "")
RENAMED = {"alter": "adjust"}  # so called in the first version of the file
MAX_JSON_BYTES = 64 << 20


class ImgEditSettings(BaseModel):
    """Where the list of edits is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    edit_json: str = Field("", description=f"Another place of {EDIT_JSON} than the source's folder: a path or URL.")


def list_imgedit(folder: Folder, settings: ImgEditSettings) -> Listing:
    """The items of `basic_edit.json` = `{key: {id, prompt, edit_type}}`; an id is its key.

    Raises UserError: there is no such file or several, it isn't JSON of that form, or there is no folder of pictures.
    """
    place, edits = _read_edits(folder, settings.edit_json)
    entries = {key: _entry(place, key, value) for key, value in edits.items()}
    firsts = {entry["id"].split("/")[0] for entry in entries.values()}
    root = next((root for root in ROOTS if firsts & set(folder.sub(root).subfolders())), None)
    if root is None:
        raise UserError(
            f"{folder.url} has no folder {', '.join(sorted(firsts)[:4])} of pictures, nor has singleturn/. Name the "
            "folder that the archive Benchmark.tar was unpacked to."
        )
    items = []
    for key, entry in entries.items():
        edit_type = RENAMED.get(entry["edit_type"], entry["edit_type"])
        file = posixpath.join(root, entry["id"])
        metadata = {"benchmark": "imgedit", "key": key, "id": entry["id"]}
        items.append(Listed(key, edit_type, entry["prompt"], file, metadata=metadata))
    return Listing(folder, items, published("imgedit"), num_sources=len({item.file for item in items}))


def _read_edits(folder: Folder, edit_json: str) -> tuple[str, dict[str, Any]]:
    if edit_json:
        parent, name = posixpath.split(edit_json)
        folder, names = Folder(parent or "."), [name]
    else:
        names = [name for name in folder.list(".json", recursive=True) if posixpath.basename(name) == EDIT_JSON]
    found = [name for name in names if folder.exists(name)]
    if len(found) != 1:
        raise UserError(
            f"{edit_json or folder.url}: there {'is no' if not found else 'are several'} {EDIT_JSON}"
            f"{': ' + ', '.join(found) if found else ''}. It is in the repository of ImgEdit, Benchmark/Basic/; put it "
            "beside the pictures, or name it with --set ingest_benchmark.imgedit.edit_json=PATH."
        )
    place = folder.path(found[0])
    try:
        with folder.open(found[0]) as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"over {MAX_JSON_BYTES} bytes")
        value = json.loads(data, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} can't be read as JSON ({' '.join(str(error).split())[:200]}). Get it anew.") from None
    if not isinstance(value, dict) or not value:
        raise UserError(f"{place} isn't of the form {{key: {{id, prompt, edit_type}}}}. Is it {EDIT_JSON}?")
    return place, value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return value


def _entry(place: str, key: str, value: Any) -> dict[str, str]:
    fields = ("id", "prompt", "edit_type")
    texts = [value.get(field) for field in fields] if isinstance(value, dict) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{place}: entry {key!r} lacks one of {', '.join(fields)}. Get the file anew.")
    if not plain_path(value["id"]) or not plain_path(key) or "/" in key:
        raise UserError(f"{place}: entry {key!r} names the picture {value['id']!r}, which is no path within a folder.")
    return value
