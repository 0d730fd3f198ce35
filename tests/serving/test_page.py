"""The page in a real browser: a question typed, its answer streamed, alternatives shown, an answer stopped."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import ENTER, ESCAPE, RIGHT, Browser, chromium, soon

from lora import save_adapter
from recipe import Inference

pytest.importorskip("uvicorn", reason="install the extra serve")

ROOT = Path(__file__).resolve().parents[2]
TOKENS = "return [...document.querySelectorAll('.token')].map(span => span.textContent)"
ROWS = "return [...document.querySelectorAll('#choices:not([hidden]) tbody tr')].map(row => row.innerText)"
STATUS = "return [...document.querySelectorAll('.status')].map(line => line.textContent)"
DONE = "return document.querySelectorAll('[aria-busy=false]').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as window:
        yield window


def visit(browser: Browser, url: str) -> None:
    """Open the page and wait until it knows the model."""
    browser.open(url)
    soon(lambda: browser.run("return !document.getElementById('sides').hidden"))


def test_questions_answers_and_alternatives(browser: Browser, miniature: Inference, tmp_path: Path) -> None:
    """The whole way, from `serve.py` in a process of its own."""
    save_adapter(miniature.model, tmp_path)
    command = [sys.executable, str(ROOT / "serve.py"), "--adapter", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            visit(browser, server.stdout.readline().strip())
            one_side(browser)
            side_by_side(browser)
            asked = "performance.getEntriesByType('resource').map(entry => entry.name)"
            assert browser.run(f"return {asked}.filter(name => !name.startsWith(location.origin))") == []
        finally:
            server.terminate()


def one_side(browser: Browser) -> None:
    """A typed question is answered; the mouse and the keys show alternatives."""
    browser.type("#instruction", "What is the treatment of gout?" + ENTER)
    soon(lambda: browser.run(DONE) == 1)
    assert "".join(browser.run(TOKENS))
    assert " per second, " in browser.run(STATUS)[0]
    assert browser.run("return document.getElementById('message').textContent") == ""
    browser.hover(".token")
    rows = browser.run(ROWS)
    assert len(rows) == sum("%" in row for row in rows) == 5
    mark = "getComputedStyle(document.querySelector('#choices .chosen th'), '::after').content"
    assert "chosen" in browser.run(f"return {mark}")  # greedy: it is among the five
    browser.run("document.querySelector('.token').focus()")
    browser.type(".token", RIGHT)
    assert browser.run("return document.activeElement === document.querySelectorAll('.token')[1]")
    assert len(browser.run(ROWS)) == 5
    browser.type(".token:nth-child(2)", ESCAPE)
    assert browser.run(ROWS) == []


def side_by_side(browser: Browser) -> None:
    """Both sides answer, as long as a control says."""
    browser.click("[value='base adapter']")
    browser.click("details:has(#sampling) summary")
    browser.run("document.getElementById('max_new_tokens').value = ''")
    browser.type("#max_new_tokens", "2" + ENTER)
    soon(lambda: browser.run(DONE) == 2)
    sides = browser.run("return [...document.querySelectorAll('h2')].map(line => line.textContent)")
    assert sides == ["base", "with adapter"]
    assert all(line.startswith("2 tokens, ") for line in browser.run(STATUS))


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_ends_the_answer_on_the_server_too(
    browser: Browser, serve: Any, miniature: Inference, gate: Any, how: str
) -> None:
    client = serve(miniature)
    visit(browser, f"http://localhost:{client.port}/")
    browser.type("#instruction", "What is the treatment of gout?" + ENTER)
    gate.open(3)
    soon(lambda: browser.run(TOKENS))
    (turn,) = client.asking.turns
    if how == "button":
        browser.click("#stop")
    else:
        browser.type("#instruction", ESCAPE)
    soon(turn.stopped.is_set)
    gate.open()
    soon(lambda: not client.asking.turns)
    assert gate.passed <= 4  # the pass that was under way is the last
    assert browser.run(STATUS) == ["stopped"]
    assert browser.run("return document.getElementById('submit').disabled") is False
