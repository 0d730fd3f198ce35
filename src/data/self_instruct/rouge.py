"""ROUGE-L between short texts, and of one text against many.

    F = 2 p r / (p + r),    p = L / |b|,    r = L / |a|

with L the length of the longest common subsequence of the tokens of a and b (Lin, *ROUGE*, 2004, section 3, β = 1).
Tokens are the runs of a-z and 0-9 in the lower-cased text, as in Google's `rouge_score` without its stemmer, whose F
these functions equal to the last bit; F is 0 where one side has no token.

`rouge_l_reference` fills the table. `RougeIndex` scores one text against a whole pool, bit-parallel (Hyyrö,
*Bit-parallel LCS-length computation revisited*, 2004): each text b of the pool is a number V of |b| bits, all ones at
first. For each token of a, with M the bits of the places where b has this token,

    V ← (V + (V & M)) | (V & ¬M)

and L is the number of zeros in the end. Where M = 0 nothing changes, so a token concerns only the texts that hold it:
an inverted index lists these with their M, and one step is a few numpy operations on that list. Nothing is pruned by
bounds, since the average that the pipeline stores needs every F.

Letters: N texts in the pool, k of them with a given token, W 64-bit words of a text's V.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 64
ALL_ONES = np.uint64(2**WORD_BITS - 1)
_TOKEN = re.compile("[a-z0-9]+")
_ONES_OF_16_BITS = np.array([number.bit_count() for number in range(2**16)], dtype=np.uint8)  # numpy 1 cannot count

Scores = NDArray[np.float64]


def rouge_tokens(text: str) -> list[str]:
    """The tokens that ROUGE compares.

    >>> rouge_tokens("Don't name 3 colours: naïve!")
    ['don', 't', 'name', '3', 'colours', 'na', 've']
    """
    return _TOKEN.findall(text.lower())


def rouge_l_reference(a: Sequence[str], b: Sequence[str]) -> float:
    """F of two lists of tokens, by the table L[i][j] of the first i and j tokens.

    >>> rouge_l_reference("name the four seasons".split(), "name four days".split())  # L = 2, p = 2/3, r = 2/4
    0.5714285714285715
    """
    row = [0] * (len(b) + 1)
    for token in a:
        above, row = row, [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if token == other else max(above[j + 1], row[j]))
    return float(_f_measure(np.array([row[-1]]), np.array([len(b)]), len(a))[0])


def most_similar(scores: Scores, n: int) -> list[int]:
    """Indices of the n largest scores, largest first; of equals the earlier.

    >>> most_similar(np.array([0.2, 0.5, 0.5, 0.1]), 2)
    [1, 2]
    """
    n = min(n, len(scores))
    if not n:
        return []
    least = np.partition(scores, -n)[-n]
    candidates = np.flatnonzero(scores >= least)  # more than n where several equal the least
    found: list[int] = candidates[np.argsort(-scores[candidates], kind="stable")][:n].tolist()
    return found


class RougeIndex:
    """A pool of texts that grows, against which one text is scored at once.

    >>> pool = RougeIndex(["Name the four seasons.", "Add two numbers."])
    >>> pool.scores("Name four days").round(3).tolist()
    [0.571, 0.0]
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._lengths = _Growing(np.int64)  # tokens of each text
        self._groups: dict[int, _Group] = {}  # by W
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._lengths.values)

    def add(self, text: str) -> None:
        """Put a text at the pool's end."""
        tokens = rouge_tokens(text)
        width = max(1, -(-len(tokens) // WORD_BITS))
        self._groups.setdefault(width, _Group(width)).add(len(self), tokens)
        self._lengths.append(len(tokens))

    def scores(self, text: str) -> Scores:
        """(N,) float64: F of the text and each of the pool, in the order of adding."""
        tokens = rouge_tokens(text)
        common = np.zeros(len(self), dtype=np.int64)  # L
        for group in self._groups.values():
            common[group.places.values] = group.common(tokens)
        return _f_measure(common, self._lengths.values, len(tokens))


class _Group:
    """The texts of a pool whose V takes W words."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.places = _Growing(np.int64)  # of the texts in the pool
        self._rows: dict[str, _Growing] = {}  # token -> (k,) which of the texts hold it
        self._masks: dict[str, list[_Growing]] = {}  # token -> W times (k,) their M, lowest word first

    def add(self, place: int, tokens: Sequence[str]) -> None:
        masks: dict[str, int] = {}
        for bit, token in enumerate(tokens):
            masks[token] = masks.get(token, 0) | 1 << bit
        row = len(self.places.values)
        self.places.append(place)
        for token, mask in masks.items():
            if token not in self._rows:
                self._rows[token] = _Growing(np.int64)
                self._masks[token] = [_Growing(np.uint64) for _ in range(self.width)]
            self._rows[token].append(row)
            for word, words in enumerate(self._masks[token]):
                words.append(mask >> WORD_BITS * word & (2**WORD_BITS - 1))

    def common(self, tokens: Sequence[str]) -> NDArray[np.int64]:
        """L of the tokens and each text of the group."""
        v = [np.full(len(self.places.values), ALL_ONES) for _ in range(self.width)]
        for token in tokens:
            if token in self._rows:
                self._step(v, self._rows[token].values, self._masks[token])
        return sum((_zeros(word) for word in v), start=np.zeros(len(self.places.values), dtype=np.int64))

    def _step(self, v: list[NDArray[np.uint64]], rows: NDArray[np.int64], masks: "list[_Growing]") -> None:
        """V ← (V + (V & M)) | (V & ¬M) in the given rows; a sum that leaves its word goes on in the next."""
        carry = np.zeros(len(rows), dtype=np.uint64)
        for word in range(self.width):
            before, mask = v[word][rows], masks[word].values  # (k,)
            total = before + (before & mask)
            if word:
                overflow = total < before
                total += carry
                carry = (overflow | (total < carry)).astype(np.uint64)
            elif self.width > 1:
                carry = (total < before).astype(np.uint64)
            v[word][rows] = total | (before & ~mask)


class _Growing:
    """An array that is appended to; its capacity doubles."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._values: NDArray[Any] = np.empty(2, dtype=dtype)
        self._count = 0

    @property
    def values(self) -> NDArray[Any]:
        return self._values[: self._count]

    def append(self, value: int) -> None:
        if self._count == len(self._values):
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
        self._values[self._count] = value
        self._count += 1


def _zeros(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(N,) int64: bits of each word that are 0."""
    parts = _ONES_OF_16_BITS[(~words).view(np.uint16)].reshape(len(words), WORD_BITS // 16)
    return parts.sum(axis=1, dtype=np.int64)


def _f_measure(common: NDArray[np.int64], lengths: NDArray[np.int64], length: int) -> Scores:
    """F from L, |b| and |a|, in the order of operations of `rouge_score`."""
    precision = common / np.maximum(lengths, 1)
    recall = common / max(length, 1)
    return np.divide(2 * precision * recall, precision + recall, out=np.zeros(len(common)), where=common > 0)
