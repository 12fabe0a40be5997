"""Errors with a text for the user. Everything else that is raised is a fault and keeps its traceback."""


class UserError(Exception):
    """Something that the user can put right: one paragraph that names the file, row or key and what to do."""


class RequestError(UserError):
    """The request itself was wrong (an unknown stage, key or profile, a bad value): exit code 2."""


class Cancelled(Exception):
    """The work isn't ours any more: the lease was lost or the run is ending. Raised by `Context.check`."""
