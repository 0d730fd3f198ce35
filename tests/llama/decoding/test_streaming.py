"""Streamed text: whole characters only, joined equal to decode, cut at the first stop string wherever it is split."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import train_tokenizer

from llama.decoding import stream_text
from llama.tokenizer import SPACE, Tokenizer

unicode_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=SPACE), max_size=40)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(train_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@given(unicode_text, st.booleans())
def test_pieces_join_to_the_decoded_text(tokenizer: Tokenizer, text: str, continues: bool) -> None:
    ids = tokenizer.encode(text, bos=True, eos=True)
    pieces = list(stream_text(tokenizer, ids, continues=continues))
    assert "".join(pieces) == tokenizer.decode(ids, continues=continues)
    assert "" not in pieces


def test_never_splits_a_character(tokenizer: Tokenizer) -> None:
    text = "fever 🦙🫀 한 e\u0301"
    pieces = list(stream_text(tokenizer, tokenizer.encode(text)))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert len(tokenizer.encode("🦙")) == 5  # ▁ and four bytes, and yet one piece of text:
    assert list(stream_text(tokenizer, tokenizer.encode("🦙"))) == ["🦙"]


def test_text_comes_as_early_as_it_is_certain(tokenizer: Tokenizer) -> None:
    """After each id, exactly what no later id can change is out."""
    ids = tokenizer.encode("the patient 🦙 rests ## and ### wheezes")
    pieces: list[str] = []
    out_before_next_id: list[str] = []

    def source() -> Iterator[int]:
        for token_id in ids:
            out_before_next_id.append("".join(pieces))
            yield token_id

    for piece in stream_text(tokenizer, source(), ["###"]):
        pieces.append(piece)
    assert len(out_before_next_id) > 15
    for n, out in enumerate(out_before_next_id):
        decoded = tokenizer.decode(ids[:n]).rstrip("\ufffd")
        assert out == (decoded[:-2] if decoded.endswith("##") else decoded.removesuffix("#"))


@given(text=unicode_text, data=st.data())
def test_cut_at_the_first_stop_string(tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    substrings = st.tuples(st.integers(0, len(text)), st.integers(1, 6)).map(lambda cut: text[cut[0] : sum(cut)])
    stops = [stop for stop in data.draw(st.lists(substrings | st.sampled_from(["###", "zz"]), max_size=3)) if stop]
    wanted = text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
    assert "".join(stream_text(tokenizer, tokenizer.encode(text), stops)) == wanted


@pytest.mark.parametrize(
    ("text", "stops", "wanted"),
    [
        ("Rest. ### Instruction: next", ["### Instruction:"], "Rest. "),
        ("#### Instr", ["### Instruction:"], "#### Instr"),  # a beginning that comes to nothing is text
        ("aab", ["ab"], "a"),  # the held-back tail "a" must not hide the match that begins in it
        ("abcx", ["bcd", "abx", "c"], "ab"),
        ("abc", ["bcd", "c"], "ab"),
        ("abcd", ["bcd", "abx", "c"], "a"),  # the one that begins first, although "c" is complete before "bcd"
        ("###", ["###"], ""),
        ("", ["###"], ""),
    ],
)
def test_stop_strings_by_hand(tokenizer: Tokenizer, text: str, stops: list[str], wanted: str) -> None:
    assert "".join(stream_text(tokenizer, tokenizer.encode(text), stops)) == wanted


def test_no_id_is_taken_after_the_stop(tokenizer: Tokenizer) -> None:
    before, after = tokenizer.encode("It is gout. STOP"), tokenizer.encode(" more")
    source = iter(before + after)
    assert "".join(stream_text(tokenizer, source, ["STOP"])) == "It is gout. "
    assert list(source) == after


def test_incomplete_character_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("gout 🦙")[:-1]
    assert "".join(stream_text(tokenizer, ids)) == tokenizer.decode(ids) == "gout \ufffd"


@pytest.mark.parametrize(("stops", "message"), [("###", r"give a list, \['###'\]"), (["a", ""], "empty string")])
def test_senseless_stop_strings_fail_at_the_call(tokenizer: Tokenizer, stops: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream_text(tokenizer, [], stops)
