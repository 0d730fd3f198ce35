"""C for what PyTorch does not do at the speed of memory, or of the processor: decoding one token, training many.

rows.py           one row times a large matrix; one token through all blocks (start here): product.c, block.c
quantize.py       many rows to int8, outlier columns, the scaling of an int8 product
attention.py      attention of training, forward and backward, document by document
elementwise.py    RMSNorm, SwiGLU's product, the rotation, forward and backward
cross_entropy.py  the loss of rows of logits, its gradient in their place
dropout.py        dropout whose mask is computed again instead of kept
adam.py           a step of Adam on 8-bit or float32 moments, all tensors at once
library.py        compiling C files on first use; what happens without a compiler
huge_pages.py     memory that is read front to back, in larger pages

Everything works without it, slower. The formulas in Python stand where they are used: `row_product_reference` here,
`int8.quantize`, `int8.matmul`, `llama`, `training.loss`, `optim8bit.step`. A row here is one token's vector; in
`llama.cache` it is one prompt of a batch.
"""

from native.dropout import drop
from native.huge_pages import advise_huge_pages
from native.library import c_backend
from native.quantize import columns_reaching, decode_columns, decode_slice, quantize_rows, scale_product
from native.rows import (
    RowBlock,
    RowBlocks,
    RowMatrix,
    is_single_row,
    row_product,
    row_product_reference,
    single_row_product,
)

__all__ = [
    "RowBlock",
    "RowBlocks",
    "RowMatrix",
    "advise_huge_pages",
    "c_backend",
    "columns_reaching",
    "decode_columns",
    "decode_slice",
    "drop",
    "is_single_row",
    "quantize_rows",
    "row_product",
    "row_product_reference",
    "scale_product",
    "single_row_product",
]
