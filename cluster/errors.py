"""Errors with a text for the user. Everything else that is raised is a fault and keeps its traceback."""

import re
import sys
from collections.abc import Callable

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


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


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, with its type where it has none; without the addresses of objects, so that the same
    fault reads the same in every process.
    """
    text = _ADDRESS.sub("", " ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def first_cause(error: BaseException) -> BaseException:
    """What an error was raised from, down to the first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
