"""Text to token ids and back, by a SentencePiece model (arXiv 1808.06226) with LLaMA's conventions.

The ids are those the model was trained with: in LLaMA unk 0, bos 1, eos 2, then 256 byte pieces, then the merges.
There is no pad id, and none is invented: `pad_id` is an id the embedding has.

Spaces. SentencePiece writes a space as ▁ (U+2581) and puts one more in front of the text, the *dummy prefix*, so that a
word has the same piece at the start of a text as within it. Three rules follow:

1. `encode` adds exactly one ▁ to a text that is not empty; `decode` drops exactly one if the first piece carries it.
   All other spaces, leading, trailing or repeated, are kept: `decode(encode(text)) == text`.
2. Texts do not concatenate: `encode(a) + encode(b)` holds a stray ▁ between the two. Encode a prompt and its answer as
   one string.
3. A continuation is not a text: what a model generates after a prompt has no dummy prefix, so a leading space there is
   a real one. Pass `continues=True` to keep it.

Characters without a piece become their UTF-8 bytes (byte fallback). Control ids come from `bos=` and `eos=` only: the
text "</s>" is four ordinary characters. What does not survive the round trip: U+2581 itself, which SentencePiece reads
as a space; with a model trained without byte fallback, unknown characters; with one trained to normalise, whatever
that changes.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from files import DamagedFileError, UnsafeFileError, UnsuitableFileError, require_regular_file, shown

SPACE = "\u2581"
"""How SentencePiece writes a space inside a piece."""
TOKENIZER_FILE = "tokenizer.model"
"""What the file is called that lies beside a checkpoint's weights."""
LARGEST_FILE = 64_000_000
"""Bytes; the largest published vocabularies (256,000 pieces) take 4 to 5 million."""
ANEW = f"copy the model's {TOKENIZER_FILE} (LLaMA's has 499,723 bytes)"


class Tokenizer:
    """A trained SentencePiece model.

    Args:
        path: the model file, or a directory that holds it as `tokenizer.model`.

    Attributes:
        vocab_size: number of ids V; every id is below it.
        bos_id, eos_id, unk_id: as trained; bos_id or eos_id is −1 where the model has none.
        pad_id: the trained pad id, or unk_id where there is none. `decode` drops it.

    Raises:
        UnsuitableFileError: no such file, or what is no regular file.
        DamagedFileError: not a whole SentencePiece model, or one whose pieces are no text.
        UnsafeFileError: larger than `LARGEST_FILE`.
    """

    def __init__(self, path: str | Path) -> None:
        file = _existing_file(Path(path))
        processor = _load(file)
        self._processor = processor
        self.vocab_size: int = processor.vocab_size()
        self.bos_id: int = processor.bos_id()
        self.eos_id: int = processor.eos_id()
        self.unk_id: int = processor.unk_id()
        self.pad_id: int = processor.pad_id() if processor.pad_id() >= 0 else self.unk_id
        try:
            self._pieces: list[str] = processor.id_to_piece(list(range(self.vocab_size)))
            self._bytes = [self._piece_bytes(token_id) for token_id in range(self.vocab_size)]
            # A normalisation may leave nothing of the letter.
            self._dummy_prefix = "".join(processor.encode("a", out_type=str)).startswith(SPACE)
        except (RuntimeError, ValueError) as error:  # a piece that is not UTF-8, a byte's that is not <0x00> to <0xFF>
            raise DamagedFileError(f"its pieces cannot be used ({error})", file=file, remedy=ANEW) from error

    def digest(self) -> str:
        """A short name for the model's content, wherever its file lies."""
        return hashlib.sha256(self._processor.serialized_model_proto()).hexdigest()[:16]

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of `text`, with the control ids asked for around them.

        Raises:
            ValueError: the text holds a lone surrogate, or the model has no bos or eos to add.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which "
                "UTF-8 cannot write: read the file with the right encoding, or drop the character"
            ) from None
        ids: list[int] = self._processor.encode(text)
        return self._control("bos", self.bos_id, bos) + ids + self._control("eos", self.eos_id, eos)

    def decode(self, ids: Iterable[int], *, continues: bool = False) -> str:
        """The text of `ids`, without control and padding ids. Bytes that are not UTF-8 become U+FFFD.

        Args:
            continues: the ids continue a prompt, so that a leading space is text and not the dummy prefix.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        return b"".join(self.decode_bytes(ids, continues=continues)).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, continues: bool = False) -> Iterator[bytes]:
        """The UTF-8 bytes of each id, one item per id and as soon as it is known; the source of any stream of text.

        An item may end within a character; a control or padding id gives an empty one.
        """
        strip = self._dummy_prefix and not continues
        for token_id in ids:
            token_id = int(token_id)  # from a tensor, too
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(
                    f"token id {token_id} is outside the vocabulary of {self.vocab_size}: "
                    "does this tokenizer belong to the model?"
                )
            piece = self._bytes[token_id]
            if strip and piece:
                strip = False
                if self._pieces[token_id].startswith(SPACE):
                    piece = piece[1:]
            yield piece

    def _piece_bytes(self, token_id: int) -> bytes:
        if token_id == self.pad_id or self._processor.is_control(token_id):
            return b""
        piece = self._pieces[token_id]
        if self._processor.is_byte(token_id):  # "<0x0A>"
            if not re.fullmatch("<0x[0-9A-F]{2}>", piece):
                raise ValueError(f"{shown(piece)} is said to be a byte")
            return bytes([int(piece[1:-1], base=16)])
        return piece.replace(SPACE, " ").encode("utf-8")

    @staticmethod
    def _control(name: str, token_id: int, wanted: bool) -> list[int]:
        if wanted and token_id < 0:
            raise ValueError(f"this tokenizer was trained without {name}: encode with {name}=False")
        return [token_id] if wanted else []


def _existing_file(path: Path) -> Path:
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.exists():
        raise UnsuitableFileError(
            f"it holds no {TOKENIZER_FILE}" if path.is_dir() else "there is no such file or directory",
            file=path,
            remedy=f"give the SentencePiece model (usually {TOKENIZER_FILE}) or its directory",
        )
    return file


def _load(file: Path) -> SentencePieceProcessor:
    if (size := require_regular_file(file)) > LARGEST_FILE:
        raise UnsafeFileError(f"it has {size:,} bytes, more than the {LARGEST_FILE:,} read", file=file, remedy=ANEW)
    try:
        processor = SentencePieceProcessor(model_proto=file.read_bytes())
        n_pieces = processor.vocab_size()
    except (RuntimeError, ValueError):
        raise DamagedFileError(
            f"its {size:,} bytes are not a SentencePiece model (nor is a tokenizer.json, or a Git LFS pointer)",
            file=file,
            remedy=ANEW,
        ) from None
    if n_pieces == 0:
        raise DamagedFileError("it holds no pieces: an empty or cut file", file=file, remedy=ANEW)
    return processor
