"""Ctrl-C, SIGTERM and a closed terminal as a wish to end cleanly."""

import signal
import threading
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While it is open, the first signal only sets `by`; a second one raises KeyboardInterrupt.

    Does nothing outside of the main thread, where Python delivers no signals.
    """

    def __init__(self) -> None:
        self.by: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.install()
        return self

    def install(self) -> None:
        """Puts the handlers in place; again after a library (Ray) has put its own there."""
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                if signal.getsignal(number) == signal.SIG_IGN:  # under nohup
                    continue
                previous = signal.signal(number, self._note)
                self._before.setdefault(number, previous)

    def _note(self, number: int, frame: Any) -> None:
        if self.by is not None:
            raise KeyboardInterrupt
        self.by = number

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
