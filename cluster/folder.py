"""A folder on a local path or on any fsspec URL (`s3://`, `gs://`, `memory://`), with writes that are whole
or absent.
"""

from __future__ import annotations  # the method `list` hides the type in annotations

import functools
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec

from cluster.disk import disk_full

if TYPE_CHECKING:
    import pyarrow as pa

_TEMPORARY = ".tmp-"
# A put on these stores is atomic by itself, and their "rename" is a copy: write straight to the name.
_ATOMIC_PUT = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}
_CHUNK = 1 << 20
_ROW_GROUP_BYTES = 64 << 20
_MAX_ROW_GROUP = 1 << 20


@functools.lru_cache(maxsize=64)
def _filesystem(protocol: str, process: int) -> fsspec.AbstractFileSystem:
    # Listings must never be cached (other machines write too), and a forked process needs a client of its
    # own.
    return fsspec.filesystem(protocol, use_listings_cache=False)


def cache_path() -> Path:
    """The user's own folder for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "pairless"


def is_temporary(name: str) -> bool:
    """Whether a relative name belongs to the frame itself (temporary and lease files), not to the content."""
    return any(part.startswith(".") for part in name.split("/"))


class Folder:
    """A folder that need not exist yet. Pickles to its URL, so it can travel to workers.

    Names are relative and use `/`. Every write goes under a temporary name and is then renamed (or is one
    atomic put), so a reader sees a whole file or none.
    """

    def __init__(self, url: str | os.PathLike[str]):
        url = os.fspath(url)
        protocol, separator, rest = url.partition("://")
        self.protocol = protocol if separator else "file"
        if self.protocol in ("file", "local"):
            self.protocol = "file"
            self.url = os.path.abspath(os.path.expanduser(rest if separator else url))
        else:
            self.url = url.rstrip("/")

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def is_local(self) -> bool:
        return self.protocol == "file"

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system behind the folder, as fsspec has it."""
        return _filesystem(self.protocol, os.getpid())

    def path(self, name: str = "") -> str:
        """The local path or whole URL of a name."""
        return f"{self.url}/{name}" if name else self.url

    def sub(self, prefix: str) -> Folder:
        """The folder `prefix` within this one."""
        return Folder(self.path(prefix))

    def exists(self, name: str = "") -> bool:
        return os.path.exists(self.path(name)) if self.is_local else self.fs.exists(self.path(name))

    def sizes(self, *, recursive: bool = True, hidden: bool = False) -> dict[str, int]:
        """{relative name: bytes} of the files, sorted; names that start with a dot only if `hidden`."""
        if self.is_local:
            found = dict(_local_sizes(self.url, "", recursive))
        else:
            base = self.fs._strip_protocol(self.url).rstrip("/") + "/"
            try:
                listed = self.fs.find(self.url, maxdepth=None if recursive else 1, detail=True)
            except FileNotFoundError:
                listed = {}
            found = {path[len(base) :]: info["size"] for path, info in listed.items() if path.startswith(base)}
        return {name: found[name] for name in sorted(found) if name and (hidden or not is_temporary(name))}

    def list(self, suffix: str = "", recursive: bool = False) -> list[str]:
        """Relative names of the files that end with `suffix`, sorted; no temporary or hidden ones."""
        return [name for name in self.sizes(recursive=recursive) if name.endswith(suffix)]

    def tables_with(self, columns: Sequence[str]) -> list[str]:
        """Relative names of the Parquet tables anywhere below that have these columns, sorted."""
        import pyarrow.parquet as pq

        found = []
        for name in self.list(".parquet", recursive=True):
            with self.open(name) as stream:
                if set(columns) <= set(pq.ParquetFile(stream).schema_arrow.names):
                    found.append(name)
        return found

    def subfolders(self) -> list[str]:
        """Names of the folders directly within, sorted; no hidden ones."""
        try:
            if self.is_local:
                names = [entry.name for entry in os.scandir(self.url) if entry.is_dir()]
            else:
                listed = self.fs.ls(self.url, detail=True)
                names = [
                    entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in listed if entry["type"] == "directory"
                ]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not is_temporary(name))

    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading bytes. Raises FileNotFoundError if it isn't there."""
        return open(self.path(name), "rb") if self.is_local else self.fs.open(self.path(name), "rb")

    def read_bytes(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode("utf-8")

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Reads a Parquet file as an Arrow table."""
        import pyarrow.parquet as pq

        with self.open(name) as file:
            return pq.read_table(file, columns=columns)

    def write_bytes(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Writes a whole file. `durable=False` skips the flush to disk (for files that may be lost with the
        machine). Raises DiskFull, a UserError, where there is no room for it.
        """
        if self.is_local:
            target = Path(self.path(name))
            temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex[:12]}-{target.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                os.replace(temporary, target)
            except BaseException as error:
                temporary.unlink(missing_ok=True)
                if full := disk_full(error, self.path(name)):
                    raise full from error
                raise
        elif self.protocol in _ATOMIC_PUT:
            self.fs.pipe_file(self.path(name), data)
        else:
            parent, _, base = self.path(name).rpartition("/")
            temporary_url = f"{parent}/{_TEMPORARY}{uuid.uuid4().hex[:12]}-{base}"
            self.fs.makedirs(parent, exist_ok=True)
            self.fs.pipe_file(temporary_url, data)
            self.fs.mv(temporary_url, self.path(name))

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode("utf-8"))

    def write_json(self, name: str, value: Any, *, durable: bool = True, sort_keys: bool = True) -> None:
        """Writes JSON; with sorted keys equal values give equal bytes."""
        text = json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False)
        self.write_bytes(name, text.encode("utf-8"), durable=durable)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Writes an Arrow table as one Parquet file (zstd), in row groups of 64 MiB at most, so that pictures can be
        read a part at a time. Equal tables give equal bytes.
        """
        import pyarrow.parquet as pq

        fitting = table.num_rows * _ROW_GROUP_BYTES // max(1, table.nbytes)
        num_rows = min(_MAX_ROW_GROUP, 1 << max(0, fitting.bit_length() - 1))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", row_group_size=num_rows)
        self.write_bytes(name, buffer.getvalue())

    def put_file(self, local_path: str | os.PathLike[str], name: str) -> None:
        """Copies one local file in, without holding it in memory."""
        if self.is_local:
            target = Path(self.path(name))
            temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex[:12]}-{target.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(local_path, "rb") as source, open(temporary, "wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            except BaseException as error:
                temporary.unlink(missing_ok=True)
                if full := disk_full(error, self.path(name)):
                    raise full from error
                raise
        elif self.protocol in _ATOMIC_PUT:
            self.fs.put_file(os.fspath(local_path), self.path(name))
        else:
            self.write_bytes(name, Path(local_path).read_bytes())

    def local(self, prefix: str = "") -> Path:
        """A local path with the content of the folder (or of the subfolder or file `prefix`).

        That is the folder itself if it is local, else a copy in the cache directory; for files that don't
        change once they are written, as an artifact's.
        """
        if self.is_local:
            return Path(self.path(prefix))
        sizes = self.sizes()
        # An artifact that was made anew has another manifest, and so a copy of its own.
        state = self.read_bytes("manifest.json") if "manifest.json" in sizes else b""
        cache = cache_path() / "copies" / hashlib.sha256(self.url.encode() + b"\n" + state).hexdigest()[:16]
        for name, size in sizes.items():
            if prefix and name != prefix and not name.startswith(prefix.rstrip("/") + "/"):
                continue
            target = cache / name
            if target.is_file() and target.stat().st_size == size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex[:12]}-{target.name}")
            self.fs.get_file(self.path(name), os.fspath(temporary))
            os.replace(temporary, target)
        return cache / prefix if prefix else cache

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file's content, in hex."""
        digest = hashlib.sha256()
        with self.open(name) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def remove(self, name: str) -> None:
        """Removes one file; no error if it isn't there."""
        try:
            os.unlink(self.path(name)) if self.is_local else self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            pass

    def remove_temporary(self) -> None:
        """Removes what writers that were killed have left half written. Nobody else may be writing here now."""
        if self.protocol not in _ATOMIC_PUT:
            for name in self.sizes(hidden=True):
                base = name.rpartition("/")[2]
                if base.startswith(_TEMPORARY) and not base.endswith(LEASE_NAME):  # the lease has writers of its own
                    self.remove(name)

    def clear(self) -> None:
        """Removes everything in the folder except its lease."""
        for name in self.sizes(hidden=True):
            if name != LEASE_NAME:
                self.remove(name)


LEASE_NAME = ".lease.json"


def _local_sizes(base: str, prefix: str, recursive: bool) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(os.path.join(base, prefix) if prefix else base))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        name = f"{prefix}/{entry.name}" if prefix else entry.name
        try:
            if entry.is_dir():
                if recursive:
                    yield from _local_sizes(base, name, recursive)
            else:
                yield name, entry.stat().st_size
        except FileNotFoundError:  # a temporary file that was renamed meanwhile
            continue
