"""A tensor that has not been read yet: its shape and dtype are known, its values come when asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies elsewhere: in a file, in several, in a model.

    Attributes:
        shape, dtype: as `read` will return it.
        read: fetches it. The result may share memory with where it came from.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "StoredTensor":
        """A tensor at hand, in the same form.

        >>> StoredTensor.of(torch.zeros(2, 3, dtype=torch.float16)).nbytes
        12
        """
        return cls(tuple(tensor.shape), tensor.dtype, tensor.detach)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return prod(self.shape) * self.dtype.itemsize
