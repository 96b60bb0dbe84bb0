"""Check what is passed to the C++ of this folder, before an address is taken.

Results and scratch are made here too, as float32 on the CPU whatever PyTorch's defaults are: the
code writes floats, and with a smaller default dtype it would write past the end. Large ones are
requested in huge pages: otherwise memory that glibc gave back returns as zeros, with a page fault
per 4 KiB.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

CPU, FLOAT = torch.device("cpu"), torch.float32
HUGE_PAGE, LARGE = 1 << 21, 1 << 22
"""bytes of a huge page on x86-64, and least bytes of a tensor for which they are requested"""
_MADV_HUGEPAGE = 14


def empty(*shape: int) -> Tensor:
    """Make a float32 tensor on the CPU, not yet written."""
    return in_huge_pages(torch.empty(shape, dtype=FLOAT, device=CPU))


def empty_strided(
    shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype = FLOAT
) -> Tensor:
    """Make such a tensor with a given layout; faster than :func:`empty`."""
    return torch.empty_strided(shape, strides, dtype=dtype, device=CPU)


def in_huge_pages(x: Tensor) -> Tensor:
    """Ask the system to back a large tensor, not yet written, with huge pages; return the tensor.

    Pages outside the tensor are left alone, so it takes no more memory. Only Linux has this; if it
    refuses, pages stay small.
    """
    size = x.nbytes
    if size >= LARGE and (advise := _madvise()) is not None:
        begin = x.data_ptr()
        first, last = -(-begin // HUGE_PAGE) * HUGE_PAGE, (begin + size) // HUGE_PAGE * HUGE_PAGE
        advise(first, last - first, _MADV_HUGEPAGE)
    return x


@lru_cache(maxsize=1)
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    found = getattr(ctypes.CDLL(None), "madvise", None)
    if found is not None:
        found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found


def check(name: str, x: Tensor, shape: Sequence[int], dtype: torch.dtype = FLOAT) -> None:
    """Raise ValueError unless ``x`` has the dtype and shape, on the CPU, without gaps, aligned."""
    right = x.shape == shape and x.dtype is dtype and x.is_cpu and x.is_contiguous()
    if not right:
        raise refusal(name, x, shape, "without gaps", dtype)
    address(name, x)


def refusal(
    name: str, x: Tensor, shape: Sequence[int | str], layout: str, dtype: torch.dtype = FLOAT
) -> ValueError:
    """Make the error for a tensor that lacks the dtype, shape or layout, or is not on the CPU."""
    expected = str(dtype).removeprefix("torch.")
    return ValueError(
        f"{name} of shape {tuple(x.shape)}, {x.dtype}, {x.device}, strides {x.stride()}; "
        f"expected {tuple(shape)}, {expected} on the CPU, {layout}"
    )


def address(name: str, x: Tensor) -> int:
    """Find where a tensor begins; ValueError if C++ cannot read floats there.

    A view of bytes may begin anywhere, the storage of a tensor may have been freed under it, and
    the imaginary part of a conjugate has its sign in a bit of the tensor.
    """
    found = x.data_ptr()
    size = x.element_size()
    if found % size or not found or x.is_neg():
        raise ValueError(
            f"{name}: begins at address {found:#x}, negative bit {x.is_neg()}; expected memory "
            f"that begins at a multiple of {size} bytes, without that bit: .clone() it"
        )
    return found


def check_apart(out: Tensor, others: Sequence[tuple[str, Tensor]]) -> None:
    """Raise ValueError if a result would overwrite what is read; all tensors have no gaps."""
    begin, end = _span(out)
    for name, x in others:
        first, last = _span(x)
        if first < end and begin < last:
            raise ValueError(f"out: shares memory with {name}; expected memory of its own")


def _span(x: Tensor) -> tuple[int, int]:
    begin = x.data_ptr()
    return begin, begin + x.numel() * x.element_size()
