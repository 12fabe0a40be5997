"""Drives a headless Chromium by its DevTools protocol: opens pages, presses keys, evaluates, takes pictures."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_SECONDS, WAIT_SECONDS = 60, 60
KEY_CODES = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13}


class Page:
    """The browser's one page."""

    def __init__(self, socket: Any):
        self._socket, self._numbers = socket, itertools.count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its result; events that come meanwhile are dropped."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_SECONDS))
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")  # else another fragment alone would load nothing
        self.call("Page.navigate", url=url)

    def wait_for(self, condition: str) -> Any:
        """The first true value of an expression, or a failure that shows the page's text."""
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):  # while a page is being exchanged there is nothing to ask
                if value := self.evaluate(condition):
                    return value
            time.sleep(0.03)
        raise AssertionError(f"never true: {condition}; the page: {self.evaluate('document.body.innerText')}")

    def press(self, key: str) -> None:
        code = {"windowsVirtualKeyCode": KEY_CODES[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **code)

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser with a profile of its own. Skips the test where there is no Chromium."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs Chromium: none of {', '.join(NAMES)} is on the path")
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
        "--disable-background-networking", "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={profile}",
        "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        with connect(_page_address(process, profile), max_size=None, proxy=None) as socket:
            page = Page(socket)
            page.call("Page.enable")
            yield page
    finally:
        with contextlib.suppress(ProcessLookupError):  # the browser and its own helpers, nothing else
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _page_address(process: subprocess.Popen, profile: Path) -> str:
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    port_file = profile / "DevToolsActivePort"
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        with contextlib.suppress(OSError, ValueError):
            port = int(port_file.read_text().splitlines()[0])
            with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                for target in json.load(answer):
                    if target["type"] == "page":
                        return target["webSocketDebuggerUrl"]
        time.sleep(0.05)
    raise AssertionError("Chromium didn't open its DevTools port")
