"""LLM.int8() on a GPU, in Triton: quantization with the list of outliers, the int8 product, what follows it.

The formulas are those of `int8.matmul` (arXiv 2208.07339, section 3) for a frozen weight, arranged for three passes:

    mark       f_k = 1 where column k of X reaches the threshold                                   reads X
    quantize   c_i = max |x_ik| over columns with f_k = 0,  X_i8 = round(127 · x_ik / c_i)         reads X, writes X_i8
               beside it, one program lists the marked columns: O = (k : f_k = 1)
    multiply   V = X_i8 · W_i8                                                    int32, on the int8 tensor cores
               Y = (V · c_i / 127 + Σ_{k in O} x_ik · (W_i8)_kn) · (c_W)_n / 127 + Σ_r L_ir R_nr   writes Y, once

The host never learns how long O is: the kernel that sums over it reads the length from the device's memory. So nothing
waits, and any number of outliers is right. Marked columns have code 0, as on a CPU, so that W_i8 stays whole.

An outlier's weight enters that sum as a code; its scale belongs to the output's column and multiplies V and the sum at
once. A code has 7 bits beside its sign, a 16-bit float at most 11, and both fit the 11-bit significand of TF32: tensor
cores multiply them without rounding. float32 X is multiplied in float32.

Letters: M rows, N columns of an output, K columns of X, r rank. Blocks are powers of two, and masks cut them to size.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# A kernel's parameters are what Triton makes of tensors and numbers.

import triton
import triton.language as tl

from int8.quantize import INT8_MAX, SMALLEST_ABSMAX

# Triton reads a module's constants only in this form.
LARGEST_CODE = tl.constexpr(float(INT8_MAX))
FLOOR = tl.constexpr(SMALLEST_ABSMAX)
ROUND = tl.constexpr(1.5 * 2.0**23)
"""Added to a |value| below 2²², it leaves no bits after the point: float32 addition rounds to nearest, ties to even."""
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def mark_kernel(x, marks, M, K, threshold, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """marks (K,) int8, zero before = 1 where some |x| is not below the threshold (so where there is a NaN, too).

    Programs of different rows may write the same mark, but only ever a one.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (rows < M)[:, None] & (columns < K)[None, :]
    values = tl.load(x + rows[:, None].to(tl.int64) * K + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    below = tl.abs(values) < threshold
    reached = tl.max(tl.where(below, 0, 1), axis=0)
    tl.store(marks + columns, tl.full([BLOCK_K], 1, tl.int8), mask=(columns < K) & (reached > 0))


@triton.jit
def quantize_kernel(x, column_scale, marks, codes, absmax, outliers, count, K, BLOCK_K: tl.constexpr):
    """Program i + 1: codes (M, K) int8 and absmax (M,) float32 of row i of x. Program 0: the list of outliers.

    column_scale (K,) float32 is multiplied into x first, None for ones. marks (K,) int8 are columns taken for zero,
    None for no decomposition. A row with a NaN or an infinity gets an infinite absmax.
    """
    program = tl.program_id(0)
    if program == 0:
        if marks is not None:
            list_outliers(marks, outliers, count, K, BLOCK_K)
    else:
        row = program - 1
        start_of_row = row.to(tl.int64) * K
        largest = tl.zeros([BLOCK_K], tl.float32)
        for start in range(0, K, BLOCK_K):
            columns = start + tl.arange(0, BLOCK_K)
            values = load_row(x + start_of_row, column_scale, marks, columns, K)
            # A maximum skips NaN: it counts as infinite.
            largest = tl.maximum(largest, tl.where(values == values, tl.abs(values), INFINITY))
        scale = tl.maximum(tl.max(largest, axis=0), FLOOR)
        tl.store(absmax + row, scale)
        factor = tl.div_rn(1.0, scale) * LARGEST_CODE  # as 127 / tensor is computed by PyTorch, to the last bit
        for start in range(0, K, BLOCK_K):  # from the cache
            columns = start + tl.arange(0, BLOCK_K)
            scaled = load_row(x + start_of_row, column_scale, marks, columns, K) * factor
            rounded = (scaled + ROUND) - ROUND
            code = tl.where(tl.abs(scaled) < INFINITY, rounded, 0.0).to(tl.int8)
            tl.store(codes + start_of_row + columns, code, mask=columns < K)


@triton.jit
def load_row(x, column_scale, marks, columns, K):
    """Entries of one row in float32: scaled, zero where marked and beyond K."""
    inside = columns < K
    values = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    if marks is not None:  # blanked after loading: a mask that may change at every entry would split the loads
        values = tl.where(tl.load(marks + columns, mask=inside, other=0) == 0, values, 0.0)
    if column_scale is not None:
        values = values * tl.load(column_scale + columns, mask=inside, other=0.0)
    return values


@triton.jit
def list_outliers(marks, outliers, count, K, BLOCK_K: tl.constexpr):
    """outliers (K,) int32: the marked columns, ascending, in its first places; count (1,) int32: how many."""
    found = 0
    for start in range(0, K, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        marked = tl.load(marks + columns, mask=columns < K, other=0).to(tl.int32)
        places = found + tl.cumsum(marked, axis=0) - 1
        tl.store(outliers + places, columns, mask=marked > 0)
        found += tl.sum(marked, axis=0)
    tl.store(count, found)


@triton.jit
def product_kernel(
    codes,
    weight,
    M,
    N,
    K,
    weight_row,
    weight_column,
    row_absmax,
    column_absmax,
    x,
    outliers,
    count,
    left,
    right,
    rank,
    y,
    X_PRECISION: tl.constexpr,
    UPDATE_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_THIN: tl.constexpr,
    GROUP: tl.constexpr,
):
    """y (M, N) from codes (M, K) and weight (N, K) int8; weight_row and weight_column are the latter's strides.

    weight_column = 1 is what Hopper's tensor cores read from shared memory as it is; any other layout is transposed on
    the way there. Programs are ordered so that GROUP rows of tiles share the columns of the weight while in the cache.
    """
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    tile_m, tile_n = tl.swizzle2d(program // tiles_n, program % tiles_n, tiles_m, tiles_n, GROUP)
    rows = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = (tile_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    inner = tl.arange(0, BLOCK_K)
    row_inside, column_inside = (rows < M)[:, None], (columns < N)[None, :]
    code_places = codes + rows[:, None] * K + inner[None, :]
    weight_places = weight + columns[None, :] * weight_row + inner[:, None].to(tl.int64) * weight_column
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, K, BLOCK_K):
        inner_inside = inner < K - start
        code_tile = tl.load(code_places, mask=row_inside & inner_inside[None, :], other=0)
        weight_tile = tl.load(weight_places, mask=column_inside & inner_inside[:, None], other=0)
        total = tl.dot(code_tile, weight_tile, total, out_dtype=tl.int32)
        code_places += BLOCK_K
        weight_places += BLOCK_K * weight_column
    finish(
        total, rows, columns, M, N, K, row_absmax, column_absmax, x, weight, outliers, count, left, right, rank, y,
        X_PRECISION, UPDATE_PRECISION, BLOCK_THIN,
    )  # fmt: skip


@triton.jit
def scale_kernel(
    product,
    product_row,
    weight,
    M,
    N,
    K,
    row_absmax,
    column_absmax,
    x,
    outliers,
    count,
    left,
    right,
    rank,
    y,
    X_PRECISION: tl.constexpr,
    UPDATE_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_THIN: tl.constexpr,
):
    """y (M, N) from a product (M, N) int32 with rows product_row apart, computed elsewhere (`torch._int_mm`)."""
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    total = tl.load(product + rows[:, None] * product_row + columns[None, :], mask=inside, other=0)
    finish(
        total, rows, columns, M, N, K, row_absmax, column_absmax, x, weight, outliers, count, left, right, rank, y,
        X_PRECISION, UPDATE_PRECISION, BLOCK_THIN,
    )  # fmt: skip


@triton.jit
def finish(
    total, rows, columns, M, N, K, row_absmax, column_absmax, x, weight, outliers, count, left, right, rank, y,
    X_PRECISION: tl.constexpr, UPDATE_PRECISION: tl.constexpr, BLOCK_THIN: tl.constexpr,
):  # fmt: skip
    """Scale one tile of V (int32), add the outliers and L·Rᵀ in float32, round once, store.

    None leaves a step out: column_absmax (N,), outliers (K,) with x (M, K) and weight (N, K) row-major, left (M, r)
    with right (N, r).
    """
    row_inside, column_inside = rows < M, columns < N
    row_scale = tl.div_rn(tl.load(row_absmax + rows, mask=row_inside, other=0.0), LARGEST_CODE)
    output = total.to(tl.float32) * row_scale[:, None]
    if outliers is not None:
        found = tl.load(count)
        for start in range(0, found, BLOCK_THIN):
            place = start + tl.arange(0, BLOCK_THIN)
            listed = place < found
            column = tl.load(outliers + place, mask=listed, other=0)
            x_mask = row_inside[:, None] & listed[None, :]
            weight_mask = column_inside[None, :] & listed[:, None]
            x_part = tl.load(x + rows[:, None] * K + column[None, :], mask=x_mask, other=0.0)
            weight_part = tl.load(weight + columns[None, :] * K + column[:, None], mask=weight_mask, other=0)
            output = tl.dot(x_part.to(tl.float32), weight_part.to(tl.float32), output, input_precision=X_PRECISION)
    if column_absmax is not None:
        column_scale = tl.div_rn(tl.load(column_absmax + columns, mask=column_inside, other=0.0), LARGEST_CODE)
        output = output * column_scale[None, :]
    if left is not None:
        for start in range(0, rank, BLOCK_THIN):
            place = start + tl.arange(0, BLOCK_THIN)
            left_mask = row_inside[:, None] & (place < rank)[None, :]
            right_mask = column_inside[None, :] & (place < rank)[:, None]
            left_part = tl.load(left + rows[:, None] * rank + place[None, :], mask=left_mask, other=0.0)
            right_part = tl.load(right + columns[None, :] * rank + place[:, None], mask=right_mask, other=0.0)
            output = tl.dot(
                left_part.to(tl.float32), right_part.to(tl.float32), output, input_precision=UPDATE_PRECISION
            )
    tl.store(y + rows[:, None] * N + columns[None, :], output, mask=row_inside[:, None] & column_inside[None, :])


@triton.jit
def transpose_kernel(source, target, ROWS, COLUMNS, BLOCK: tl.constexpr):
    """target (COLUMNS, ROWS) int8 = source (ROWS, COLUMNS)ᵀ."""
    rows = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    columns = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    row_inside, column_inside = rows < ROWS, columns < COLUMNS
    inside = row_inside[:, None] & column_inside[None, :]
    tile = tl.load(source + rows[:, None] * COLUMNS + columns[None, :], mask=inside, other=0)
    inside = column_inside[:, None] & row_inside[None, :]
    tl.store(target + columns[:, None] * ROWS + rows[None, :], tl.trans(tile), mask=inside)
