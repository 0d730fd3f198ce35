"""Who sees whom, as dense masks: True where a query may look at a key.

    causal       key ≤ query
    documents    key ≤ query, and both of one document
    padding      key ≤ query, and the key is no pad position

Letters: B batch, T queries, S keys.
"""

import torch
from torch import Tensor


def causal_mask(n_queries: int, n_keys: int, device: torch.device | str | None = None) -> Tensor:
    """(1, 1, T, S) bool: the last query sees the last key, each earlier one a key less.

    >>> causal_mask(2, 3)[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    queries = torch.arange(n_keys - n_queries, n_keys, device=device)
    return (torch.arange(n_keys, device=device) <= queries[:, None])[None, None]


def document_mask(documents: Tensor) -> Tensor:
    """(B, 1, T, T) bool for rows that hold several documents: causal, and never across a document's border.

    Args:
        documents: (B, T) int64, one id per document; padding is a document of its own.
    """
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & causal_mask(documents.shape[1], documents.shape[1], documents.device)


def padding_mask(n_queries: int, n_keys: int, padding: Tensor) -> Tensor:
    """(B, 1, T, S) bool for left-padded rows: causal, and never onto a pad position.

    A pad position sees itself, since a softmax over nothing would be NaN; nobody reads what it computes.

    Args:
        padding: (B,) int64, pad positions at the start of each row.
    """
    key = torch.arange(n_keys, device=padding.device)
    query = torch.arange(n_keys - n_queries, n_keys, device=padding.device)[:, None]
    real = key >= padding[:, None, None, None]
    return causal_mask(n_queries, n_keys, padding.device) & (real | (key == query))
