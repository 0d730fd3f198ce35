"""Launching the kernels of `int8.kernels`, and finding the fastest way to a product.

Triton's product scales and adds while its sums are still in registers. `torch._int_mm` (cuBLAS) may multiply faster,
but writes its int32 sums, which another kernel reads. For dX the tensor cores want the weight transposed: it is turned
as it is loaded, again for every row of tiles; or once, into a copy that is dropped after the product. None of these can
be the fastest for all shapes, so the first product of a size times them all on its device, and the fastest stays. The
integers are the same in all of them.

Letters: M rows, N columns of an output, K the inner dimension of its product, r rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from triton.runtime.errors import TritonError

from int8.int_mm import integer_product
from int8.kernels import mark_kernel, product_kernel, quantize_kernel, scale_kernel, transpose_kernel
from int8.quantize import INT8_MAX


@dataclass(frozen=True)
class Tiles:
    """How Triton's product is cut: a program's part m × n of the output, the step k of its sum; warps, stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Way:
    """How to multiply: by Triton in such tiles, or (None) by `torch._int_mm`; with a transposed copy of the weight?"""

    tiles: Tiles | None
    copy: bool = False


FEW_ROWS = 32
FEW_ROWS_TILES = (Tiles(16, 32, 256, 4, 4), Tiles(16, 64, 256, 4, 4))
MANY_ROWS_TILES = (
    Tiles(64, 128, 128, 4, 4),
    Tiles(128, 128, 128, 8, 4),
    Tiles(64, 256, 128, 8, 3),
    Tiles(128, 256, 128, 8, 3),
)
"""What compiles for Hopper to its int8 `wgmma` without spilling a register (looked up in the compiler's output)."""

THIN = 16
"""Outliers or ranks per step of their product: two of a tensor core's, enough for the paper's 7 and for the usual r."""

GROUP = 8
"""Rows of tiles that go through the weight together."""

QUANTIZE_BLOCK = 4096
"""Numbers of a row in registers at a time: sixteen for each of a program's threads."""

UNFUSED = {"enable_fp_fusion": False}
"""Of every launch: a fused multiply-add leaves out a rounding, and a code at a tie would differ from PyTorch's."""


@dataclass(frozen=True)
class Beside:
    """What is added to the scaled integers; None for nothing.

    X (M, K) with its outliers (K,) int32 and their count (1,) int32; L (M, r) with R (N, r). All contiguous.
    """

    x: Tensor | None = None
    outliers: Tensor | None = None
    count: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None

    def arguments(self) -> tuple[Tensor | int | None, ...]:
        """In the kernels' order."""
        rank = 0 if self.left is None else self.left.shape[1]
        return self.x, self.outliers, self.count, self.left, self.right, rank

    def precisions(self) -> dict[str, str]:
        """Of the two float products."""
        return {"X_PRECISION": _precision(self.x), "UPDATE_PRECISION": _precision(self.left, self.right)}


def forward(
    x: Tensor,
    weight_codes: Tensor,
    weight_absmax: Tensor,
    threshold: float,
    left: Tensor | None = None,
    right: Tensor | None = None,
    way: Way | None = None,
) -> Tensor:
    """`int8.cuda.int8_forward` by kernels; by the fastest way unless told which."""
    if x.shape[0] == 0:
        return x.new_empty(0, weight_codes.shape[0])
    x, weight_codes = x.contiguous(), weight_codes.contiguous()
    if left is not None and right is not None:
        left, right = left.contiguous(), right.contiguous()
    codes, absmax, outliers, count = quantize(x, threshold=threshold)
    beside = Beside(x, outliers, count, left, right)
    return multiply(codes, absmax, weight_codes, weight_absmax.contiguous(), x.dtype, beside, way)


def input_gradient(grad: Tensor, weight_codes: Tensor, weight_absmax: Tensor, way: Way | None = None) -> Tensor:
    """`int8.cuda.int8_input_gradient` by kernels; by the fastest way unless told which."""
    if grad.shape[0] == 0:
        return grad.new_empty(0, weight_codes.shape[1])
    codes, absmax, _, _ = quantize(grad.contiguous(), column_scale=weight_absmax / INT8_MAX)
    return multiply(codes, absmax, weight_codes.contiguous().t(), None, grad.dtype, Beside(), way)


def quantize(
    x: Tensor, *, threshold: float = 0.0, column_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Quantize the rows of x · diag(column_scale), outlier columns as zeros, without waiting for the device.

    Args:
        x: (M, K), contiguous.
        threshold: columns of x that reach it are outliers; 0 for none.
        column_scale: (K,) float32, contiguous.

    Returns:
        codes (M, K) int8; absmax (M,) float32; outliers (K,) int32, of which the first count (1,) int32 mean something,
        or None and None for threshold 0.
    """
    rows, inner = x.shape
    codes = torch.empty_like(x, dtype=torch.int8)
    absmax = torch.empty(rows, dtype=torch.float32, device=x.device)
    marks = outliers = count = None
    with _on(x.device):
        if threshold:
            marks = torch.zeros(inner, dtype=torch.int8, device=x.device)
            outliers = torch.empty(inner, dtype=torch.int32, device=x.device)
            count = torch.empty(1, dtype=torch.int32, device=x.device)
            m, k = 64, 128
            sizes = (rows, inner, threshold)
            mark_kernel[_tiles(rows, m), _tiles(inner, k)](x, marks, *sizes, BLOCK_M=m, BLOCK_K=k, **UNFUSED)
        block = min(QUANTIZE_BLOCK, max(16, _power_of_two(inner)))
        quantize_kernel[(rows + 1,)](
            x, column_scale, marks, codes, absmax, outliers, count, inner,
            BLOCK_K=block, num_warps=8, **UNFUSED,
        )  # fmt: skip
    return codes, absmax, outliers, count


def multiply(
    codes: Tensor,
    absmax: Tensor,
    weight: Tensor,
    weight_absmax: Tensor | None,
    dtype: torch.dtype,
    beside: Beside,
    way: Way | None = None,
) -> Tensor:
    """(codes · weightᵀ) ∘ (absmax ⊗ weight_absmax) / 127² + what stands beside it, rounded to dtype once.

    Args:
        codes: (M, K) int8.
        absmax: (M,) float32.
        weight: (N, K) int8, contiguous, or the transpose of something contiguous.
        weight_absmax: (N,) float32, or None for 127.
        dtype: of the result, (M, N).
        beside: needs a contiguous weight if it has outliers.
        way: None for the fastest.
    """
    (rows, inner), columns = codes.shape, weight.shape[0]
    turned = not weight.is_contiguous()
    if way is None:
        way = fastest_way(codes.device, max(16, _power_of_two(rows)), columns, inner, dtype, turned)
    output = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    with _on(codes.device):
        if way.copy:
            weight = transposed_copy(weight.t())
        scales = (absmax, weight_absmax)
        options = {**beside.precisions(), **UNFUSED, "BLOCK_THIN": THIN}
        if way.tiles is None:
            product = integer_product(codes, weight)  # by `torch._int_mm` where that is exact
            m, n = 64, 128
            scale_kernel[_tiles(rows, m), _tiles(columns, n)](
                product, product.stride(0), weight, rows, columns, inner, *scales, *beside.arguments(), output,
                **options, BLOCK_M=m, BLOCK_N=n, num_warps=8,
            )  # fmt: skip
        else:
            cut = way.tiles
            product_kernel[(_tiles(rows, cut.m) * _tiles(columns, cut.n),)](
                codes, weight, rows, columns, inner, *weight.stride(), *scales, *beside.arguments(), output,
                **options, BLOCK_M=cut.m, BLOCK_N=cut.n, BLOCK_K=cut.k, GROUP=GROUP,
                num_warps=cut.warps, num_stages=cut.stages,
            )  # fmt: skip
    return output


def transposed_copy(matrix: Tensor) -> Tensor:
    """(A, B) int8 -> (B, A), both contiguous."""
    (rows, columns), block = matrix.shape, 128
    target = matrix.new_empty(columns, rows)
    grid = (_tiles(rows, block), _tiles(columns, block))
    transpose_kernel[grid](matrix, target, rows, columns, BLOCK=block, num_warps=8, **UNFUSED)
    return target


# ---------------------------------------------------------------------------------------------------------------------
# Which way is the fastest


@cache
def fastest_way(
    device: torch.device, rows: int, columns: int, inner: int, dtype: torch.dtype, turned: bool = False
) -> Way:
    """Time all ways to a product of random codes on this device; some seconds, nearly all of it Triton's compiler.

    Args:
        device: a GPU.
        rows: M, rounded up to a power of two by the caller, so that batches of many lengths share an answer.
        columns: N.
        inner: K.
        dtype: of the result.
        turned: the weight is the transpose of what is stored.

    Raises:
        RuntimeError: a CUDA graph is being captured, or nothing works.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"the product {rows} × {inner} × {columns} has not run before, and its fastest way cannot be found while a "
            "CUDA graph is being captured: run one step before the capture"
        )
    generator = torch.Generator(device).manual_seed(0)  # a run's own random numbers must not depend on this
    stored = (inner, columns) if turned else (columns, inner)
    codes, weight = (
        torch.randint(-INT8_MAX, INT8_MAX + 1, shape, dtype=torch.int8, device=device, generator=generator)
        for shape in ((rows, inner), stored)
    )
    ones = torch.ones(max(rows, columns), device=device)
    weight, scales = (weight.t(), (ones[:rows], None)) if turned else (weight, (ones[:rows], ones[:columns]))
    times: dict[Way, float] = {}
    refusal = None
    for way in ways(rows, turned):
        run = partial(multiply, codes, scales[0], weight, scales[1], dtype, Beside(), way)
        try:
            times[way] = _time(run, device)
        except (RuntimeError, TritonError) as error:  # too little shared memory or memory; a layout cuBLAS doesn't take
            refusal = error
    if not times:
        raise RuntimeError(f"no way to the int8 product {rows} × {inner} × {columns} works on {device}") from refusal
    return min(times, key=times.__getitem__)


def ways(rows: int, turned: bool) -> list[Way]:
    """All there are for so many rows."""
    tiles = FEW_ROWS_TILES if rows <= FEW_ROWS else MANY_ROWS_TILES
    return [Way(each, copy) for copy in ((False, True) if turned else (False,)) for each in (*tiles, None)]


def _time(run: Callable[[], Tensor], device: torch.device, repeats: int = 5) -> float:
    """Median milliseconds."""
    with _on(device):
        run()  # compiles
        # Busy meanwhile, the device finds all runs in its queue, and no time passes between their kernels.
        torch.cuda._sleep(5_000_000)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        torch.cuda.synchronize()
    return sorted(events[i].elapsed_time(events[i + 1]) for i in range(repeats))[repeats // 2]


# ---------------------------------------------------------------------------------------------------------------------
# Small things


def _precision(*factors: Tensor | None) -> str:
    """Of Triton's product of float32 numbers: 16-bit ones and codes fit TF32's significand, others need the whole."""
    return "ieee" if any(factor is not None and factor.dtype == torch.float32 for factor in factors) else "tf32"


def _tiles(size: int, block: int) -> int:
    """How many blocks cover a size."""
    return -(-size // block)


def _power_of_two(size: int) -> int:
    """The least that is not below a size."""
    return 1 << (size - 1).bit_length()


def _on(device: torch.device) -> torch.cuda.device:
    """Triton launches on the current device, which need not be the tensors'. Without effect for a CPU."""
    return torch.cuda.device(device if device.type == "cuda" else -1)
