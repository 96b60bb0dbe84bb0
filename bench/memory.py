"""Peak memory of a call, above what was there before it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of(work: Callable[[], object], device: torch.device) -> int | None:
    """Return bytes: PyTorch's allocator on CUDA, the process's resident memory on Linux, else None.

    Call it in a fresh process: memory that an earlier call left with the C library hides the peak.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not STATUS.is_file():
        return None
    before = _status("VmRSS")
    try:
        CLEAR.write_text("5")  # resets the peak to what is resident now
    except OSError:
        before = _status("VmHWM")
    work()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no line {key}")
