"""Supervision: the boundary on the joint encoding, windows, reports; by hand, as properties, and on real rows."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Example, PromptTemplate, Record, build_examples, load_records, supervise
from llama.tokenizer import Tokenizer

COLON = PromptTemplate("colon", "{instruction}{input}:", "{instruction}:", response_split=":")
SPACE = PromptTemplate("space", "{instruction}{input}: ", "{instruction}: ", response_split=":")


def targets(example, tokenizer):
    return tokenizer.decode([i for i, counts in zip(example.token_ids, example.supervised, strict=True) if counts])


def test_by_hand(toy):
    example = supervise(Record("Q", "", "ab"), COLON, toy, max_length=99)
    assert example.token_ids == [1, *(3 + ord(c) for c in " Q:ab"), 2]
    assert example.supervised == [False] * 4 + [True] * 3


def test_no_stray_prefix_before_the_answer(toy):
    """Encoded apart, the answer would begin with the dummy prefix's token."""
    record = Record("Q", "", "ab")
    apart = toy.encode("Q:", bos=True) + toy.encode("ab", eos=True)
    joint = supervise(record, COLON, toy, max_length=99)
    assert 3 + ord(" ") in apart[2:] and joint.token_ids == toy.encode("Q:ab", bos=True, eos=True) != apart


@pytest.mark.parametrize(("template", "output", "shared"), [(COLON, "-ab", ":-"), (SPACE, "Ab", ": A")])
def test_a_token_across_the_boundary_belongs_to_the_answer(toy, template, output, shared):
    example = supervise(Record("Q", "", output), template, toy, max_length=99)
    assert targets(example, toy) == shared + output[1:]


@pytest.mark.parametrize("add_bos", [True, False])
def test_training_on_the_prompt_supervises_all_but_the_first(toy, add_bos):
    example = supervise(Record("Q", "in", "ab"), COLON, toy, max_length=99, train_on_prompt=True, add_bos=add_bos)
    assert example.supervised == [False] + [True] * (len(example) - 1)


def test_begin_and_end_of_text_can_be_left_out(toy):
    example = supervise(Record("Q", "", "ab"), COLON, toy, max_length=99, add_bos=False, add_eos=False)
    assert example.token_ids == toy.encode("Q:ab")
    assert example.supervised == [False, False, False, True, True]


def test_a_cut_answer_has_no_end_of_text(toy):
    """Full length is 7: at 7 it fits, at 6 only the end-of-text is lost, at 5 an answer token is left, at 4 none."""
    record = Record("Q", "", "ab")
    full = supervise(record, COLON, toy, max_length=7).token_ids
    assert full[-1] == 2
    for window in (6, 5):
        example = supervise(record, COLON, toy, max_length=window)
        assert example.token_ids == full[:window] and 2 not in example.token_ids
        assert sum(example.supervised) == window - 4
    assert supervise(record, COLON, toy, max_length=4) is None


@pytest.mark.parametrize("output", ["", "  \n"])
def test_an_empty_answer_gives_no_example(toy, output):
    for train_on_prompt in (True, False):
        record = Record("Q", "", output)
        assert supervise(record, COLON, toy, max_length=99, train_on_prompt=train_on_prompt) is None


def test_the_first_token_is_never_a_target():
    """Prompt and answer in one token: the end of the text is all there is to predict."""

    class OneToken:
        def encode(self, text, *, bos=False, eos=False):
            return [1] * bos + [100 + len(text)] + [2] * eos

    example = supervise(Record("Q", "", "ab"), COLON, OneToken(), max_length=9, add_bos=False)
    assert example.supervised == [False, True]
    assert supervise(Record("Q", "", "ab"), COLON, OneToken(), max_length=9, add_bos=False, add_eos=False) is None


def test_a_window_needs_two_tokens(toy):
    with pytest.raises(ValueError, match="max_length=1"):
        supervise(Record("Q", "", "ab"), COLON, toy, max_length=1)
    with pytest.raises(ValueError, match="max_length=1"):
        build_examples([Record("Q", "", "ab")], COLON, toy, max_length=1)


def test_an_example_needs_one_mark_per_token():
    with pytest.raises(ValueError, match="2 tokens and 1 supervision marks"):
        Example([1, 2], [True])
    with pytest.raises(ValueError, match="0 tokens"):
        Example([], [])


text = st.text("AQ:- ing\u00e9", min_size=0, max_size=8)


@given(instruction=text, output=text, window=st.integers(2, 30), on_prompt=st.booleans(), bos=st.booleans())
def test_properties(toy, instruction, output, window, on_prompt, bos):
    record = Record(instruction, "", output)
    full = toy.encode(f"{instruction}:{output}", bos=bos, eos=True)
    example = supervise(record, COLON, toy, max_length=window, train_on_prompt=on_prompt, add_bos=bos)
    if example is None:
        prompt = toy.encode(f"{instruction}:", bos=bos)
        assert not output.strip() or len(prompt) >= window
        return
    assert example.token_ids == full[:window]
    assert any(example.supervised) and not example.supervised[0]
    assert example.supervised == sorted(example.supervised), "one prompt, then one answer"
    if len(full) <= window and not on_prompt:
        ids = [i for i, counts in zip(example.token_ids, example.supervised, strict=True) if counts]
        answer = toy.decode([3 + ord(" "), *ids])  # the prefix for decode to take off, so that the answer keeps its own
        assert answer in (output, ":" + output), "the answer, or the answer with the prompt's last character"


def test_report_counts_and_names_what_was_lost(toy):
    records = [
        Record("Q", "", "ab", "cards", 1),
        Record("Q", "", " ", "cards", 2),
        Record("Q", "", "abcdefgh", "cards", 3),
        Record("QQQQQQQQ", "", "ab", "cards", 4),
        *(Record("Q", "", "") for _ in range(4)),
    ]
    examples, report = build_examples(records, COLON, toy, max_length=8, progress=False)
    assert [example.token_ids for example in examples] == [
        supervise(record, COLON, toy, max_length=8).token_ids for record in (records[0], records[2])
    ]
    assert (report.rows, report.kept, report.truncated, report.prompt_only) == (8, 2, 1, 0)
    assert (report.dropped_empty_output, report.dropped_prompt_too_long) == (5, 1)
    assert report.rows == report.kept + report.dropped_empty_output + report.dropped_prompt_too_long
    assert (report.tokens, report.supervised_tokens, report.full_lengths) == (7 + 8, 3 + 4, (7, 13, 14))
    assert report.lines() == [
        "2 of 8 rows kept: 15 tokens, 7 supervised",
        "1 rows cut at the window's end (cards:3)",
        "5 rows dropped, the output is empty (cards:2, record:5, record:6, ...)",
        "1 rows dropped, the prompt alone fills the window (cards:4)",
    ]


@pytest.mark.parametrize(("prompt_tokens", "prompt_only"), [(7, 0), (8, 1), (9, 1)])
def test_training_on_the_prompt_reports_rows_that_lost_their_answer(toy, prompt_tokens, prompt_only):
    """The prompt is <s>, the dummy prefix, the Qs and the colon."""
    records = [Record("Q" * (prompt_tokens - 3), "", "ab"), Record("Q", "", "ab")]
    examples, report = build_examples(records, COLON, toy, max_length=8, train_on_prompt=True, progress=False)
    assert len(examples) == 2
    assert (report.truncated, report.prompt_only, report.dropped_prompt_too_long) == (1, prompt_only, 0)


def test_a_row_that_fills_the_window_exactly_is_not_cut(toy):
    _, report = build_examples([Record("Q", "", "ab")], COLON, toy, max_length=7, progress=False)
    assert (report.full_lengths, report.truncated, report.tokens) == ((7,), 0, 7)


def test_nothing_left_to_train_on(toy):
    records = [Record("QQQQQQQQ", "", "ab", "cards", 1), Record("Q", "", "", "cards", 2)]
    with pytest.raises(ValueError, match=r"nothing to train on at max_length=8: .*cards:2.*cards:1.*raise max_length"):
        build_examples(records, COLON, toy, max_length=8, progress=False)


# --- The real tokenizer on the real rows ---------------------------------------------------------------------------


@pytest.fixture
def real_rows(real_data):
    """(tokenizer, the 5,942 patient information rows)."""
    tokenizer = Tokenizer(real_data / "llama-tokenizer" / "tokenizer.model")
    return tokenizer, load_records(real_data / "medical_meadow" / "medical_meadow_small.json")


@pytest.mark.parametrize(
    ("settings", "truncated", "tokens", "supervised"),
    [
        ({}, 1049, 981_640, 552_369),
        # MedAlpaca's own settings: no begin-of-text, loss on the prompt too.
        ({"add_bos": False, "train_on_prompt": True}, 1038, 976_747, 970_805),
    ],
)
def test_real_rows_in_medalpacas_window(real_rows, settings, truncated, tokens, supervised):
    tokenizer, records = real_rows
    examples, report = build_examples(
        records, PromptTemplate.named("medalpaca"), tokenizer, max_length=256, progress=False, **settings
    )
    assert (report.rows, report.kept, report.truncated) == (5942, 5942, truncated)
    assert (report.tokens, report.supervised_tokens) == (tokens, supervised)
    ends = Counter(example.token_ids[-1] == tokenizer.eos_id for example in examples)
    assert ends == {True: 5942 - truncated, False: truncated}, "every whole row ends by id, no cut row does"


@pytest.mark.parametrize("name", ["medalpaca", "alpaca_legacy", "context_question"])
def test_real_targets_decode_to_the_output(real_rows, name):
    """The legacy prompt ends at the colon; two answers are lists, and ":-" is one piece of the vocabulary."""
    tokenizer, records = real_rows
    template = PromptTemplate.named(name)
    across = 0
    for record in records:
        example = supervise(record, template, tokenizer, max_length=10_000)
        assert example.token_ids[-1] == tokenizer.eos_id and example.supervised[-1]
        answer = targets(example, tokenizer)
        across += answer == ":" + record.output
        assert answer in (record.output, ":" + record.output)
    assert across == (2 if name == "alpaca_legacy" else 0)


def test_the_text_of_end_of_text_is_only_text(real_rows):
    tokenizer, _ = real_rows
    example = supervise(Record("Q", "", "a</s>b"), PromptTemplate.named("alpaca"), tokenizer, max_length=256)
    assert example.token_ids.count(tokenizer.eos_id) == 1
    assert targets(example, tokenizer) == "a</s>b"
