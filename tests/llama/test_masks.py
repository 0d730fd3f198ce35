"""The masks by hand."""

import torch

from llama.masks import causal_mask, document_mask, padding_mask


def test_causal_mask_of_a_continuation():
    assert causal_mask(2, 4)[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_document_mask_by_hand():
    mask = document_mask(torch.tensor([[1, 1, 2, 2, 0]]))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]


def test_padding_mask_by_hand():
    mask = padding_mask(3, 3, torch.tensor([0, 2]))[:, 0].int().tolist()
    assert mask[0] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert mask[1] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]  # pad positions see themselves only
