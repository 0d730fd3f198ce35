"""A report looked at as a reader would, on a phone or a desk, in the light or the dark; and what is wrong in it."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from browser import Browser, command, soon

PHONE, DESK = (390, 844), (1280, 900)

UNSEEN = """
return [...document.querySelectorAll('svg.plot, svg.row, table, figure, .tiles')]
    .filter(e => !e.closest('details:not([open])'))
    .filter(e => { const box = e.getBoundingClientRect(); return !(box.width > 20 && box.height > 3); })
    .map(e => e.outerHTML.slice(0, 200))
"""
"""Charts and tables that take no room."""
UNDRAWN = """
return [...document.querySelectorAll('svg.plot')]
    .filter(e => ![...e.querySelectorAll('path.curve')].some(p => p.getTotalLength() > 0 || p.getAttribute('d')))
    .map(e => e.outerHTML.slice(0, 200))
"""
"""Charts without a curve."""
WIDTH = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
STICKING_OUT = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll('svg text, h1, h2, h3, p, dd, dt, figcaption, .key')]
    .filter(e => !e.closest('details:not([open])') && !e.closest('.wide'))
    .map(e => [e, e.getBoundingClientRect()])
    .filter(([e, box]) => box.width && (box.left < 0 || box.right > width + 1))
    .map(([e, box]) => e.outerHTML.slice(0, 200))
"""
"""Words that a reader would see cut."""
FETCHED = "return performance.getEntriesByType('resource').map(entry => entry.name)"


def devtools(browser: Browser, name: str, **parameters: Any) -> Any:
    """One command of Chromium's own protocol."""
    return command(f"{browser._session}/goog/cdp/execute", {"cmd": name, "params": parameters})


def look(browser: Browser, page: Path, size: Sequence[int] = DESK, *, dark: bool = False) -> None:
    """Open the page at this size."""
    width, height = size
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    devtools(
        browser, "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
    )
    devtools(browser, "Emulation.setScrollbarsHidden", hidden=True)
    devtools(browser, "Emulation.setEmulatedMedia", features=[scheme])
    browser.open(page.resolve().as_uri())
    soon(lambda: browser.run("return document.readyState == 'complete'"))


def picture(browser: Browser, file: Path, *, whole: bool = False) -> None:
    """A screenshot: of what is seen, or of the whole page however long."""
    shot = devtools(browser, "Page.captureScreenshot", format="png", captureBeyondViewport=whole)
    file.write_bytes(base64.b64decode(shot["data"]))


def messages(browser: Browser) -> list[str]:
    """What the browser complained about since last asked: errors, refusals of the page's policy."""
    return [entry["message"] for entry in command(f"{browser._session}/se/log", {"type": "browser"})]
