"""What --out may replace: an earlier report on an exam with its page, and nothing else."""

import re
from pathlib import Path

from evaluation.page import TITLE
from files.fields import Place
from files.writing import make_folder

REMEDY = "name another --out"
HEAD = 4096
"""Bytes that tell what a file is; a page has its title there."""


def check_destination(report: Path, compared: Path | None = None) -> None:
    """Refuse before the exam is sat what could not be written after it, or would cost the user a file.

    Args:
        report: where the JSON report goes; the page goes beside it.
        compared: the earlier report, which is still wanted.

    Raises:
        FileError: a file of another kind has the report's name, or its page's.
        OSError: the directory cannot be made.
    """
    if compared is not None and compared.resolve() == report.resolve():
        raise Place(report).unsuitable("it is the report to --compare with", REMEDY)
    page = report.with_suffix(".html")
    if report.exists() and not _is_report(report):
        raise Place(report).unsuitable("there is a file of this name, and it is no report on an exam", REMEDY)
    if page.exists() and not _is_page(page):
        raise Place(page).unsuitable("the page would go here, and what is here is no page of an exam", REMEDY)
    make_folder(report.parent)


def _is_report(path: Path) -> bool:
    return re.match(rb'\{\s*"format": \d+,\s*"settings": \{', _head(path)) is not None


def _is_page(path: Path) -> bool:
    return f"<title>{TITLE}".encode() in _head(path)


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)
