"""Choose how many threads a call computes on, and of which kind.

PyTorch's own operations run on OpenMP's threads, and each operation waits until all threads have
run: on a machine whose cores are busy, that costs a time slice of the scheduler, however little
there is to do. The C++ of ``ddfm_fast.kernels.cpu`` does not wait for threads that never come. So
if it does nearly all of the work and cores are busy, PyTorch's part stays on the calling thread.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch

_of_thread = threading.local()


def count() -> int:
    """Count the threads that this thread's calls may use, as ``torch.set_num_threads`` set it."""
    return getattr(_of_thread, "count", 0) or torch.get_num_threads()


@contextmanager
def for_ours() -> Iterator[None]:
    """Run this thread's own PyTorch operations on one thread, until the end of the block.

    :func:`count` still returns how many there are. Other threads' operations stay as they are, and
    nothing changes if PyTorch's OpenMP library is not found.
    """
    before, limit = torch.get_num_threads(), _limit()
    if before <= 1 or limit is None:
        yield
        return
    _of_thread.count = before
    limit(1)
    try:
        yield
    finally:
        limit(before)
        _of_thread.count = 0


def where_busy(allowed: bool) -> AbstractContextManager[None]:
    """Use :func:`for_ours` while the machine is busy, if ``allowed``: no byte may depend on it."""
    return for_ours() if allowed and machine_is_busy() else nullcontext()


def machine_is_busy() -> bool:
    """Return whether more threads want to run than there are cores: now, or in the last minute.

    A single moment says little about a machine whose programs wait and run in turn. A program that
    has the machine to itself makes a load of at most the cores. False if the system does not tell.
    """
    try:
        load, _, _, running, *_ = Path("/proc/loadavg").read_text().split()
        cores = os.cpu_count() or 1
        return int(running.partition("/")[0]) > cores or float(load) > cores + 0.5
    except (OSError, ValueError):  # not Linux
        return False


@lru_cache(maxsize=1)
def _limit() -> Callable[[int], None] | None:
    """Find the setter of the calling thread's threads; torch.set_num_threads sets everyone's."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return None
    paths = {line.split(maxsplit=5)[-1] for line in lines}
    names = "libgomp", "libiomp5", "libomp"
    home = Path(torch.__file__).parent
    found = [Path(path) for path in paths if Path(path).name.startswith(names)]
    for path in sorted(found, key=lambda p: (home not in p.parents, p)):
        function = getattr(ctypes.CDLL(str(path)), "omp_set_num_threads", None)
        if function is not None:
            function.argtypes, function.restype = [ctypes.c_int], None
            return function
    return None
