"""Collation: rows of examples become one rectangular batch. The only place where targets are shifted.

    targets[b, t] = token_ids[b, t + 1]  if that token is supervised and of the same document, else IGNORE

so that logits[b, t] and targets[b, t] meet without further shifting.

A row holds one example, or several when packed. Packed examples do not see each other: `documents` numbers them and the
attention stays inside equal numbers, while `positions` restart at 0 in each, so that packing changes no example's
logits. Padding is document 0.

Letters: B rows, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from data.supervise import Example

IGNORE = -100  # the target that cross entropy skips, torch's `ignore_index`
PADDING_DOCUMENT = 0


@dataclass(frozen=True)
class Batch:
    """One micro-batch. All tensors int64 (B, T).

    Attributes:
        token_ids: inputs.
        targets: next token's id where it counts, else IGNORE.
        positions: place in its document, from 0; 0 on padding.
        documents: document of each token, padding is 0; None where plain causal attention is already right, that is,
            one example per row and nothing padded on its left. They stay in the CPU's memory, where attention is
            planned: a GPU would have to be waited for.
        n_supervised: targets that count.
        n_tokens: tokens that are not padding. Both are counted here because counting on a GPU would wait for it.
    """

    token_ids: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor | None
    n_supervised: int
    n_tokens: int

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device, all but its documents."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("token_ids", "targets", "positions")})


def shifted_targets(example: Example) -> list[int]:
    """At each token the id of the next one if that is supervised, else IGNORE; the last token has no next one.

    >>> shifted_targets(Example([1, 81, 62, 65, 2], [False, False, False, True, True]))  # <s> Q > A </s>
    [-100, -100, 65, 2, -100]
    """
    following = zip(example.token_ids[1:], example.supervised[1:], strict=True)
    return [token if counts else IGNORE for token, counts in following] + [IGNORE]


def collate(
    rows: Sequence[Sequence[Example]],
    *,
    pad_id: int,
    pad_to_multiple_of: int = 8,
    padding_side: Literal["right", "left"] = "right",
) -> Batch:
    """Lay out each row's examples one after the other and pad all rows to one width.

    >>> a, b = Example([1, 5, 6], [False, True, True]), Example([1, 7], [False, True])
    >>> batch = collate([[a, b], [b]], pad_id=0, pad_to_multiple_of=2)
    >>> batch.token_ids.tolist()
    [[1, 5, 6, 1, 7, 0], [1, 7, 0, 0, 0, 0]]
    >>> batch.documents.tolist()
    [[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]]

    Args:
        pad_id: id to fill with; any row of the embedding serves, as padding is neither seen nor predicted.
        pad_to_multiple_of: tensor cores want widths of 8; the window itself makes every batch the same shape.
        padding_side: with "left" the documents keep real tokens from seeing the padding before them.

    Raises:
        ValueError: no rows, an empty row, or a pad id that is no row of any embedding.
    """
    if not rows or not all(rows):
        raise ValueError(f"{len(rows)} rows, {sum(not row for row in rows)} of them empty; each needs an example")
    if pad_id < 0 or pad_to_multiple_of < 1:
        raise ValueError(
            f"pad_id={pad_id}, pad_to_multiple_of={pad_to_multiple_of}; a tokenizer without a padding token pads with 0"
        )
    if padding_side not in ("right", "left"):
        raise ValueError(f"padding_side={padding_side!r}; expected 'right' or 'left'")
    lengths = [sum(map(len, row)) for row in rows]
    width = -(-max(lengths) // pad_to_multiple_of) * pad_to_multiple_of

    def tensor(parts: Sequence[Sequence[int]], fill: int) -> Tensor:
        """Pad each row's values with `fill` to (B, T)."""
        padding = ([fill] * (width - len(part)) for part in parts)
        right = padding_side == "right"
        return torch.tensor(
            [[*part, *pad] if right else [*pad, *part] for part, pad in zip(parts, padding, strict=True)]
        )

    def joined(values: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
        return [list(chain.from_iterable(row)) for row in values]

    targets = joined([[shifted_targets(example) for example in row] for row in rows])
    numbers = joined([[[k] * len(example) for k, example in enumerate(row, start=1)] for row in rows])
    packed = any(len(row) > 1 for row in rows)
    padded_left = padding_side == "left" and min(lengths) < width
    return Batch(
        token_ids=tensor(joined([[example.token_ids for example in row] for row in rows]), pad_id),
        targets=tensor(targets, IGNORE),
        positions=tensor(joined([[range(len(example)) for example in row] for row in rows]), 0),
        documents=tensor(numbers, PADDING_DOCUMENT) if packed or padded_left else None,
        n_supervised=sum(target != IGNORE for row in targets for target in row),
        n_tokens=sum(lengths),
    )
