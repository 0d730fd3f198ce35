"""The promise of a page: whatever it is given stays text, nothing is fetched, the same input makes the same bytes."""

import base64
import hashlib
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markup import markup_of

from pages import (
    Bar,
    Bars,
    Choice,
    Example,
    Facts,
    Heat,
    Lines,
    Page,
    Prose,
    Section,
    Series,
    Table,
    Tile,
    Tiles,
    clean,
)
from pages.page import TEMPLATES, policy

HOSTILE = [
    "</script><script>alert(1)</script>",
    "</style><style>body{display:none}</style>",
    "</title><img src=x onerror=alert(1)>",
    "\" onload=\"alert(1)", "' onload='alert(1)", "<!-- ", "-->", "]]>", "<![CDATA[", "<?xml ?>", "&lt;b&gt;&#0;&amp",
    "</svg><svg onload=alert(1)>", "{{ 7 * 7 }}{% raw %}", "javascript:alert(1)", "\0\x1b[2J\x7f\x85",
    "\ud800 half", "\udfff", "\u202e txet\u2066", "a\r\nb\rc", "\ufffe\uffff", "A" * 1_000_000,
]  # fmt: skip
anything = st.text(st.characters(), min_size=1, max_size=200)


def page_of(text: str, *, same: str | None = None) -> Page:
    """A page with the text wherever a text can be. `same`: of the labels by which a matrix compares."""
    label = same if same is not None else text
    parts = [
        Tiles([Tile(text, text, text)]),
        Facts(text, [(text, text), (text, 3)]),
        Table(text, [text, text], [[text, text], [text, 1]], text),
        Heat(text, text, text, [label, "B"], [label, "B"], [[1, 2], [0, 4]], text),
        Prose([text, text], "warning"),
        Prose([text], "code"),
        Example(text, "good", text, text, [Choice(text, text, 0.3, True), Choice(text, text, None)], [(text, text)]),
        Bars(text, [Bar(text, 0.3, [text, text], 0.2, 0.4, 0.25)], [text, text, text], text, text, [("chance", text)]),
        Lines(text, [Series(text, [(1, 2.0), (2, 3.0)], "dots")], text, text, level=(2.5, text), caption=text),
    ]
    sections = [Section(text, parts, intro=text), Section(text, [Prose([text])], folded=True)]
    return Page(text, sections, text, [Prose([text])], [text], text)


BENIGN = markup_of(page_of("x").content())


@given(anything)
@settings(max_examples=60, deadline=None)
@example("<b>")
def test_no_text_becomes_markup(text):
    content = page_of(text).content()
    found = markup_of(content)
    # Behind "/" and "_" in a name a line may break: the one tag that there may be more of.
    assert [tag for tag in found.tags if tag != "wbr"] == [tag for tag in BENIGN.tags if tag != "wbr"]
    assert found.attributes == BENIGN.attributes
    assert found.declarations == BENIGN.declarations == ["DOCTYPE html"]
    assert found.text.count(clean(text)) >= BENIGN.text.count("\nx\n") + 20


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_texts_made_to_break_out_do_not(text):
    content = page_of(text).content()
    found = markup_of(content)
    assert [tag for tag in found.tags if tag != "wbr"] == [tag for tag in BENIGN.tags if tag != "wbr"]
    assert found.attributes == BENIGN.attributes
    assert found.declarations == BENIGN.declarations
    assert len(content) < 400_000


def test_nothing_that_runs_and_nothing_that_fetches():
    found = markup_of(page_of("x").content())
    assert not {"script", "iframe", "object", "embed", "img", "form", "base", "a", "use", "foreignobject"} & {
        *found.tags
    }
    names = {name for _, name, _ in found.attributes}
    assert not any(name.startswith("on") for name in names) and not {"style", "src", "srcset", "action"} & names
    assert {value for _, name, value in found.attributes if name == "href"} == {"data:,"}
    style = (TEMPLATES / "page.css").read_text()
    assert "url(" not in style and "@import" not in style and "</" not in style


def test_the_policy_allows_this_style_and_nothing_else():
    content = page_of("x").content().decode()
    [style] = re.findall(r"<style>(.*?)</style>", content, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    found = markup_of(content.encode())
    allowed = dict(part.strip().split(" ", 1) for part in policy(style).split(";"))
    assert ("meta", "content", policy(style)) in found.attributes
    assert allowed == {
        "default-src": "'none'", "style-src": f"'sha256-{digest}'", "img-src": "data:", "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip
    order = [(tag, name) for tag, name, _ in found.attributes]
    assert order.index(("meta", "charset")) < order.index(("meta", "http-equiv")) < order.index(("link", "href"))


def test_every_value_in_an_attribute_stands_in_quotes():
    for template in TEMPLATES.glob("*.html"):
        text = re.sub(r"{%.*?%}", "", template.read_text())
        assert not re.search(r"=\s*{{", text), f"{template.name} has an attribute without quotes"
        assert "|safe" not in text and "autoescape" not in template.read_text()


def test_the_same_input_makes_the_same_bytes_and_a_date_changes_nothing_else():
    assert page_of("x").content() == page_of("x").content()
    dated = Page("t", [], date="2026-01-02").content()
    assert dated.replace(b"<p>2026-01-02</p>\n", b"") == Page("t", []).content()


def test_a_folded_section_is_closed_and_a_layout_is_a_class():
    content = Page("t", [Section("s", [Prose(["p"])], "grid"), Section("f", [], folded=True)]).content().decode()
    assert '<div class="parts grid">' in content and '<details class="section"><summary><h2>f</h2>' in content


def test_a_table_that_is_too_long_says_how_many_rows_it_leaves_out():
    table = Table("t", ["n"], [[f"row {i}"] for i in range(100)])
    text = markup_of(Page("t", [Section("s", [table])]).content()).text
    assert "row 59" in text and "row 60" not in text and "And 40 rows more." in text


def test_a_matrix_marks_where_row_and_column_agree():
    heat = Heat("t", "answer", "said", ["A", "B"], ["A", "B", "none"], [[5, 0, 1], [0, 10, 0]])
    content = Page("t", [Section("s", [heat])]).content().decode()
    assert '<td class="h4 same">5</td><td class="h0">0</td><td class="h1">1</td>' in content
    assert '<td class="h0">0</td><td class="h8 same">10</td><td class="h0">0</td>' in content


def test_the_choice_that_was_made_is_told_from_the_right_one():
    choices = [Choice("A", "right", 0.2, right=True), Choice("B", "made", 0.7, chosen=True), Choice("C", "other", 0.1)]
    content = Page("t", [Section("s", [Example("h", "bad", choices=choices)])]).content().decode()
    rows = re.findall(r"<tr(.*?)>(.*?)</tr>", content, re.DOTALL)
    assert [attributes for attributes, _ in rows] == [' class="right"', ' class="bad"', ""]
    assert ["✓" in row for _, row in rows] == [True, False, False]
    assert ["✗" in row for _, row in rows] == [False, True, False]
    assert 'width="70%"' in rows[1][1] and "70.0\u00a0%" in rows[1][1]
