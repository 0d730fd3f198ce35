"""Lengths, spans, borders and mask of documents that share a row, by hand; what is refused."""

import pytest
import torch

from llama.documents import Documents
from llama.masks import document_mask

CPU = torch.device("cpu")


def test_documents_by_hand():
    documents = Documents.from_ids(torch.tensor([[0, 1, 1, 1], [1, 1, 2, 0]]), CPU)
    assert documents.lengths == (1, 3, 2, 1, 1) and documents.shape == (2, 4)
    assert documents.spans.tolist() == [[1, 3], [4, 2], [0, 1], [6, 1], [7, 1]]
    assert documents.borders.tolist() == [0, 1, 4, 6, 7, 8]
    assert torch.equal(documents.mask, document_mask(torch.tensor([[0, 1, 1, 1], [1, 1, 2, 0]])))


def test_padding_may_stand_on_both_sides_but_documents_stand_together():
    assert Documents.from_ids(torch.tensor([[0, 1, 0]]), CPU).lengths == (1, 1, 1)
    with pytest.raises(ValueError, match="document 7 comes back in row 1"):
        Documents.from_ids(torch.tensor([[7, 7, 7], [7, 2, 7]]), CPU)
