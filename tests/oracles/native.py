"""One row times a matrix of int8 codes, as native/rows.py defines it: integers, and float64 for everything else."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVELS = 127 * 256
INT32 = np.iinfo(np.int32)

NEAR = 0.006
"""How far float32 may shift 32512·x/a, here at most 32512, before it is rounded: the quotient and the product by 2^-24
of it each, the sum with 32512.5 by half the distance of numbers around 2^16, 2^-9."""


def fixed_point(x: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """q_k = round(32512·x_k / a), and which of them float32 may round to the neighbour. Shapes: (K,)."""
    largest = np.abs(x).max(initial=0.0)
    exact = LEVELS * x / largest if largest else np.zeros_like(x)
    return np.rint(exact).astype(np.int64), np.abs(exact - np.floor(exact) - 0.5) <= NEAR


def decoded(codes: NDArray[np.int8], absmax: Array) -> Array:
    """ŵ_nk = absmax_n / 127 · c_nk."""
    return codes.astype(np.float64) * absmax[:, None] / 127


def int8_product(x: Array, codes: NDArray[np.int8], absmax: Array) -> Array:
    """y_n = a / 32512 · absmax_n / 127 · Σ_k q_k c_nk. Shapes: x (K,), codes (N, K), absmax (N,) -> (N,)."""
    q, _ = fixed_point(x)
    return np.abs(x).max(initial=0.0) / LEVELS * absmax / 127 * (codes.astype(np.int64) @ q)


def formula_bound(x: Array, codes: NDArray[np.int8], absmax: Array, unit: float) -> Array:
    """What float32 may add to the formula: a step wherever it rounds to the other neighbour, 5 roundings after the
    integer sum (to float32, the step a/32512, its 127th part, two products) and a last one to a dtype of `unit`."""
    _, near = fixed_point(x)
    steps = np.abs(x).max(initial=0.0) / LEVELS * np.abs(decoded(codes, absmax))[:, near].sum(1)
    y = np.abs(int8_product(x, codes, absmax)) + steps
    return steps + 1.01 * (5 * 2.0**-24 + unit) * y + subnormal(x, codes, absmax)


def product_bound(x: Array, codes: NDArray[np.int8], absmax: Array, unit: float) -> Array:
    """The most by which the product may miss Σ_k x_k ŵ_nk: half a step for every column, a / 65024 · Σ_k |ŵ_nk|, with
    what float32 adds to that half, and the roundings after the sum."""
    w = decoded(codes, absmax)
    steps = np.abs(x).max(initial=0.0) / LEVELS * np.abs(w).sum(1)
    return (0.5 + NEAR) * steps + 1.01 * (5 * 2.0**-24 + unit) * (np.abs(w @ x) + steps) + subnormal(x, codes, absmax)


def subnormal(x: Array, codes: NDArray[np.int8], absmax: Array) -> Array:
    """The least that rounding can cost: float32 ends at 2^-149, which counts in a/32512/127 and in what it multiplies.
    A row below 1e-34 is taken for zero: 32512/a would overflow."""
    largest = np.abs(x).max(initial=0.0)
    lost = largest if largest < 1e-34 else 0.0
    sums = np.abs(codes.astype(np.int64)).sum(1) * LEVELS * absmax
    return lost * np.abs(decoded(codes, absmax)).sum(1) + 2.0**-149 * (sums + absmax + 2)
