"""Take the picture of docs/serving.md: base and adapter side by side, the alternatives of one token on top.

PYTHONPATH=tests python tests/serving/screenshot.py ADAPTER PNG
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from browser import ENTER, Browser, chromium, soon

ROOT = Path(__file__).resolve().parents[2]


def main(adapter: str, png: str) -> None:
    """Serve the miniature with this adapter, ask it, take the picture."""
    command = [sys.executable, str(ROOT / "serve.py"), "--adapter", adapter, "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as profile,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            with chromium(Path(profile)) as browser:
                pose(browser, url)
                browser.screenshot(Path(png))
        finally:
            server.terminate()


def pose(browser: Browser, url: str) -> None:
    """Ask both sides and point at a token of the second answer."""
    browser.resize(1080, 1060)
    browser.open(url)
    soon(lambda: browser.run("return !document.getElementById('sides').hidden"))
    browser.click("[value='base adapter']")
    browser.type("#instruction", "What is the treatment of gout?" + ENTER)
    answered = "return document.querySelectorAll('[aria-busy=false]').length == 2"
    soon(lambda: browser.run(answered))
    browser.hover("[data-side=adapter] .token:nth-child(6)")


if __name__ == "__main__":
    main(*sys.argv[1:])
