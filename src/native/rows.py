"""One token's way through a LLaMA, at the speed at which memory delivers the weights.

    y_n = Σ_k x_k w_nk

A decoding step with one token multiplies every weight of the model exactly once: two operations per weight fetched,
where a processor could do hundreds. Its time is bytes of weights / bandwidth, if nothing else gets in the way.

In bfloat16 products and sums are float32, rounded once at the end, as in any other product.

In int8 the weight stays codes and scales, and x goes to 16-bit fixed point:

    x ≈ a · q / 32512,    a = max_k |x_k|,    q_k = round(32512 · x_k / a) = 256·h_k + l_k    (h, l signed bytes)
    y_n = a / 32512 · s_n · (256 · Σ_k h_k c_nk  +  Σ_k l_k c_nk),    s_n = absmax_n / 127

Both sums run over products of bytes, for which processors have instructions, and are exact. The one error is that of q:

    |error_n| ≤ a / 65024 · Σ_k |ŵ_nk|,    ŵ_nk = s_n · c_nk                        beside float32's rounding of y_n

Outlier columns need no treatment of their own here. In 8 bits an outlier of 60 leaves the other features steps of
60/127, too coarse for them; in 16 bits the steps are 60/32512, finer than bfloat16's own for every |x_k| ≥ 0.5. So this
product is closer to the float one than LLM.int8()'s, which rounds regular features to 8 bits, and it needs no search.

An adapter's update, (α/r) B A x, is added on the way. Where the C library does not apply (no compiler, another device,
dtype or layout) the functions return None, and their callers compute by PyTorch's operators.

Letters: N rows of a matrix (output features), K columns (input features), H heads, G key/value heads, D head size.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from native.library import FLOAT, INT, POINTER, SIZE, load_library

LEVELS = 127 * 256
"""Largest fixed-point magnitude, 32512: its upper byte stays within ±127."""

MAX_INNER = (2**31 - 1) // (255 * 128)
"""Longest K, 65,793, whose sums of (code + 128) · byte are sure to fit int32."""

MAX_ROWS = 2**20
"""Results of one product lie on the stack: four megabytes at most, of the eight that a thread usually has."""

MAX_SCORES = 2**18
"""Attention scores of one group of heads lie on the stack: a megabyte at most."""


@dataclass(frozen=True)
class RowMatrix:
    """What multiplies a row: W or its codes, and an adapter's A and B.

    Attributes:
        weight: (N, K), bfloat16, or int8 codes.
        absmax: (N,) float32, the codes' scales; None for bfloat16.
        lora_A, lora_B: (r, K) and (N, r), bfloat16; None without an adapter.
        lora_scale: α/r.
    """

    weight: Tensor
    absmax: Tensor | None = None
    lora_A: Tensor | None = None
    lora_B: Tensor | None = None
    lora_scale: float = 1.0

    def usable(self) -> bool:
        """Whether all parts lie in the CPU's memory, number after number, in the shapes and dtypes above."""
        rows, columns = self.weight.shape
        rank = 0 if self.lora_A is None else self.lora_A.shape[0]
        expected = (
            (self.weight, (rows, columns), torch.bfloat16 if self.absmax is None else torch.int8),
            (self.absmax, (rows,), torch.float32),
            (self.lora_A, (rank, columns), torch.bfloat16),
            (self.lora_B, (rows, rank), torch.bfloat16),
        )
        return (
            rows <= MAX_ROWS
            and columns <= MAX_INNER
            and (self.lora_A is None) == (self.lora_B is None)
            and all(part is None or _is_plain(part, shape, dtype) for part, shape, dtype in expected)
        )

    def as_struct(self) -> "_Matrix":
        """For the C functions; the tensors must outlive it."""
        rank = 0 if self.lora_A is None else self.lora_A.shape[0]
        parts = [None if part is None else part.data_ptr() for part in (self.absmax, self.lora_A, self.lora_B)]
        return _Matrix(self.weight.data_ptr(), parts[0], *self.weight.shape, *parts[1:], rank, self.lora_scale)


@dataclass(frozen=True)
class RowBlock:
    """One block of a LLaMA: its gains, its seven matrices, its part of the cache."""

    attention_gain: Tensor
    ffn_gain: Tensor
    matrices: Sequence[RowMatrix]  # wq, wk, wv, wo, w1, w2, w3
    keys: Tensor  # (G, S, D)
    values: Tensor


def fixed_point_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """q and the scale a / 32512 of a row. Shapes: x (K,) -> q (K,) int32 within ±32512, scale () float32.

    >>> fixed_point_reference(torch.tensor([1.0, -2.0, 0.25]))[0].tolist()
    [16256, -32512, 4064]
    """
    largest = x.abs().amax().float()
    per_unit = LEVELS / largest
    if per_unit.isinf():  # x is zero, or below 1e-34, which is taken for zero
        return torch.zeros_like(x, dtype=torch.int32), torch.zeros(())
    return torch.floor(x.float() * per_unit + 0.5).int(), largest / LEVELS


def row_product_reference(x: Tensor, matrix: RowMatrix) -> Tensor:
    """The formulas above, sums in float64 (which holds those of int8 exactly). Arguments as for `row_product`."""
    if matrix.absmax is None:
        y = matrix.weight.double() @ x.double()
    else:
        q, scale = fixed_point_reference(x)
        y = (matrix.weight.double() @ q.double()) * scale * matrix.absmax / 127
    y = y.to(x.dtype)
    if matrix.lora_A is None or matrix.lora_B is None:
        return y
    compressed = (matrix.lora_A.double() @ x.double()).to(x.dtype) * matrix.lora_scale
    return y + (matrix.lora_B.double() @ compressed.double()).to(x.dtype)


def row_product(x: Tensor, matrix: RowMatrix) -> Tensor | None:
    """x · Wᵀ, with the adapter's update if there is one, for one row x.

    Args:
        x: (K,) bfloat16; or float32, where the matrix is int8 without an adapter.

    Returns:
        (N,) in x's dtype, NaN throughout if x is not finite and the matrix int8. None where C does not apply.
    """
    library, bf16 = _library(), x.dtype == torch.bfloat16
    if library is None or not matrix.usable():
        return None
    if x.numel() != matrix.weight.shape[1] or x.device.type != "cpu":
        return None
    if not bf16 and (x.dtype != torch.float32 or matrix.absmax is None or matrix.lora_A is not None):
        return None
    x, y = x.contiguous(), torch.empty(matrix.weight.shape[0], dtype=x.dtype)
    library.row_product(x.data_ptr(), matrix.as_struct(), y.data_ptr(), bf16, torch.get_num_threads())
    return y


class RowBlocks:
    """The blocks of a bfloat16 model and one cache, prepared for token after token. It keeps their tensors alive.

    Args:
        blocks: in order.
        n_heads: H.
        eps: the norms'.

    Attributes:
        usable: whether C applies to all of it.
    """

    def __init__(self, blocks: Sequence[RowBlock], *, n_heads: int, eps: float) -> None:
        self.blocks = blocks
        self.usable = _library() is not None and bool(blocks) and all(map(_is_usable, blocks))
        if self.usable:
            groups, capacity, size = blocks[0].keys.shape
            dim, hidden = blocks[0].attention_gain.numel(), blocks[0].matrices[4].weight.shape[0]
            self.usable = n_heads // groups * capacity <= MAX_SCORES
            self.usable &= _fit(blocks, dim, hidden, n_heads)
            self._shape = _Shape(dim, hidden, n_heads, groups, size, 0, capacity, eps)
            self._array = (_Block * len(blocks))(*map(_as_struct, blocks))

    def __call__(self, x: Tensor, *, length: int, cos: Tensor, sin: Tensor) -> Tensor:
        """One token through all blocks; its keys and values are added to the cache.

        Args:
            x: (C,) bfloat16, the token's embedding; not changed.
            length: tokens in the cache before this one.
            cos, sin: (D/2,) float32, of the token's position.

        Returns:
            (C,) bfloat16, the stream after the last block.
        """
        library = _library()
        assert library is not None and self.usable and length < self._shape.capacity
        assert x.numel() == self._shape.dim and 2 * cos.numel() == 2 * sin.numel() == self._shape.size
        self._shape.length = length
        y, cos, sin = x.clone(memory_format=torch.contiguous_format), cos.contiguous(), sin.contiguous()
        tables = (cos.data_ptr(), sin.data_ptr())
        library.blocks_row(y.data_ptr(), self._array, len(self.blocks), self._shape, *tables, torch.get_num_threads())
        return y


def _is_plain(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether C can be told where the tensor begins and know the rest."""
    return tensor.shape == shape and tensor.dtype == dtype and tensor.device.type == "cpu" and tensor.is_contiguous()


def _fit(blocks: Sequence[RowBlock], dim: int, hidden: int, n_heads: int) -> bool:
    """Whether all shapes are those of one LLaMA: C looks at no other sizes than the first block's."""
    groups, capacity, size = blocks[0].keys.shape
    own, shared = n_heads * size, groups * size
    shapes = [(own, dim), (shared, dim), (shared, dim), (dim, own), (hidden, dim), (dim, hidden), (hidden, dim)]
    return n_heads % groups == size % 2 == 0 and all(
        block.keys.shape == block.values.shape == (groups, capacity, size)
        and block.attention_gain.shape == block.ffn_gain.shape == (dim,)
        and [tuple(matrix.weight.shape) for matrix in block.matrices] == shapes
        for block in blocks
    )


def _is_usable(block: RowBlock) -> bool:
    numbers = (block.attention_gain, block.ffn_gain, block.keys, block.values)
    plain = all(_is_plain(tensor, tensor.shape, torch.bfloat16) for tensor in numbers)
    return plain and all(matrix.usable() for matrix in block.matrices)


def _as_struct(block: RowBlock) -> "_Block":
    gains = (block.attention_gain.data_ptr(), block.ffn_gain.data_ptr())
    matrices = (matrix.as_struct() for matrix in block.matrices)
    return _Block(*gains, *matrices, block.keys.data_ptr(), block.values.data_ptr())


def is_single_row(x: Tensor, inner: int) -> bool:
    """Whether x, (..., K), is one row on a CPU of which nobody wants a gradient, an autocast or a compiled graph."""
    return (
        x.numel() == inner
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class RowLayer(Protocol):
    """A linear layer that says what it multiplies a single row by, if C can know."""

    in_features: int

    def row_matrix(self) -> RowMatrix | None: ...


def single_row_product(x: Tensor, layer: RowLayer) -> Tensor | None:
    """The layer's output for x, (..., K) -> (..., N), if x is a single row that C applies to; else None."""
    if not is_single_row(x, layer.in_features) or (matrix := layer.row_matrix()) is None:
        return None
    y = row_product(x.reshape(-1), matrix)
    return None if y is None else y.view(*x.shape[:-1], -1)


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("weight", "absmax")),
        *((name, SIZE) for name in ("rows", "columns")),
        *((name, POINTER) for name in ("lora_a", "lora_b")),
        ("rank", SIZE),
        ("lora_scale", FLOAT),
    )


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("attention_gain", "ffn_gain")),
        *((name, _Matrix) for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")),
        *((name, POINTER) for name in ("keys", "values")),
    )


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, SIZE) for name in ("dim", "hidden", "heads", "groups", "size", "length", "capacity")),
        ("eps", FLOAT),
    )


@cache
def _library() -> ctypes.CDLL | None:
    folder = Path(__file__).parent
    library = load_library(folder / "product.c", folder / "block.c")
    if library is not None:
        library.row_product.argtypes = [POINTER, ctypes.POINTER(_Matrix), POINTER, INT, INT]
        library.blocks_row.argtypes = [
            POINTER,
            ctypes.POINTER(_Block),
            SIZE,
            ctypes.POINTER(_Shape),
            POINTER,
            POINTER,
            INT,
        ]
        library.row_product.restype = library.blocks_row.restype = None
    return library
