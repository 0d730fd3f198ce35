"""Both pages in a real browser: on a phone and a desk, nothing sticks out, nothing is fetched, everything is drawn."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from page_views import DESK, FETCHED, PHONE, STICKING_OUT, UNDRAWN, UNSEEN, WIDTH, look, messages
from reported import a_run, generated, questions_of, scored

from evaluation import compare, exam_page
from pages import Lines, Page, Section, Series
from training.report import write_run_page

SETTINGS = {"exam": "usmle", "description": "a tiny model", "template": "alpaca_short"}
SCRIPT = "</title></style></p><script>document.title = 'broken'</script><img src=http://127.0.0.1:9/x onerror=alert(1)>"
LONG = "W" * 400


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as window:
        yield window


def run_page(folder: Path) -> Path:
    return write_run_page(a_run(folder, 300), date="2026-01-02")


def compared_exam(folder: Path) -> Path:
    questions = questions_of(90)
    before, after = scored(questions, 1, 0.2), scored(questions, 2)
    page = exam_page(
        after, settings=SETTINGS, questions=questions, notes=["two ties"], comparison=compare(before, after)
    )
    return written(page, folder / "exam.html")


def generated_exam(folder: Path) -> Path:
    questions = questions_of(40)
    return written(exam_page(generated(questions), settings=SETTINGS, questions=questions), folder / "said.html")


def hostile_run(folder: Path) -> Path:
    return write_run_page(a_run(folder / LONG[:200], 30, said=f"{SCRIPT} {LONG}"))


def hostile_exam(folder: Path) -> Path:
    questions = questions_of(12, text=f"{SCRIPT} {LONG}")
    settings = {"exam": LONG, SCRIPT: SCRIPT, "description": SCRIPT}
    page = exam_page(generated(questions, SCRIPT), settings=settings, questions=questions, notes=[LONG])
    return written(page, folder / "exam.html")


def written(page: Page, path: Path) -> Path:
    path.write_bytes(page.content())
    return path


PAGES = [run_page, compared_exam, generated_exam, hostile_run, hostile_exam]


@pytest.mark.parametrize("make", PAGES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_a_page_fits_and_is_drawn_and_fetches_nothing(browser, tmp_path, make, size):
    messages(browser)
    look(browser, make(tmp_path), size)
    for state in ("", "document.querySelectorAll('details').forEach(e => e.open = true)"):
        browser.run(state)
        assert browser.run(WIDTH) == 0
        assert browser.run(STICKING_OUT) == []
        assert browser.run(UNSEEN) == []
        assert browser.run(UNDRAWN) == []
    assert browser.run(FETCHED) == []
    assert messages(browser) == []
    assert browser.run("return document.title").split(":")[0] in ("Training report", "Exam report")
    assert browser.run("return document.querySelectorAll('script, img, iframe').length") == 0


def test_the_checks_see_what_they_are_for(browser, tmp_path):
    """A page with all the faults that the test above would report."""
    page = Page("t", [Section("s", [Lines("empty", [Series("a", [])])])])
    faults = (
        "<p><nobr>" + "w" * 400 + '</nobr></p><img src="http://127.0.0.1:9/x.png"><script>1</script><table></table>'
    )
    (tmp_path / "page.html").write_bytes(page.content().replace(b"<footer>", faults.encode() + b"<footer>"))
    messages(browser)
    look(browser, tmp_path / "page.html", PHONE)
    assert browser.run(WIDTH) > 0 and browser.run(UNDRAWN) and browser.run(UNSEEN)
    complaints = messages(browser)
    assert any("img-src" in line for line in complaints) and any("script-src" in line for line in complaints)


def test_the_policy_alone_would_stop_a_script_a_style_and_a_request(browser, tmp_path):
    """As if the escaping had failed."""
    smuggled = (
        b"<script>document.title = 'broken'</script><p id=p style='position:fixed' onclick='document.title=1'>p</p>"
        b"<style>p { position: fixed }</style><link rel=stylesheet href=http://127.0.0.1:9/x.css>"
    )
    page = Page("t", []).content().replace(b"<footer>", smuggled + b"<footer>")
    (tmp_path / "page.html").write_bytes(page)
    messages(browser)
    look(browser, tmp_path / "page.html")
    browser.run("document.getElementById('p').click()")
    assert browser.run("return document.title") == "t"
    assert browser.run("return getComputedStyle(document.getElementById('p')).position") == "static"
    assert len(messages(browser)) >= 4


def test_dark_and_light_are_both_readable(browser, tmp_path):
    """Ink on paper, in both schemes: a contrast of at least 7 to 1 (WCAG 2.1, level AAA)."""
    page = compared_exam(tmp_path)
    colours = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    luminances = []
    for dark in (False, True):
        look(browser, page, dark=dark)
        ink, paper = (luminance(colour) for colour in browser.run(colours))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
        luminances.append(paper)
    assert luminances[1] < 0.05 < 0.8 < luminances[0]


def luminance(colour: str) -> float:
    """Of "rgb(1, 2, 3)", by WCAG's formula."""
    channels = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
