"""A page: a title, some sections, and a promise.

The promise is that what a page is given cannot become part of the page's own markup: every value that a template writes
goes through `text.shown` and is escaped, attributes stand in quotes, and no value is written into a style, a script or
an address. Should it be broken all the same, the page's own policy forbids the browser to run a script, to fetch
anything from anywhere, or to take any style but the one below: it is named by its hash.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pages.text import number, percent, shown

TEMPLATES = Path(__file__).parent / "templates"


class Part(Protocol):
    """Something that a section holds."""

    @property
    def template(self) -> str:
        """The file that draws it."""
        ...


@dataclass(frozen=True)
class Section:
    """Parts under a heading.

    Attributes:
        layout: where there is room for two: stack does not use it, grid pairs row by row, flow fills two columns.
        folded: show the heading only, until it is opened.
    """

    title: str
    parts: Sequence[Part]
    layout: Literal["stack", "grid", "flow"] = "stack"
    folded: bool = False
    intro: str = ""


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: also the browser's.
        subtitle: one line below it.
        head: parts above the first section.
        footer: paragraphs at the end.
        date: as it shall be printed; nothing else depends on when the page is made.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    head: Sequence[Part] = ()
    footer: Sequence[str] = field(default_factory=tuple)
    date: str = ""

    def content(self) -> bytes:
        """The page as the bytes of an HTML file.

        >>> b"&lt;b&gt;" in Page("<b>", []).content()
        True
        """
        style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
        page = _environment().get_template("page.html")
        text = page.render(page=self, style=Markup(style), policy=policy(style))
        return text.encode()


def policy(style: str) -> str:
    """What a browser may do with the page: show it, with this style."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["percent"] = percent
    environment.filters["share"] = _share
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(value: object) -> Markup:
    """A name or a path, escaped, which may go on in the next line behind "/" and "_"."""
    text = escape(shown(value))
    return Markup(text.replace("/", Markup("/<wbr>")).replace("_", Markup("_<wbr>")))


def _share(place: float) -> str:
    """A share of a length, as SVG writes it."""
    return f"{100 * place:.4g}%"
