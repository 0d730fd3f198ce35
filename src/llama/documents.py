"""Documents that share a row and see nothing of each other, as what they are: a list of lengths.

A dense mask (B, 1, T, T) says the same and wastes the work: a kernel that is handed the lengths takes Σ length² scores
instead of B·T².

Letters: B batch, T tokens, N documents.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from llama.masks import document_mask


@dataclass(frozen=True)
class Documents:
    """A batch's documents, as the lengths of consecutive runs of tokens, row after row. Made once per forward pass.

    Attributes:
        lengths: of N runs, padding included; their sum is B·T, and none goes beyond the end of a row.
        shape: (B, T).
        device: of the tokens.
    """

    lengths: tuple[int, ...]
    shape: tuple[int, int]
    device: torch.device

    @classmethod
    def from_ids(cls, ids: Tensor, device: torch.device) -> "Documents":
        """Runs of equal ids, (B, T) int64. Ids on a GPU are waited for; leave them in the CPU's memory.

        >>> Documents.from_ids(torch.tensor([[1, 1, 2, 0], [1, 1, 1, 1]]), torch.device("cpu")).lengths
        (2, 1, 1, 4)

        Raises:
            ValueError: an id other than 0 (padding) comes back in a row after another one.
        """
        ids = ids.cpu()
        begins = torch.ones_like(ids, dtype=torch.bool)
        begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
        seen: set[tuple[int, int]] = set()
        for row, number in zip(begins.nonzero()[:, 0].tolist(), ids[begins].tolist(), strict=True):
            if number != 0 and (row, number) in seen:
                raise ValueError(
                    f"document {number} comes back in row {row} after another one: the tokens of a document must stand "
                    "together; give each run of tokens a number of its own"
                )
            seen.add((row, number))
        starts = [*begins.flatten().nonzero()[:, 0].tolist(), ids.numel()]
        lengths = tuple(end - start for start, end in pairwise(starts))
        return cls(lengths, (ids.shape[0], ids.shape[1]), device)

    @cached_property
    def spans(self) -> Tensor:
        """(N, 2) int64 on the CPU: first token, counted through all rows, and length; the longest first."""
        starts = accumulate(self.lengths[:-1], initial=0)
        return torch.tensor(sorted(zip(starts, self.lengths, strict=True), key=lambda span: -span[1]))

    @cached_property
    def borders(self) -> Tensor:
        """(N + 1,) int32 on the tokens' device: where documents begin, and the end. FlashAttention and PyTorch call it
        cu_seqlens."""
        return torch.tensor([*accumulate(self.lengths, initial=0)], dtype=torch.int32).to(self.device)

    @cached_property
    def mask(self) -> Tensor:
        """(B, 1, T, T) bool on the tokens' device, for kernels that know no documents."""
        numbers = torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))
        return document_mask(numbers.view(self.shape).to(self.device))
