"""Ask the system to back a tensor by pages of 2 MB instead of 4 kB, where it leaves the choice to programs.

Processors fetch ahead within a page only and look up the address of each new one, so a weight that is read from front
to back comes faster in large pages.
"""

import ctypes
import mmap
import sys
from functools import cache

from torch import Tensor

HUGE_PAGE = 2 * 2**20
MADV_HUGEPAGE = 14  # <linux/mman.h>


def advise_huge_pages(tensor: Tensor) -> Tensor:
    """The tensor given, whose memory must not have been written to yet. Advice only: nothing happens elsewhere than in
    Linux's CPU memory, to a small tensor, or where the system refuses."""
    if tensor.device.type == "cpu" and tensor.nbytes >= HUGE_PAGE and (libc := _libc()) is not None:
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(start, tensor.data_ptr() + tensor.nbytes - start, MADV_HUGEPAGE)
    return tensor


@cache
def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
