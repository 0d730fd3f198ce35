"""Take pictures of reports: for the docs, and to look at while changing how they look.

PYTHONPATH=src:tests python tests/pages/screenshot.py REPORT.html PNG          the top, on a desk, in the light
PYTHONPATH=src:tests python tests/pages/screenshot.py REPORT.html FOLDER/      the whole page, four ways
"""

import sys
import tempfile
from pathlib import Path

from browser import chromium
from page_views import DESK, PHONE, look, picture


def main(report: str, target: str) -> None:
    """One picture for the docs, or four to judge by."""
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        if not target.endswith("/"):
            look(browser, Path(report), (1280, 1000))
            picture(browser, Path(target))
            return
        folder = Path(target)
        folder.mkdir(parents=True, exist_ok=True)
        for where, size in (("phone", PHONE), ("desk", DESK)):
            for scheme in ("light", "dark"):
                look(browser, Path(report), size, dark=scheme == "dark")
                picture(browser, folder / f"{Path(report).stem}-{where}-{scheme}.png", whole=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
