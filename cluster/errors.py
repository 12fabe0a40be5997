"""Errors with a text for the user. Everything else that is raised is a fault and keeps its traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something that the user can put right: one paragraph that names the file, row or key and what to do."""


class RequestError(UserError):
    """The request itself was wrong (an unknown stage, key or profile, a bad value): exit code 2."""


class Cancelled(Exception):
    """The work isn't ours any more: the lease was lost or the run is ending. Raised by `Context.check`."""


OK, FAILED, WRONG_REQUEST, STOPPED = 0, 1, 2, 130


def exit_code(work: Callable[[], int | None]) -> int:
    """Does a command's work; returns its exit code (None: OK), and prints an error that its user can mend."""
    try:
        return work() or OK
    except RequestError as error:
        print(error, file=sys.stderr)
        return WRONG_REQUEST
    except UserError as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return STOPPED
