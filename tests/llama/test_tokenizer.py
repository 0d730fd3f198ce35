"""The tokenizer: trained ids, exact round trips, the rules about spaces, and the real LLaMA vocabulary."""

import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import train_tokenizer

from files import UnsuitableFileError
from llama.tokenizer import SPACE, Tokenizer

TEXTS = [
    "",
    "a",
    " ",
    "   ",
    " leading",
    "   leading",
    "trailing ",
    "trailing   ",
    "two  spaces   three",
    "\t",
    "\n",
    "\n\n\t\r\n x \n",
    "\u00a0no-break\u2009thin\u2028line",
    "e\u0301 is not \u00e9",  # combining accent against precomposed letter: nothing may normalise one into the other
    "ﬁ ligature, Ａ full width, ½",
    "👩\u200d⚕️ 🦙🫀 한국어 हिन्दी العربية",
    "</s> <s> <unk> <0x0A> <pad>",
    "\ufeffbyte order mark",
    "a\0b",
    "\U0010ffff",
]
# Any text except what the round trip excludes by rule: surrogates (not text) and U+2581 (SentencePiece's space).
unicode_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=SPACE), max_size=60)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tiny(tiny_file: Path) -> Tokenizer:
    return Tokenizer(tiny_file)


def test_ids_as_trained(tiny: Tokenizer) -> None:
    assert (tiny.unk_id, tiny.bos_id, tiny.eos_id) == (0, 1, 2)
    assert tiny.vocab_size == 330


def test_padding_never_invents_a_token(tiny: Tokenizer, tmp_path: Path) -> None:
    assert tiny.pad_id == tiny.unk_id < tiny.vocab_size
    with_pad = Tokenizer(train_tokenizer(tmp_path, pad_id=3))
    assert with_pad.pad_id == 3
    assert with_pad.decode([3, *with_pad.encode("a pad"), 3]) == "a pad"


def test_directory_or_file(tiny_file: Path) -> None:
    assert Tokenizer(tiny_file.parent).encode("asthma") == Tokenizer(str(tiny_file)).encode("asthma")


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tiny: Tokenizer, text: str) -> None:
    assert tiny.decode(tiny.encode(text)) == text
    assert tiny.decode(tiny.encode(text, bos=True, eos=True)) == text


@given(unicode_text)
def test_round_trip_of_any_text(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode(text)
    assert tiny.decode(ids) == text
    assert tiny.unk_id not in ids  # byte fallback spells everything


@given(unicode_text)
def test_decode_is_sentencepieces(tiny: Tokenizer, tiny_file: Path, text: str) -> None:
    peer = sentencepiece.SentencePieceProcessor(model_file=str(tiny_file))
    ids = tiny.encode(text)
    assert ids == peer.encode(text)
    assert tiny.decode(ids) == peer.decode(ids)


def test_control_ids_come_from_the_flags_only(tiny: Tokenizer) -> None:
    plain = tiny.encode("asthma")
    assert tiny.encode("asthma", bos=True) == [1, *plain]
    assert tiny.encode("asthma", eos=True) == [*plain, 2]
    assert tiny.encode("", bos=True, eos=True) == [1, 2]
    assert not {0, 1, 2} & set(tiny.encode("<s>asthma</s><unk>"))


def test_control_and_padding_ids_are_dropped(tiny: Tokenizer) -> None:
    ids = tiny.encode("the patient")
    assert tiny.decode([0, 0, 1, *ids[:2], 2, *ids[2:], 2, 0]) == "the patient"
    assert tiny.decode([]) == tiny.decode([1]) == ""


def test_one_dummy_prefix_in_one_out(tiny: Tokenizer) -> None:
    """Rule 1: exactly one ▁ is added, exactly one dropped."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tiny._processor.serialized_model_proto())
    for spaces in range(4):
        text = " " * spaces + "patient"
        assert "".join(pieces.id_to_piece(tiny.encode(text))) == SPACE * (spaces + 1) + "patient"


def test_texts_do_not_concatenate(tiny: Tokenizer) -> None:
    """Rule 2: encoding prompt and answer apart inserts a space that nobody wrote."""
    apart = tiny.encode("Response:\n") + tiny.encode("asthma")
    assert tiny.decode(apart) == "Response:\n asthma"
    assert tiny.encode("Response:\nasthma") != apart


def test_continuation_keeps_its_leading_space(tiny: Tokenizer) -> None:
    """Rule 3: the text of a prompt's ids and that of the ids after it join to the whole."""
    text = "What is gout? It is treated."
    ids = tiny.encode(text)
    for cut in range(1, len(ids)):
        assert tiny.decode(ids[:cut]) + tiny.decode(ids[cut:], continues=True) == text
    space_first = tiny.encode("gout is")[1:]
    assert tiny.decode(tiny.encode(" is")[1:], continues=True) == " is"
    assert tiny.decode(space_first) == tiny.decode(space_first, continues=True).lstrip(" ")


def test_the_one_character_that_does_not_survive(tiny: Tokenizer) -> None:
    assert tiny.decode(tiny.encode(f"a{SPACE}b")) == "a b"


def test_broken_utf8_becomes_replacement_characters(tiny: Tokenizer) -> None:
    emoji = tiny.encode("🦙")
    assert tiny.decode(emoji[:-1]) == "\ufffd"
    assert tiny.decode([*emoji[:-1], *tiny.encode("gout")]) == "\ufffd gout"


def test_no_byte_fallback_loses_unknown_characters(tmp_path: Path) -> None:
    """Not a LLaMA tokenizer, and documented as the exception: what it cannot represent, it drops."""
    tokenizer = Tokenizer(train_tokenizer(tmp_path, byte_fallback=False, vocab_size=90))
    assert tokenizer.encode("🦙")[-1] == tokenizer.unk_id
    assert tokenizer.decode(tokenizer.encode("the 🦙 rests")) == "the  rests"


def test_without_dummy_prefix(tmp_path: Path) -> None:
    tokenizer = Tokenizer(train_tokenizer(tmp_path, add_dummy_prefix=False))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["\ud800", "half \udc00 of a pair"])
def test_lone_surrogate_is_refused(tiny: Tokenizer, text: str) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate U\+D[8C]00 at character \d"):
        tiny.encode(text)


@pytest.mark.parametrize("token_id", [-1, 330, 10**12])
def test_foreign_id_is_refused(tiny: Tokenizer, token_id: int) -> None:
    with pytest.raises(ValueError, match=rf"token id {token_id} is outside the vocabulary of 330"):
        tiny.decode([5, token_id])


def test_missing_control_id_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(train_tokenizer(tmp_path, bos_id=-1, eos_id=1))
    assert tokenizer.bos_id == -1
    with pytest.raises(ValueError, match="trained without bos"):
        tokenizer.encode("asthma", bos=True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:9e556afd",
        b'{"model": {"type": "BPE"}}',
        b"\0" * 99,
    ],
    ids=["empty", "git-lfs", "tokenizer.json", "zeros"],
)
def test_wrong_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.model.*copy"):
        Tokenizer(tmp_path)


def test_cut_file_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiny_file.read_bytes()[:-50])
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "it holds no tokenizer.model"),
        ("nowhere", "nowhere: there is no such file or directory"),
        ("nowhere.model", "nowhere.model: there is no such file or directory"),
    ],
)
def test_missing_file_is_refused(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(UnsuitableFileError, match=rf"{problem}; give the SentencePiece model"):
        Tokenizer(tmp_path / name)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").mkdir()
    with pytest.raises(UnsuitableFileError, match=r"tokenizer\.model: it is a directory"):
        Tokenizer(tmp_path)


def test_real_llama_vectors(real_data: Path) -> None:
    tokenizer = Tokenizer(real_data / "llama-tokenizer")
    ids = (tokenizer.vocab_size, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert ids == (32_000, 0, 1, 2, 0)
    cases = json.loads((real_data / "llama-tokenizer" / "vectors.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 30
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["text"]


@pytest.mark.parametrize("folder", ["llama-tokenizer", "stories260K"])
def test_real_tokenizers_round_trip_medical_meadow(real_data: Path, folder: str) -> None:
    tokenizer = Tokenizer(real_data / folder)
    file = real_data / "medical_meadow" / "medical_meadow_small.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert len(rows) == 5942
    for row in rows:
        for text in row.values():
            assert tokenizer.decode(tokenizer.encode(text)) == text
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
