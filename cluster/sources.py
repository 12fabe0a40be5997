"""Content hashes of the files that a pipeline starts from, remembered so that unchanged files aren't read
again.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.errors import RequestError
from cluster.folder import Folder, is_temporary

# A file changed within this time could change again without a new time stamp: its hash isn't remembered.
_RACY_SECONDS = 2.0


class SourceHashes:
    """Hashes sources; `cache` is a JSON file of {path: [size, mtime_ns or the store's checksum, sha256]}."""

    def __init__(self, cache: Path):
        self._cache = cache
        self._known: dict[str, list] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError):
            self._known = json.loads(cache.read_text(encoding="utf-8"))

    def digest(self, source: str) -> str:
        """The hash of a file, or of a folder's file names and contents, where it lies playing no part.

        Returns `<hash> (<number> files)`. Raises RequestError if there is nothing at `source`.
        """
        folder = Folder(source)
        try:
            entries = list(_local_entries(folder.url)) if folder.is_local else list(_remote_entries(folder))
        except OSError as error:
            raise RequestError(f"{source} can't be read: {error}") from None
        if not entries:
            raise RequestError(f"There is no file or folder {source}, or nothing is in it.")
        with ThreadPoolExecutor(max_workers=8) as pool:
            hashes = list(pool.map(lambda entry: self._hash(folder, *entry), entries))
        total = hashlib.sha256()
        for (name, _, _, _), content in sorted(zip(entries, hashes, strict=True)):
            total.update(f"{len(name.encode())}:{name}{content}".encode())
        return f"{total.hexdigest()[:16]} ({len(entries)} {'file' if len(entries) == 1 else 'files'})"

    def _hash(self, folder: Folder, name: str, path: str, size: int, stamp: str) -> str:
        known = self._known.get(path)
        if known and known[:2] == [size, stamp]:
            return known[2]
        digest = hashlib.sha256()
        with open(path, "rb") if folder.is_local else folder.fs.open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if not folder.is_local or time.time() - int(stamp) / 1e9 > _RACY_SECONDS:
            self._known[path] = [size, stamp, digest.hexdigest()]
            self._changed = True
        return digest.hexdigest()

    def save(self) -> None:
        """Writes the cache file. Losing it costs time only, so a folder that can't be written is no error."""
        if not self._changed:
            return
        temporary = self._cache.with_name(f".tmp-{os.getpid()}-{self._cache.name}")
        with contextlib.suppress(OSError):
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
            os.replace(temporary, self._cache)
        self._changed = False


def _local_entries(path: str) -> Iterator[tuple[str, str, int, str]]:
    """(name, path, size, stamp) of a file or of everything below a folder; hidden files are left out."""
    if os.path.isdir(path):
        for base, folders, names in os.walk(path, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
            for name in names:
                if not name.startswith("."):
                    whole = os.path.join(base, name)
                    status = os.stat(whole)
                    yield os.path.relpath(whole, path), whole, status.st_size, str(status.st_mtime_ns)
    elif os.path.exists(path):
        status = os.stat(path)
        yield os.path.basename(path), path, status.st_size, str(status.st_mtime_ns)


def _remote_entries(folder: Folder) -> Iterator[tuple[str, str, int, str]]:
    base = folder.fs._strip_protocol(folder.url).rstrip("/")
    for path, info in folder.fs.find(folder.url, detail=True).items():
        name = path[len(base) + 1 :] or base.rsplit("/", 1)[-1]
        if not is_temporary(name):
            stamp = (
                info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("created") or info.get("mtime")
            )
            yield name, f"{folder.protocol}://{path}", info["size"], str(stamp)
