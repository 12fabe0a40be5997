"""A disk without room, told as what it is, whatever tripped over it."""

import errno
import os
import shutil

from cluster.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LITTLE = 64 << 10  # bytes


class DiskFull(UserError, OSError):
    """Something couldn't be written because there is no room for it; to callers that get over an OSError it is one."""


def disk_full(error: BaseException, place: str) -> DiskFull | None:
    """What to tell of an error at `place` (a path, or a URL, of which nothing is known) that comes of a full disk;
    None if it doesn't.

    Libraries with a store of their own (SQLite, MLflow) hide the system's error: then the room that is left tells.
    """
    if isinstance(error, DiskFull):
        return error
    if not isinstance(error, Exception):  # a signal, an exit
        return None
    free = _free_bytes(place)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        cause = os.strerror(error.errno)
    elif free is not None and free < _LITTLE:
        cause = os.strerror(errno.ENOSPC)
    else:
        return None
    rest = "" if free is None else f", {free / 1e6:.1f} MB are free there"
    return DiskFull(
        f"{place} can't be written: {cause}{rest}. Make room on that disk (artifacts that nobody needs any more are "
        "folders ROOT/STAGE/FINGERPRINT) or lift its limit; then call the same command again, which goes on from what "
        "is finished. A root can also be moved to a larger disk as a whole."
    )


def _free_bytes(place: str) -> int | None:
    """Of the disk that a path, there or not yet, belongs to."""
    if "://" in place:
        return None
    while not os.path.exists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None
