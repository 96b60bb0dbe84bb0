"""The machine: processor, cores and memory that this process may use."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

SPINS = "1000"
"""rounds that OpenMP's threads spin before they sleep: some 50 microseconds"""


def cpu_model() -> str:
    """Name the processor, as Linux does where it can."""
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Count the cores of this process: its affinity, or a container's quota if that is less."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return cores


def quiet_openmp() -> None:
    """Let OpenMP's threads go to sleep soon, and be no more than this process's cores.

    OpenMP reads the environment when it is loaded, with PyTorch; if that has happened already, or
    if the user has set these variables, nothing changes. By default its threads spin for
    milliseconds after each operation, which takes the cores from other programs and, on a busy
    machine, from our own threads; nor does it see that a container's share is smaller than the
    machine.
    """
    if "torch" in sys.modules:
        return
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
    if (share := usable_cores()) < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(share))


def total_bytes() -> int | None:
    """Return the machine's memory, or the container's limit if that is less; None if unknown."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return total


@functools.cache
def one_thread_after_fork() -> None:
    """Make processes that are forked from this one compute on one thread; once per process.

    A fork does not copy the threads of OpenMP and OpenCV, and a child that waits for them, even
    just to end them, waits forever. So OpenCV's are ended before the fork.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_before_fork, after_in_child=_one_thread, after_in_parent=_threads_again
        )


def forked_from_cuda() -> bool:
    """Return whether this process was forked from one that had used CUDA, so that it cannot."""
    return _cuda["lost"]


_cuda = {"used": False, "lost": False}
_opencv = {"threads": 1}


def _before_fork() -> None:
    torch = sys.modules.get("torch")
    _cuda["used"] = torch is not None and torch.cuda.is_initialized()
    if hasattr(sys.modules.get("cv2"), "setNumThreads"):  # else it is being imported
        _opencv["threads"] = sys.modules["cv2"].getNumThreads()
        sys.modules["cv2"].setNumThreads(1)


def _threads_again() -> None:
    if _opencv["threads"] > 1:
        sys.modules["cv2"].setNumThreads(_opencv["threads"])


def _one_thread() -> None:
    _cuda["lost"] = _cuda["lost"] or _cuda["used"]
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
