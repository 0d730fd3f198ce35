"""LLM.int8(): 8-bit matrix products with outlier decomposition (arXiv 2208.07339).

quantize.py  row-wise and column-wise absmax; which columns are outliers
int_mm.py    int8 × int8 → int32, exactly, by whatever the device offers
scaled.py    such a product scaled back to numbers, a thin product beside it
matmul.py    LLM.int8(): the formula, its fast twin, its gradients (start here)
gradient.py  the input's gradient of a frozen weight: exact, or fast in 8 bits
cuda.py      the products of both passes as operators: plain, and Triton's kernels (launch.py, kernels.py)
linear.py    Int8Linear, a frozen linear layer stored as codes
convert.py   a whole model's linear layers into int8
"""

from int8.convert import convert_to_int8, set_backward
from int8.cuda import product_backend
from int8.gradient import Backward, input_gradient_reference
from int8.int_mm import integer_backend, integer_product
from int8.linear import Int8Linear
from int8.matmul import (
    int8_linear_trainable,
    int8_linear_trainable_reference,
    int8_matmul,
    int8_matmul_reference,
)
from int8.quantize import (
    INT8_MAX,
    THRESHOLD,
    dequantize_rowwise,
    outlier_columns,
    quantize_columnwise,
    quantize_rowwise,
)

__all__ = [
    "INT8_MAX",
    "THRESHOLD",
    "Backward",
    "Int8Linear",
    "convert_to_int8",
    "dequantize_rowwise",
    "input_gradient_reference",
    "int8_linear_trainable",
    "int8_linear_trainable_reference",
    "int8_matmul",
    "int8_matmul_reference",
    "integer_backend",
    "integer_product",
    "outlier_columns",
    "product_backend",
    "quantize_columnwise",
    "quantize_rowwise",
    "set_backward",
]
