"""A linear layer without bias, as LLaMA has them everywhere: y = x Wᵀ, and one row at a time as fast as W can be read.

The matrix product that serves many rows is not the best for a single one: on a CPU it leaves half of the memory's
bandwidth unused. A step that decodes one token is nothing but such products.
"""

from torch import Tensor, nn

from native import RowMatrix, single_row_product


class Linear(nn.Linear):
    """`nn.Linear(in_features, out_features, bias=False)`, with a product of its own for a single bfloat16 row on a CPU.

    Shapes: (..., in_features) -> (..., out_features).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        row = single_row_product(x, self)
        return super().forward(x) if row is None else row

    def row_matrix(self) -> RowMatrix:
        """What this layer multiplies a single row by."""
        return RowMatrix(self.weight.detach())
