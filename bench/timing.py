"""Interleaved timing: every round runs each candidate once, so ratios compare like with like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ddfm_fast.runtime.profiling import span

LEAST_ROUNDS = 3
"""with fewer, a median and its spread say nothing"""


def cpu_seconds(function: Callable[[], object]) -> float:
    """Time one call on the host's clock, in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def gpu_seconds(function: Callable[[], object]) -> float:
    """Time one call by two events around it on the current CUDA stream, in seconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def synchronized_seconds(function: Callable[[], object]) -> float:
    """Time on the host's clock from an idle CUDA device to an idle one: host work counts, too."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def interleave(
    candidates: dict[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 2,
    clock: Callable[[Callable[[], object]], float] = cpu_seconds,
    seconds: float | None = None,
    least: int = LEAST_ROUNDS,
    tick: Callable[[], object] = lambda: None,
    rest: float = 0.0,
) -> dict[str, list[float]]:
    """Time each call by ``clock``, in seconds: every round runs each candidate once, in turn.

    ``repeats`` rounds, or fewer once ``seconds`` have passed, but at least ``least`` (or
    ``repeats``). ``tick`` is called after every call. With NVTX on, each call is a range with its
    name. ``rest``: seconds without work before each turn, in which the previous candidate's threads
    stop spinning, followed by an untimed call that wakes this one's.
    """
    start = time.monotonic()
    for function in candidates.values():
        for _ in range(warmup):
            function()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for done in range(repeats):
        if done >= least and seconds is not None and time.monotonic() - start > seconds:
            break
        for name, function in candidates.items():
            if rest:
                time.sleep(rest)
                function()
            with span(f"bench: {name}"):
                samples[name].append(clock(function))
            tick()
    return samples


def quantile(samples: list[float], share: float) -> float:
    """Return the sample below which ``share`` of them lie; the nearest one, not interpolated."""
    ordered = sorted(samples)
    return ordered[round(share * (len(ordered) - 1))]


LIMIT_S = 600
WORKER = str(Path(__file__).resolve().with_name("worker.py"))
RUN = f"import runpy; runpy.run_path({WORKER!r}, run_name='__main__')"
"""not ``-m``, which would import the package before the clock starts, and not the file's path,
which would put this folder before all others in the search for modules"""


def in_fresh_process(job: str, *arguments) -> dict:
    """Return what ``job`` prints; RuntimeError with the end of its error output if it fails."""
    import ddfm_fast

    home = Path(ddfm_fast.__file__).resolve().parents[1]
    paths = [str(home), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-c", RUN, job, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"bench worker {job} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])
