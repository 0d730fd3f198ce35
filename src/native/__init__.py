"""C for what PyTorch does not do at the speed of memory: decoding one token, quantizing many.

rows.py         one row times a large matrix; one token through all blocks (start here)
product.c       the products
block.c         what stands between them, and the whole of it
library.py      compiling C files on first use; what happens without a compiler
quantize.py     rows to int8 and back, for many rows
huge_pages.py   memory that is read front to back, in larger pages

Everything works without it, slower. The Python beside each C function is its formula.
"""

from native.huge_pages import advise_huge_pages
from native.quantize import columns_reaching, decode_columns, quantize_rows, scale_product
from native.rows import (
    RowBlock,
    RowBlocks,
    RowMatrix,
    is_single_row,
    row_backend,
    row_product,
    row_product_reference,
)

__all__ = [
    "RowBlock",
    "RowBlocks",
    "RowMatrix",
    "advise_huge_pages",
    "columns_reaching",
    "decode_columns",
    "is_single_row",
    "quantize_rows",
    "row_backend",
    "row_product",
    "row_product_reference",
    "scale_product",
]
