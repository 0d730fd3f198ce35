"""Reports as web pages: one file each, no script, nothing fetched, the same bytes for the same input.

Below every other package, as `files` and `native` are; imports none.

page.py     `Page` and `Section`; the environment of the templates, which escapes whatever it is given
text.py     what strings and numbers look like, hostile ones included
scale.py    axes: where a value lies, which ticks to draw
lines.py    `Lines`: curves over steps, thinned so that no extreme is lost
bars.py     `Bars`: a table with bars, intervals, a chance line
parts.py    `Tiles`, `Facts`, `Table`, `Heat`, `Prose`, `Example`: the rest of what a section holds
templates/  one per part, page.html and page.css around them
"""

from pages.bars import Bar, Bars
from pages.lines import Lines, Series, running_mean
from pages.page import Page, Section
from pages.parts import Choice, Example, Facts, Heat, Prose, Table, Tile, Tiles
from pages.text import bytes_text, clean, number, percent, setting

__all__ = [
    "Bar",
    "Bars",
    "Choice",
    "Example",
    "Facts",
    "Heat",
    "Lines",
    "Page",
    "Prose",
    "Section",
    "Series",
    "Table",
    "Tile",
    "Tiles",
    "bytes_text",
    "clean",
    "number",
    "percent",
    "running_mean",
    "setting",
]
