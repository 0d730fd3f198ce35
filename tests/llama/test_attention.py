"""The module: without a mask, or with documents, it gives what a dense mask gives."""

import torch

from llama.attention import Attention
from llama.documents import Documents
from llama.masks import causal_mask, document_mask
from llama.rotary import rotary_table


def drawn(tokens: int) -> tuple[Attention, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """A layer of 4 heads of 4, its input (2, tokens, 16), and the rotation."""
    torch.manual_seed(0)
    return Attention(16, 4, 2, layer=0), torch.randn(2, tokens, 16), rotary_table(torch.arange(tokens), 4, 10_000.0)


def test_with_a_causal_mask_as_without_a_mask():
    layer, x, rotation = drawn(6)
    # Sums of 16 products of numbers of order 1, each rounded to 2⁻²⁴.
    assert torch.allclose(layer(x, rotation), layer(x, rotation, causal_mask(6, 6)), atol=1e-6)


def test_with_documents_as_with_their_mask():
    layer, x, rotation = drawn(34)
    ids = torch.tensor([[1] * 20 + [2] + [3] * 9 + [0] * 4, [0] * 2 + [1] * 18 + [2] * 14])
    documents = Documents.from_ids(ids, torch.device("cpu"))
    assert torch.allclose(layer(x, rotation, documents), layer(x, rotation, document_mask(ids)), atol=1e-6)  # as above
