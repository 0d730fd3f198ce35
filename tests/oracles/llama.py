"""LLaMA in NumPy float64, written from the papers' formulas with explicit loops: the truth that the tests compare with.

No code is shared with the implementation, and none of its shortcuts are taken: positions are d×d matrices, attention
goes query by query, grouped heads are looked up one by one.
"""

import numpy as np


def rms_norm(a: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """arXiv 1910.07467, eq. 4, for the last axis."""
    a = a.astype(np.float64)
    return a / np.sqrt(np.mean(a**2, axis=-1, keepdims=True) + eps) * gain.astype(np.float64)


def swiglu(x: np.ndarray, w: np.ndarray, v: np.ndarray, w2: np.ndarray, beta: float = 1.0) -> np.ndarray:
    """arXiv 2002.05202, eq. 6 without biases, row vectors: w, v (C, hidden), w2 (hidden, C)."""
    gate = x.astype(np.float64) @ w.astype(np.float64)
    return (gate / (1 + np.exp(-beta * gate)) * (x @ v.astype(np.float64))) @ w2.astype(np.float64)


def rotary_matrix(position: int, dim: int, theta: float) -> np.ndarray:
    """arXiv 2104.09864, eq. 15."""
    matrix = np.zeros((dim, dim))
    for i in range(1, dim // 2 + 1):
        angle = position * theta ** (-2 * (i - 1) / dim)
        rows = slice(2 * i - 2, 2 * i)
        matrix[rows, rows] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def attention(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """One row: queries (H, T, D), keys and values (G, S, D), visible (T, S) bool -> (H, T, D)."""
    n_heads, n_queries, head_dim = queries.shape
    output = np.zeros((n_heads, n_queries, values.shape[-1]))
    for h in range(n_heads):
        g = h * keys.shape[0] // n_heads
        for t in range(n_queries):
            seen = np.flatnonzero(visible[t])
            weights = softmax(keys[g, seen] @ queries[h, t] / np.sqrt(head_dim))
            output[h, t] = weights @ values[g, seen]
    return output


def forward(
    weights: dict[str, np.ndarray],
    token_ids: list[int],
    *,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    eps: float,
    theta: float,
    positions: list[int] | None = None,
    visible: np.ndarray | None = None,
) -> np.ndarray:
    """Logits (T, V) of one row. `weights` has Meta's names and (out, in) matrices."""
    w = {name: weight.astype(np.float64) for name, weight in weights.items()}
    n_tokens = len(token_ids)
    positions = list(range(n_tokens)) if positions is None else positions
    visible = np.tril(np.ones((n_tokens, n_tokens), dtype=bool)) if visible is None else visible
    x = w["tok_embeddings.weight"][token_ids]
    head_dim = x.shape[-1] // n_heads
    turns = np.stack([rotary_matrix(m, head_dim, theta) for m in positions])  # (T, D, D)
    for layer in range(n_layers):
        block = f"layers.{layer}."
        a = rms_norm(x, w[block + "attention_norm.weight"], eps)
        q, k, v = (
            (a @ w[f"{block}attention.{name}.weight"].T).reshape(n_tokens, heads, head_dim).transpose(1, 0, 2)
            for name, heads in (("wq", n_heads), ("wk", n_kv_heads), ("wv", n_kv_heads))
        )
        q, k = (np.einsum("tij,htj->hti", turns, heads) for heads in (q, k))
        attended = attention(q, k, v, visible).transpose(1, 0, 2).reshape(n_tokens, -1)
        x = x + attended @ w[block + "attention.wo.weight"].T
        a = rms_norm(x, w[block + "ffn_norm.weight"], eps)
        w1, w2, w3 = (w[f"{block}feed_forward.{name}.weight"].T for name in ("w1", "w2", "w3"))
        x = x + swiglu(a, w1, w3, w2)
    return rms_norm(x, w["norm.weight"], eps) @ w["output.weight"].T
