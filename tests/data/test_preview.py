"""Preview: what is shown is what the tokens say, in the right colours, and safe for a terminal."""

import io
from itertools import pairwise

import pytest
from rich.console import Console

from data import Example, PromptTemplate, Record, build_examples, example_text, histogram, print_preview, supervise
from data.preview import CUT_STYLE, PROMPT_STYLE, TARGET_STYLE, length_buckets

SHORT = PromptTemplate.named("alpaca_short")


def styled(text, style):
    return "".join(text.plain[span.start : span.end] for span in text.spans if span.style == style)


def test_supervised_text_is_highlighted(toy):
    record = Record("Answer.", "What is fever?", "High\ttemperature.\nOften.")
    text = example_text(supervise(record, SHORT, toy, max_length=999), toy)
    prompt = SHORT.render(record.instruction, record.input)
    assert text.plain == f"<s>{prompt}{record.output}</s>"
    assert styled(text, TARGET_STYLE) == record.output
    assert styled(text, PROMPT_STYLE) == prompt


def test_training_on_the_prompt_highlights_it(toy):
    record = Record("Answer.", "", "Yes.")
    text = example_text(supervise(record, SHORT, toy, max_length=999, train_on_prompt=True), toy)
    assert styled(text, TARGET_STYLE) == SHORT.render("Answer.") + "Yes."


def test_a_cut_is_visible(toy):
    example = supervise(Record("Answer.", "", "x" * 99), SHORT, toy, max_length=70)
    text = example_text(example, toy)
    assert text.plain.endswith("xxx ✂ cut") and styled(text, CUT_STYLE) == " ✂ cut"


def test_control_characters_do_not_reach_the_terminal(toy):
    example = supervise(Record("Q\x1b]0;title\x07", "", "\x1b[31mred[bold]\x9b1m"), SHORT, toy, max_length=999)
    stream = io.StringIO()
    Console(file=stream, width=80).print(example_text(example, toy))
    assert not set("\x1b\x07\x9b") & set(stream.getvalue())
    assert r"\x1b[31mred[bold]" in stream.getvalue(), "shown as text, rich's own markup included"


def test_a_character_cut_by_the_boundary_is_shown_once():
    class Bytes:
        """One token per UTF-8 byte: a run can end inside a character."""

        bos_id, eos_id = 1, 2

        def decode(self, token_ids):
            return bytes(i - 3 for i in token_ids if i > 2).decode("utf-8", errors="replace")

    ids = [3 + byte for byte in "aé".encode()]
    assert example_text(Example([1, *ids, 2], [False, False, False, True, True]), Bytes()).plain.count("é") == 1


def test_buckets_cover_every_row_and_mark_the_window():
    lengths = [1, 32, 33, 255, 256, 257, 512, 513, 3779]
    buckets = length_buckets(lengths, 256)
    assert sum(count for _, _, count in buckets) == len(lengths)
    assert buckets[0] == (1, 32, 2) and (225, 256, 2) in buckets and (257, 512, 2) in buckets
    assert buckets[-1] == (2049, 4096, 1)
    assert all(later[0] == earlier[1] + 1 for earlier, later in pairwise(buckets))


@pytest.mark.parametrize("window", [2, 7, 8, 9, 250])
def test_buckets_of_odd_windows(window):
    buckets = length_buckets([window, window + 1], window)
    assert sum(count for low, high, count in buckets if high <= window) == 1
    assert sum(count for low, high, count in buckets if low > window) == 1


def test_histogram_scales_its_bars():
    table = histogram([3] * 40 + [9] * 20 + [12], 8)
    bars = list(table.columns[2].cells)
    assert max(len(bar.plain) for bar in bars) == 40 and bars[-1].style == CUT_STYLE


def test_the_whole_preview(toy):
    records = [Record("Answer.", "", "Yes."), Record("Answer.", "", "x" * 99, "cards", 2), Record("A", "", "")]
    examples, report = build_examples(records, SHORT, toy, max_length=70, progress=False)
    stream = io.StringIO()
    print_preview(examples, report, toy, max_length=70, show=1, console=Console(file=stream, width=100))
    shown = stream.getvalue()
    assert "example 1: " in shown and "example 2" not in shown
    assert "2 of 3 rows kept" in shown and "1 rows cut at the window's end (cards:2)" in shown
    assert "1 rows dropped, the output is empty (record:3)" in shown
