"""Cross entropy over rows of logits, with the gradient written over them, in C.

PyTorch widens 16-bit logits to a float32 copy, writes their log-softmax, then the gradient, then its 16-bit copy: four
tables of N·V. Here the only table is the logits' own. The formula is that of `training.loss`, which calls this where it
applies. None is returned where C does not apply: no compiler, another device, dtype or layout.

Letters: N rows, V vocabulary.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from native.library import FLOAT, INT, POINTER, SIZE, load_library

MAX_VOCABULARY = 2**18
"""A row in float32 lies on the stack: a megabyte at most."""


def cross_entropy_(logits: Tensor, targets: Tensor, scale: float | None) -> Tensor | None:
    """(N,) float32: logsumexp(z) − z[target] of each row z of logits (N, V), float32 or bfloat16.

    Args:
        targets: (N,) int64.
        scale: the logits become scale·(softmax(z) − onehot(target)), rounded once to their dtype; None leaves them.

    Raises:
        ValueError: the targets are not one int64 per row, or one is no column of the logits.
    """
    usable = logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.bfloat16) and not is_compiling()
    usable = usable and logits.is_contiguous() and 0 < logits.shape[1] <= MAX_VOCABULARY
    library = _library() if usable else None
    if library is None:
        return None
    n, vocabulary = logits.shape
    if targets.shape != (n,) or targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype}, {tuple(targets.shape)}: give one int64 id to each of {n} rows")
    if n and not 0 <= targets.min() <= targets.max() < vocabulary:
        raise ValueError(
            f"targets reach from {targets.min()} to {targets.max()}, the vocabulary from 0 to {vocabulary - 1}: "
            "leave unsupervised positions out, and encode with the tokenizer that the model was made for"
        )
    targets, losses = targets.contiguous(), torch.empty(n, dtype=torch.float32)
    pointers = (logits.data_ptr(), targets.data_ptr(), losses.data_ptr())
    gradient = (0.0, False) if scale is None else (scale, True)
    library.cross_entropy(*pointers, n, vocabulary, *gradient, logits.dtype == torch.bfloat16, torch.get_num_threads())
    if scale is not None:
        increment_version(logits)  # autograd then refuses a backward pass that needs the logits
    return losses


@cache
def _library() -> ctypes.CDLL | None:
    library = load_library(Path(__file__).with_suffix(".c"))
    if library is not None:
        library.cross_entropy.argtypes = [POINTER, POINTER, POINTER, SIZE, SIZE, FLOAT, INT, INT, INT]
        library.cross_entropy.restype = None
    return library
