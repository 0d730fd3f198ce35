"""The text objective: documents of files, windows in which every token is predicted once."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import load_texts, text_examples


def test_paragraphs_and_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffOne.\r\nStill one.\r\n\r\nTwo.\n \n\n\nThree.\n".encode())
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "Four.\n\nStill four.", "id": 3}) + "\n")
    texts = load_texts([tmp_path / "a.txt", tmp_path / "b.jsonl"])
    assert texts == ["One.\nStill one.", "Two.", "Three.", "Four.\n\nStill four."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}', r'a\.jsonl, line 2: the key "text" is missing'),
        ("a.jsonl", b'{"text": null}', r'a\.jsonl, line 1: "text" is null'),
        ("a.txt", b"a\n\xff", r"a\.txt, line 2: byte 0xff"),
        ("a.txt", b"abcde\nf\0b", r"a\.txt, line 2: the text holds a NUL at character 1"),
        ("a.txt", b" \n\n ", r"a\.txt: holds no text"),
        ("a.csv", b"x", r"a\.csv: plain text comes from \.txt or \.jsonl"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_texts([path])


@given(texts=st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=4), window=st.integers(2, 12))
def test_every_token_after_the_first_is_a_target_once(toy, texts, window):
    examples = text_examples(texts, toy, max_length=window)
    assert all(2 <= len(example) <= window for example in examples)
    assert all(example.supervised == [False] + [True] * (len(example) - 1) for example in examples)
    whole = [toy.encode(text, bos=True, eos=True) for text in texts]
    predicted = [token for example in examples for token in example.token_ids[1:]]
    assert predicted == [token for ids in whole for token in ids[1:]]
    contexts = [tuple(example.token_ids[:2]) for example in examples]
    pairs = {pair for ids in whole for pair in pairwise(ids)}
    assert set(contexts) <= pairs, "a window begins with the token before its first target"


def test_refusals(toy):
    with pytest.raises(ValueError, match="max_length=1"):
        text_examples(["abc"], toy, max_length=1)
    with pytest.raises(ValueError, match="no texts"):
        text_examples([], toy, max_length=8)
