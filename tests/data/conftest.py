"""A tokenizer small enough to check by hand, with the two habits that make the answer's boundary hard to find."""

import pytest


class ToyTokenizer:
    """Greedy longest match over single characters and a few merges, with SentencePiece's dummy prefix.

    The dummy prefix: a space in front of every text, so that encode(a) + encode(b) != encode(a + b).
    The merges: ": A", ":-" and "ing" are one token each, so that a token can span prompt and answer.
    Ids: 0 unknown, 1 begin, 2 end of text, 3 + code point for a character, beyond these the merges.
    """

    bos_id, eos_id = 1, 2
    MERGES = (": A", ":-", "ing")
    FIRST_MERGE = 0x110000 + 3

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        ids, rest = [1] * bos, " " + text
        while rest:
            merge = next((m for m in self.MERGES if rest.startswith(m)), None)
            ids.append(self.FIRST_MERGE + self.MERGES.index(merge) if merge else 3 + ord(rest[0]))
            rest = rest[len(merge or rest[0]) :]
        return ids + [2] * eos

    def decode(self, token_ids: list[int]) -> str:
        pieces = [
            self.MERGES[i - self.FIRST_MERGE] if i >= self.FIRST_MERGE else chr(i - 3) for i in token_ids if i > 2
        ]
        return "".join(pieces).removeprefix(" ")


@pytest.fixture(scope="session")
def toy() -> ToyTokenizer:
    return ToyTokenizer()
