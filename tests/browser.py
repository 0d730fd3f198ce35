"""A headless Chromium, driven by W3C WebDriver's calls to chromedriver: what the page's tests need of it, no more."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

Found = TypeVar("Found")

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which the protocol returns an element (W3C WebDriver, section 12.1)."""
ENTER, ESCAPE, RIGHT = "\ue007", "\ue00c", "\ue014"
"""Keys as the protocol writes them (section 17.4.2)."""
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE = 20.0
"""Seconds to wait for what should appear at once on an idle machine."""


class Browser:
    """One window of a running Chromium; each method is one command of the protocol."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, url: str) -> None:
        command(f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that the body of a JavaScript function returns."""
        return command(f"{self._session}/execute/sync", {"script": script, "args": arguments})

    def type(self, selector: str, text: str) -> None:
        command(f"{self._session}/element/{self._find(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        command(f"{self._session}/element/{self._find(selector)}/click", {})

    def hover(self, selector: str) -> None:
        """Move the mouse onto an element."""
        origin = {ELEMENT: self._find(selector)}
        move = {"type": "pointerMove", "duration": 0, "origin": origin, "x": 0, "y": 0}
        command(f"{self._session}/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})

    def resize(self, width: int, height: int) -> None:
        command(f"{self._session}/window/rect", {"width": width, "height": height})

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(command(f"{self._session}/screenshot")))

    def _find(self, selector: str) -> str:
        return command(f"{self._session}/element", {"using": "css selector", "value": selector})[ELEMENT]


def command(url: str, parameters: dict[str, Any] | None = None, method: str | None = None) -> Any:
    """The value of a WebDriver response; without parameters a GET."""
    body = None if parameters is None else json.dumps(parameters).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["value"]


def soon(condition: Callable[[], Found]) -> Found:
    """The condition's first true value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE} s"
        time.sleep(0.02)
    return value


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser without a window and with an empty profile; skips the test where there is none."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("install Debian's chromium and chromium-driver")
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            started = next(line for line in driver.stdout if "successfully on port" in line)
            address = f"http://127.0.0.1:{started.split()[-1].rstrip('.')}/session"
            options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
            capabilities = {"alwaysMatch": {"goog:chromeOptions": options}}
            session = f"{address}/{command(address, {'capabilities': capabilities})['sessionId']}"
            try:
                yield Browser(session)
            finally:
                command(session, method="DELETE")
        finally:
            driver.terminate()
