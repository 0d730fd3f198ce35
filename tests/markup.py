"""What a page's markup is made of, as a parser sees it: to tell whether a text has become more than text."""

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Markup:
    """Attributes:
    tags: each that opens, in order.
    attributes: (tag, name, value) of each attribute.
    words: all text between tags.
    declarations: comments, processing instructions and the like.
    """

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str | None]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    declarations: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.words)


VOID = {"meta", "link", "br", "wbr"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found = Markup()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.tags.append(tag)
        self.found.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.found.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.found.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.found.open and self.found.open[-1] == tag, f"</{tag}> closes {self.found.open[-1:]}"
        self.found.open.pop()

    def handle_data(self, data: str) -> None:
        self.found.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.found.declarations.append(data)

    def handle_decl(self, decl: str) -> None:
        self.found.declarations.append(decl)

    def handle_pi(self, data: str) -> None:
        self.found.declarations.append(data)

    def unknown_decl(self, data: str) -> None:
        self.found.declarations.append(data)


def markup_of(page: bytes) -> Markup:
    """The page taken apart; a tag that is closed in the wrong order, or never, is an error."""
    reader = _Reader()
    reader.feed(page.decode("utf-8"))
    reader.close()
    assert reader.found.open == []
    return reader.found
