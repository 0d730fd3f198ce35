"""LoRA in NumPy float64, summed index by index as eq. 3 of arXiv 2106.09685 writes it."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def scale(alpha: float, r: int, rslora: bool) -> float:
    return alpha * r**-0.5 if rslora else alpha * r**-1


def lora_forward(x: ArrayLike, W: ArrayLike, A: ArrayLike, B: ArrayLike, s: float) -> Array:
    """h_k = Σ_d W_kd x_d + s Σ_ρ B_kρ Σ_d A_ρd x_d, for rows x of (n, d)."""
    x, W, A, B = (np.asarray(array, dtype=np.float64) for array in (x, W, A, B))
    h = np.zeros((len(x), len(W)))
    for n, row in enumerate(x):
        compressed = [sum(a * v for a, v in zip(A_row, row, strict=True)) for A_row in A]
        for k in range(len(W)):
            h[n, k] = sum(w * v for w, v in zip(W[k], row, strict=True))
            h[n, k] += s * sum(b * c for b, c in zip(B[k], compressed, strict=True))
    return h


def lora_magnitude(x: ArrayLike, W: ArrayLike, A: ArrayLike, B: ArrayLike, s: float) -> Array:
    """The same sums over absolute values: what the rounding errors of any order of summation scale with."""
    return lora_forward(np.abs(x), np.abs(W), np.abs(A), np.abs(B), abs(s))


def lora_gradients(
    x: ArrayLike, W: ArrayLike, A: ArrayLike, B: ArrayLike, s: float, dh: ArrayLike
) -> tuple[Array, Array, Array]:
    """dL/dx, dL/dA, dL/dB for dL/dh = dh: (n, d), (r, d), (k, r)."""
    x, W, A, B, dh = (np.asarray(array, dtype=np.float64) for array in (x, W, A, B, dh))
    dx = np.einsum("nk,kd->nd", dh, W + s * np.einsum("kr,rd->kd", B, A))
    dA = s * np.einsum("nk,kr,nd->rd", dh, B, x)
    dB = s * np.einsum("nk,rd,nd->kr", dh, A, x)
    return dx, dA, dB


def merged(W: ArrayLike, A: ArrayLike, B: ArrayLike, s: float) -> Array:
    """W + s·BA."""
    W, A, B = (np.asarray(array, dtype=np.float64) for array in (W, A, B))
    return W + s * np.einsum("kr,rd->kd", B, A)
