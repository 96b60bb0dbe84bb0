"""The machine to which figures belong: what it is, what runs on it, and what it reaches.

The ceilings are measured in the same run as everything else, so that "of the limit" means what
this machine reached on that day, not what a data sheet promises.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import ddfm_fast
from ddfm_fast.priors.precision import cpu_has

from .timing import interleave, quantile

FOLDER = Path(__file__).resolve().parent
IN_CHECKOUT = (FOLDER.parent / "setup.py").is_file()
RESULTS = FOLDER / "results" if IN_CHECKOUT else Path("ddfm_fast_bench")
"""where results go: into the repository or, if only the package is there, the current folder"""
COMMAND = "python -m bench" if IN_CHECKOUT else "ddfm-fast bench"
PACKAGES = ("torch", "triton", "cupy-cuda12x", "cupy-cuda13x", "numpy", "scikit-image")
COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
LAUNCHES = 1000
PRODUCTS = ("float32", "bfloat16", "float16")
LARGEST_CPU_CACHE = 2**26
"""bytes of a shared CPU's last cache that may be ours; its stated size is for everybody's cores"""


def machine(device: torch.device | str = "cpu") -> dict:
    """Return what a reader needs to judge the figures, without host or user names."""
    device = torch.device(device)
    found = {
        "cpu": _cpu_name(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "ddfm_fast": ddfm_fast.__version__,
        "commit": commit(),
    }
    found |= {
        name: found_version for name in PACKAGES if (found_version := installed_version(name))
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "gpu_l2_bytes": properties.L2_cache_size,
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return found


def device_name(card: dict) -> str:
    """Return the name for a result's file: the GPU's name, or "cpu"."""
    return re.sub(r"[^a-z0-9]+", "-", card.get("gpu", "cpu").lower()).strip("-")


def commit() -> str:
    """Return the commit of the checkout, "+changes" if files differ; for a package its version.

    A kit (``kit``) has no history, but a file with its commit.
    """
    if not IN_CHECKOUT:
        return f"version {ddfm_fast.__version__}"
    if (noted := FOLDER.parent / "COMMIT").is_file():
        return noted.read_text().strip()
    command = ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=FOLDER, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cache_bytes(device: torch.device) -> int:
    """Return the last cache before memory: what rotated inputs must exceed."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [2**23]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) * 2**10)
    return min(max(sizes), LARGEST_CPU_CACHE)


def ceilings(
    device: torch.device, clock: Callable, *, scale: int = 1, repeats: int = 15
) -> dict[str, dict]:
    """Measure limits, {"copy": …, "float32": …}: ``rate``, the best, and every sample.

    They are bytes read plus written, operations, or launches (of an operator on 16 numbers) per
    second. ``scale`` divides the sizes, for a quick look. Products in bfloat16 and float16 are
    measured only if the device has units for them.
    """
    count = COPY_BYTES[device.type] // 4 // scale
    side = MATRIX_SIDE[device.type] // scale
    source = torch.rand(count, device=device)
    target = torch.empty_like(source)
    works = {"copy": (2 * 4 * count, lambda: target.copy_(source))}
    tiny = torch.zeros(16, device=device)
    works["launch"] = (LAUNCHES, lambda: [tiny.add_(1.0) for _ in range(LAUNCHES)])
    names = [n for n in PRODUCTS if device.type == "cuda" or cpu_has(getattr(torch, n))]
    for name in names:
        a, b = torch.randn(2, side, side, device=device).to(getattr(torch, name)).unbind()
        works[name] = (2 * side**3, lambda a=a, b=b: a @ b)
    samples = interleave(
        {name: work for name, (_, work) in works.items()}, repeats=repeats, clock=clock
    )
    return {
        name: {
            "rate": works[name][0] / quantile(taken, 0),
            "samples": [works[name][0] / s for s in taken],
        }
        for name, taken in samples.items()
    }


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        named = {k.strip(): v.strip() for k, v in fields.items()}
        return f"{named['model name']} (family {named['cpu family']}, model {named['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def installed_version(distribution: str) -> str | None:
    """Return the installed version of a distribution; None if it is missing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"
