"""Tokenizers that are none: cut, flipped, of another format, with pieces that are no text; and ids that are none."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import train_tokenizer

from files import DamagedFileError, UnsafeFileError
from llama.tokenizer import LARGEST_FILE, Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer")).read_bytes()


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer: a whole number, or a length and bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    low = value & 127
    return bytes([low]) if value < 128 else bytes([low | 128]) + varint(value >> 7)


def piece(text: bytes, kind: int = NORMAL) -> bytes:
    return field(1, field(1, text) + field(3, kind))


SPECIAL = piece(b"<unk>", UNKNOWN) + piece(b"<s>", CONTROL) + piece(b"</s>", CONTROL)
BPE = field(2, field(3, 2))  # the trainer's settings: model type BPE
REFUSED = {
    "empty": b"",
    "zeros": bytes(499_723),
    "ones": b"\xff" * 499_723,
    "tokenizer.json": json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}}}).encode(),
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:9e556afd\nsize 499723\n",
    "HTML": b"<!DOCTYPE html><html><body>404: Not Found</body></html>",
    "no unknown piece": piece(b"a") + BPE,
    "two unknown pieces": SPECIAL + piece(b"<u>", UNKNOWN) + BPE,
    "duplicate pieces": SPECIAL + piece(b"a") + piece(b"a") + BPE,
    "duplicate control pieces": SPECIAL + piece(b"<s>", CONTROL) + BPE,
    "an empty piece": SPECIAL + piece(b"") + BPE,
    "a byte piece of no byte": SPECIAL + piece(b"<0xGG>", BYTE) + BPE,
    "a byte piece alone": SPECIAL + piece(b"<0x0A>", BYTE) + field(2, field(3, 2) + field(35, 1)),
    "a piece that is not UTF-8": SPECIAL + piece(b"\xff\xfe") + BPE,
    "half a character": SPECIAL + piece(b"\xe2\x96") + BPE,
    "an unknown kind of piece": SPECIAL + field(1, field(1, b"a") + field(3, 99)) + piece(b"a") + BPE,
    "a length beyond the end": SPECIAL + b"\x0a\xff\xff\xff\x7f" + b"a",
    "a number without end": SPECIAL + b"\xff" * 100,
    "normalisation by noise": SPECIAL + piece(b"a") + BPE + field(3, field(2, bytes(range(256)) * 5)),
    "normalisation beyond the end": SPECIAL + piece(b"a") + BPE + field(3, field(2, b"\xff\xff\xff\x7f" + bytes(64))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_tokenizer_is_refused(case: str, tmp_path: Path, survives: Callable, count_faults: Callable) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(REFUSED[case])
    assert not survives(lambda: Tokenizer(tmp_path), file)
    with pytest.raises(DamagedFileError, match=r"tokenizer\.model: .*; copy the model's tokenizer\.model"):
        Tokenizer(tmp_path)
    count_faults("tokenizers that are none")


def test_a_sound_one_of_the_same_making_is_read(tmp_path: Path) -> None:
    """The cases above fail for what is wrong with them alone."""
    letters = b"".join(piece(letter.encode()) for letter in "\u2581abc")
    (tmp_path / "tokenizer.model").write_bytes(SPECIAL + letters + BPE)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("abc cab")) == "abc cab"


def test_a_file_cut_anywhere_is_refused_or_another_sound_one(
    content: bytes, tmp_path: Path, survives: Callable, count_faults: Callable
) -> None:
    """A protocol buffer cut between two fields is one of fewer fields: its pieces are then fewer, and ids would be
    wrong only beyond them, which the embedding's size tells."""
    file = tmp_path / "tokenizer.model"
    whole = len(content)
    ends = sorted({whole * sixteenth // 16 for sixteenth in range(16)} | set(range(0, whole, 37)) | {whole - 1})
    refused = 0
    for end in ends:
        file.write_bytes(content[:end])
        refused += not survives(lambda: Tokenizer(tmp_path), file)
        count_faults("tokenizers cut")
    assert refused > 0.9 * len(ends)


def test_a_gigabyte_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.model").open("wb") as sparse:
        sparse.truncate(LARGEST_FILE + 1)
    with pytest.raises(UnsafeFileError, match=r"64,000,001 bytes, more than the 64,000,000 read"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("token_id", [-1, -(2**63), 330, 2**31, 2**64, 10**30])
def test_an_id_that_is_none_is_refused(content: bytes, tmp_path: Path, token_id: int, count_faults: Callable) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=rf"token id {token_id} is outside the vocabulary of 330"):
        Tokenizer(tmp_path).decode([5, token_id])
    count_faults("token ids out of range")


FLIPS = """
import sys
from pathlib import Path
from files import FileError
from llama.tokenizer import Tokenizer

file = Path(sys.argv[1])
content, refused, tried = file.read_bytes(), 0, 0
for bit in range(0, 8 * len(content), int(sys.argv[2])):
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    file.write_bytes(flipped)
    tried += 1
    try:
        tokenizer = Tokenizer(file)
        tokenizer.decode(tokenizer.encode("The patient wheezes, \\0 한국어."))
    except FileError:
        refused += 1
print(tried, refused)
"""


@pytest.mark.parametrize("options", [{}, {"normalization_rule_name": "nmt_nfkc"}], ids=["LLaMA's", "normalising"])
def test_flipped_bits_never_take_the_process_down(options: dict, tmp_path: Path, count_faults: Callable) -> None:
    """SentencePiece is C++: every 53rd bit, in a process of its own; of a normalising one (240 KB) every 5003rd."""
    file = train_tokenizer(tmp_path, **options)
    step = "5003" if options else "53"
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, str(file), step],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    tried, refused = map(int, done.stdout.split())
    assert 0 < refused < tried
    count_faults("tokenizers with a flipped bit", tried)
