"""RMSNorm, SwiGLU's product and the rotation of queries and keys, forward and backward, each in one pass over memory.

PyTorch takes a handful of operations for each, and every one reads and writes whole tensors, some of them in float32.
The formulas, and where they round, are those of `llama.norm`, `llama.swiglu` and `llama.rotary`, which call these where
they apply. None is returned where C does not apply: no compiler, another device, tensors that are not all bfloat16 or
all float32, or an operation that is being traced by torch.compile.

Letters: M rows (all leading dimensions), C model width, T positions, H heads, D head size.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.compiler import is_compiling

from native.library import FLOAT, INT, POINTER, SIZE, load_library


def rms_norm(a: Tensor, gain: Tensor, eps: float) -> Tensor | None:
    """round(a / √(mean(a²) + ε)) · gain, the mean over the last dimension: a (..., C), gain (C,) -> (..., C)."""
    library = _library_for(a, gain)
    if library is None or gain.shape != a.shape[-1:]:
        return None
    a, gain, y = a.contiguous(), gain.contiguous(), _like(a)
    library.rms_norm(*_pointers(a, gain, y), *_matrix(a), eps, *_settings(a))
    return y


def rms_norm_backward(
    dy: Tensor, a: Tensor, gain: Tensor, eps: float, *, train_gain: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Gradients of `rms_norm`: da (..., C), and dgain (C,) if it is asked for."""
    library = _library_for(dy, a, gain)
    if library is None or gain.shape != a.shape[-1:]:
        return None
    dy, a, gain, da = dy.contiguous(), a.contiguous(), gain.contiguous(), _like(a)
    dgain = _like(gain) if train_gain else None
    rho = torch.empty(a.shape[:-1], dtype=torch.float32)
    pointers = (*_pointers(dy, a, gain, da), 0 if dgain is None else dgain.data_ptr(), rho.data_ptr())
    library.rms_norm_backward(*pointers, *_matrix(a), eps, *_settings(a))
    return da, dgain


def silu_product(gate: Tensor, up: Tensor) -> Tensor | None:
    """round(SiLU(gate)) ⊗ up, of any shape, the same for both."""
    library = _library_for(gate, up)
    if library is None or gate.shape != up.shape:
        return None
    gate, up, y = gate.contiguous(), up.contiguous(), _like(gate)
    library.silu_product(*_pointers(gate, up, y), y.numel(), *_settings(gate))
    return y


def silu_product_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor] | None:
    """Gradients of `silu_product`: dgate and dup."""
    library = _library_for(dy, gate, up)
    if library is None or gate.shape != up.shape:
        return None
    dy, gate, up, dgate, dup = dy.contiguous(), gate.contiguous(), up.contiguous(), _like(gate), _like(up)
    library.silu_product_backward(*_pointers(dy, gate, up, dgate, dup), dy.numel(), *_settings(gate))
    return dgate, dup


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor | None:
    """Neighbours (2i, 2i+1) of the last dimension turned by `sign` times the angle with this cosine and sine.

    Shapes: x (..., T, H, D), cos and sin (T, 1, D/2) float32, or with x's leading dimensions too -> (..., T, H, D).
    """
    library = _library_for(x)
    if library is None or not (_is_table(cos, x) and _is_table(sin, x)) or cos.shape != sin.shape:
        return None
    x, cos, sin, y = x.contiguous(), cos.contiguous(), sin.contiguous(), _like(x)
    heads, pairs = x.shape[-2], x.shape[-1] // 2
    sizes = (x.shape[:-2].numel(), cos.numel() // pairs, heads, pairs)
    library.rotate_rows(*_pointers(x, cos, sin, y), *sizes, sign, *_settings(x))
    return y


def _is_table(table: Tensor, x: Tensor) -> bool:
    """Whether it has a line for each position of x, or for each of its last dimensions' positions, over and over."""
    positions = table.shape[:-2]
    fits = 0 < len(positions) < x.ndim - 1 and positions == x.shape[-2 - len(positions) : -2]
    fits = fits and table.shape[-2] == 1 and 2 * table.shape[-1] == x.shape[-1]
    return fits and table.dtype == torch.float32 and table.device.type == "cpu"


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _matrix(x: Tensor) -> tuple[int, int]:
    """M and C of (..., C)."""
    return x.shape[:-1].numel(), x.shape[-1]


def _pointers(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _settings(x: Tensor) -> tuple[bool, int]:
    return x.dtype == torch.bfloat16, torch.get_num_threads()


def _library_for(*tensors: Tensor) -> ctypes.CDLL | None:
    dtype = tensors[0].dtype
    alike = all(x.device.type == "cpu" and x.dtype == dtype and x.numel() for x in tensors)
    usable = alike and dtype in (torch.bfloat16, torch.float32) and not is_compiling()
    return _library() if usable else None


@cache
def _library() -> ctypes.CDLL | None:
    library = load_library(Path(__file__).with_suffix(".c"))
    if library is not None:
        settings = [INT, INT]  # bf16, threads
        library.rms_norm.argtypes = [*[POINTER] * 3, SIZE, SIZE, FLOAT, *settings]
        library.rms_norm_backward.argtypes = [*[POINTER] * 6, SIZE, SIZE, FLOAT, *settings]
        library.silu_product.argtypes = [*[POINTER] * 3, SIZE, *settings]
        library.silu_product_backward.argtypes = [*[POINTER] * 5, SIZE, *settings]
        library.rotate_rows.argtypes = [*[POINTER] * 4, *[SIZE] * 4, FLOAT, *settings]
        forward = (library.rms_norm, library.silu_product, library.rotate_rows)
        for function in (*forward, library.rms_norm_backward, library.silu_product_backward):
            function.restype = None
    return library
