"""Choose how many images go through the prior at once, and keep memory between steps.

Batch size follows free memory and is halved on out-of-memory. On a CPU a loop keeps the pages of
one step for the next.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..images.doubts import warn
from .capture import release_cached_memory
from .locks import ForkLock

if TYPE_CHECKING:
    from ..priors.prior import Prior

T = TypeVar("T")

SHARE = 0.8
"""of the free memory that may be planned for: fragmentation and libraries' workspaces need some"""
SAMPLER_PLANES = 40
"""float32 planes per image that the loop and the rectification hold, a generous estimate"""
# Numbers of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_INT_MAX = 2**31 - 1
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on the host or on a device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in _OUT_OF_MEMORY
    )


def free_bytes(device: torch.device) -> int | None:
    """Count what can still be allocated on a CUDA device, PyTorch's reserve included; else None."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_host_bytes() -> int | None:
    """Count what the host can still allocate, by Linux and its container; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        limit, used = (
            Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current")
        )
        return max(0, min(free, int(limit) - int(used)))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return free


def image_bytes(prior: Prior, height: int, width: int, *, keeps: bool = False) -> int | None:
    """Estimate what fusing one image needs besides the weights; None if the prior cannot tell.

    ``keeps``: include the deep layers that a loop keeps to reuse them.
    """
    height, width = (-(-n // prior.multiple) * prior.multiple for n in (height, width))
    activations = prior.activation_bytes(1, height, width)
    if activations is None:
        return None
    kept = prior.kept_bytes(1, height, width) if keeps else 0
    return activations + kept + SAMPLER_PLANES * 4 * height * width


def images_that_fit(
    prior: Prior,
    height: int,
    width: int,
    most: int,
    free: int | None = None,
    *,
    keeps: bool = False,
) -> int:
    """Choose 1 to ``most`` images of that size at once, by the memory that is free.

    ``free`` is in bytes, None for what the prior's device has. The result is ``most`` if free or
    needed memory is unknown: on a CPU, or with a callable as the prior. ``keeps``: see
    :func:`image_bytes`.
    """
    free = free_bytes(prior.device) if free is None else free
    if free is None or most == 1:
        return most
    need = image_bytes(prior, height, width, keeps=keeps)
    return most if need is None else max(1, min(most, int(SHARE * free) // need))


def in_batches(
    function: Callable[..., T], inputs: Sequence[Any], size: int, *, fallback: bool
) -> list[T]:
    """Apply ``function`` to slices of at most ``size`` along the first axis of each input.

    With ``fallback``, a slice for which memory runs out is tried again in halves, as are those that
    follow, with a warning. An image that does not fit alone raises.
    """
    results: list[T] = []
    first = 0
    while first < len(inputs[0]):
        try:
            results.append(function(*(x[first : first + size] for x in inputs)))
        except (RuntimeError, MemoryError) as error:
            if not fallback or size == 1 or not is_out_of_memory(error):
                raise
            size = min(size, len(inputs[0]) - first)
            shape = "x".join(map(str, inputs[0].shape[-2:]))
            warn(
                f"memory ran out with {size} images of {shape} at once; "
                f"continuing with {max(size // 2, 1)}",
            )
            size = max(size // 2, 1)
        else:
            first += size
            continue
        # outside the handler, whose traceback would keep the failed tensors alive
        release_cached_memory()
    return results


_keepers = 0
_keepers_lock = ForkLock()


@lru_cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc and its allocator was not tuned from outside."""
    tuned = "malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
    if tuned or not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    known = hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")
    return library if known else None


@contextmanager
def pages_kept(device: torch.device) -> Iterator[None]:
    """Let the process keep up to 2 GiB of memory that is freed on a CPU within the ``with`` block.

    By default glibc hands large blocks back to the system at once, and every activation of every
    step then costs a page fault per 4 KiB. After the block, free memory is handed back except for
    64 MiB, and blocks of 32 MiB and more come from the system again; these are the largest values
    that glibc chooses by itself. Blocks may be nested, and entered in several threads. Does nothing
    for other devices and C libraries, or if ``MALLOC_*`` or ``GLIBC_TUNABLES`` tune the allocator.
    """
    library = _glibc() if device.type == "cpu" else None
    if library is None:
        yield
        return
    _count_keepers(library, 1)
    try:
        yield
    finally:
        _count_keepers(library, -1)


def _count_keepers(library: ctypes.CDLL, change: int) -> None:
    global _keepers
    with _keepers_lock:
        before, _keepers = _keepers, _keepers + change
        if before == 0:
            library.mallopt(_TRIM_THRESHOLD, _INT_MAX)
            library.mallopt(_MMAP_MAX, 0)
        elif _keepers == 0:
            library.mallopt(_TRIM_THRESHOLD, 64 << 20)
            library.mallopt(_MMAP_THRESHOLD, 32 << 20)
            library.mallopt(_MMAP_MAX, 1 << 16)
            library.malloc_trim(64 << 20)
