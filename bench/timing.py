"""Interleaved timing: ratios of medians within one run, and the machine they belong to."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ddfm_fast.files import atomic_write_bytes

RESULTS = Path(__file__).resolve().parent / "results"


def cpu_seconds(function: Callable[[], object]) -> float:
    """Seconds that one call takes on the host's clock."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def gpu_seconds(function: Callable[[], object]) -> float:
    """Seconds between two events around one call on the current CUDA stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def interleave(
    candidates: dict[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 2,
    clock: Callable[[Callable[[], object]], float] = cpu_seconds,
) -> dict[str, list[float]]:
    """Seconds of each call by ``clock``: every round runs each candidate once, in turn."""
    for function in candidates.values():
        for _ in range(warmup):
            function()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, function in candidates.items():
            samples[name].append(clock(function))
    return samples


def summarise(samples: dict[str, list[float]], baseline: str) -> dict[str, dict]:
    """Median, 20th and 80th percentile in ms, and the ratio to the baseline's median."""
    base = statistics.median(samples[baseline])
    rows = {}
    for name, seconds in samples.items():
        ordered = sorted(seconds)
        pick = lambda share, s=ordered: s[round(share * (len(s) - 1))] * 1e3  # noqa: E731
        median = statistics.median(seconds)
        rows[name] = {
            "median_ms": median * 1e3,
            "p20_ms": pick(0.2),
            "p80_ms": pick(0.8),
            "times_faster": base / median,
            "samples_ms": [s * 1e3 for s in seconds],
        }
    return rows


def save(kind: str, results: list[dict]) -> Path:
    """Write the machine and the results to ``bench/results/<kind>-<date>.json``."""
    report = {"machine": machine(), "results": results}
    path = RESULTS / f"{kind}-{datetime.date.today()}.json"
    return atomic_write_bytes(path, (json.dumps(report, indent=1) + "\n").encode())


def machine() -> dict:
    """What a reader needs to judge the figures; no host or user names."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        named = {k.strip(): v.strip() for k, v in fields.items()}
        return f"{named['model name']} (family {named['cpu family']}, model {named['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = Path(__file__).resolve().parent
    try:
        return subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
