"""LLM.int8() in NumPy float64, written from the paper (arXiv 2208.07339) and in its notation: X (n×d), W (d×k)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def quantize_rows(x: Matrix) -> tuple[Matrix, Matrix]:
    """X_i8 = round(127 X / c) with c_i = max_j |x_ij|; integers in float64."""
    c = np.abs(x).max(axis=1, initial=0.0)
    safe = np.where(c == 0, 1.0, c)
    return np.rint(127 * x / safe[:, None]), c


def distance_from_ties(x: Matrix) -> float:
    """How far the entries of 127 X / c stay from the nearest half-integer, where float32 might round the other way."""
    c = np.abs(x).max(axis=1, initial=0.0)
    scaled = 127 * x / np.where(c == 0, 1.0, c)[:, None]
    return float(np.abs(scaled - np.floor(scaled) - 0.5).min(initial=0.5))


def is_outlier(x: Matrix, threshold: float) -> NDArray[np.bool_]:
    """Which columns have any |x_ij| ≥ threshold; with threshold 0, none."""
    if threshold == 0:
        return np.zeros(x.shape[1], dtype=bool)
    return (np.abs(x) >= threshold).any(axis=0)


@dataclass(frozen=True)
class Product:
    """The two parts of the product; `outlier_mass` is |O|·|W_O|, to which the second part's rounding is relative."""

    regular: Matrix
    outlier: Matrix
    outlier_mass: Matrix
    n_outliers: int

    @property
    def total(self) -> Matrix:
        return self.regular + self.outlier

    def float32_rounding(self, unit: float) -> Matrix:
        """What float32 arithmetic after the integer sum, and a last rounding to the output's dtype, may add per entry.

        `unit` is half that dtype's eps. The regular part takes 5 roundings (int32 to float32, two scales, two
        products); the outlier part 3 for each decoded weight and its product, and one for each addition; their sum 1.
        This counts to first order, hence the 1 % on top.
        """
        float32 = 2.0**-24
        roundings = 5 * np.abs(self.regular) + (self.n_outliers + 4) * self.outlier_mass + np.abs(self.total)
        return 1.01 * (float32 * roundings + unit * np.abs(self.total)) + 1e-38


def llm_int8(x: Matrix, w: Matrix, threshold: float) -> Product:
    """The paper's formula: c_W over the regular rows of W, and O·W_O from W itself."""
    outlier = is_outlier(x, threshold)
    x_codes, c_x = quantize_rows(x[:, ~outlier])
    w_codes_t, c_w = quantize_rows(w[~outlier].T)
    return _product(x, outlier, x_codes, c_x, w_codes_t.T, c_w, w[outlier])


def llm_int8_frozen(x: Matrix, w_codes: Matrix, c_w: Matrix, threshold: float) -> Product:
    """The same for a weight known only by its codes (d×k) and the absmax of its columns (k,)."""
    outlier = is_outlier(x, threshold)
    x_codes, c_x = quantize_rows(x[:, ~outlier])
    return _product(x, outlier, x_codes, c_x, w_codes[~outlier], c_w, w_codes[outlier] * c_w / 127)


def _product(
    x: Matrix, outlier: NDArray[np.bool_], x_codes: Matrix, c_x: Matrix, w_codes: Matrix, c_w: Matrix, w_outlier: Matrix
) -> Product:
    v = x_codes @ w_codes  # integers below 2^53: exact
    return Product(
        regular=v * np.outer(c_x, c_w) / 127**2,
        outlier=x[:, outlier] @ w_outlier,
        outlier_mass=np.abs(x[:, outlier]) @ np.abs(w_outlier),
        n_outliers=int(outlier.sum()),
    )


def error_bound(x: Matrix, w: Matrix, threshold: float, *, frozen: bool) -> Matrix:
    """The most by which LLM.int8() may miss X·W, entry by entry.

    With x̂ = x + δ, |δ| ≤ c_x/254 and ŵ = w + ε, |ε| ≤ c_w/254, regular columns contribute Σ x̂ŵ − xw = Σ (xε + δŵ).
    Outlier columns contribute Σ xε if the weight is frozen (W_O decoded from its codes), else nothing.

    Codes are computed in float32: 127·x/c takes 3 roundings, so it may land 127·3·2^-24 beyond the half-way point.
    """
    half_step = 0.5 + 127 * 3 * 2.0**-24
    outlier = is_outlier(x, threshold)
    regular_x, regular_w = x[:, ~outlier], w[~outlier]
    c_x = np.abs(regular_x).max(axis=1, initial=0.0)
    c_w = np.abs(w if frozen else regular_w).max(axis=0, initial=0.0)
    w_hat_mass = (np.abs(regular_w) + half_step * c_w / 127).sum(axis=0)  # ≥ Σ |ŵ|
    x_mass = np.abs(x if frozen else regular_x).sum(axis=1)
    return half_step / 127 * (np.outer(x_mass, c_w) + np.outer(c_x, w_hat_mass))
