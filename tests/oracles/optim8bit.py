"""The 8-bit optimizer in NumPy float64, written from the papers' formulas (arXiv 2110.02861 and 1412.6980)."""

import numpy as np


def dynamic_map(signed: bool) -> np.ndarray:
    """Every value by the formula (k + ½)-th of n parts of [0.1, 1], times a power of ten."""
    values = [0.0, 1.0]
    for i in range(7):
        n = 2**i if signed else 2 * 2**i
        for k in range(n):
            value = (0.1 + 0.9 * (k + 0.5) / n) * 10.0 ** (i - 6)
            values += [value, -value] if signed else [value]
    return np.sort(np.array(values))


def quantize(x: np.ndarray, values: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes by exhaustive search and the blocks' largest magnitudes, for a finite vector x."""
    codes, scales = np.zeros(x.size, dtype=np.uint8), []
    for start in range(0, x.size, block_size):
        block = x[start : start + block_size].astype(np.float64)
        scale = np.abs(block).max()
        unit = block / scale if scale > 0 else block
        codes[start : start + block_size] = np.abs(unit[:, None] - values[None, :]).argmin(axis=1)
        scales.append(scale)
    return codes, np.array(scales)


def dequantize(codes: np.ndarray, scales: np.ndarray, values: np.ndarray, block_size: int) -> np.ndarray:
    return np.array([values[code] * scales[i // block_size] for i, code in enumerate(codes)])


def adam(
    p: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of Adam on unquantized moments: (p, m, v)."""
    if decoupled:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v
