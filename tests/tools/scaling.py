"""Print what 1, 2 and 3 threads take, in turn in one process: `instant` and a forward of a prior.

    python tests/tools/scaling.py [SECONDS]

SECONDS (100) are for all sizes together; let nothing else run. Milliseconds by the clock, medians;
then the median, over rounds, of one thread's time by that of several; then the threads of the
processor that a call kept busy, its processor time by the clock's. `instant` is from uint8 arrays,
infrared gray and visible color; the forward is the embedded prior's in float32. Calls that find the
machine busy keep PyTorch to one thread, as they do for users: the load is printed.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import cv2
import torch

from ddfm_fast import Fuser
from ddfm_fast.bench.engines import TIMESTEP, pictures
from ddfm_fast.datasets.demo import asset
from ddfm_fast.priors import load_prior
from ddfm_fast.runtime.memory import pages_kept

SIZES = (64, 64), (128, 128), (256, 320), (512, 640)
THREADS = (1, 2, 3)
LEAST_ROUNDS = 5


def instant(height: int, width: int) -> Callable[[], object]:
    names = "nir", "visible"
    pair = [cv2.resize(asset(f"sentinel2_{name}.png"), (width, height)) for name in names]
    fuser = Fuser(preset="instant")
    return lambda: fuser(*pair)


def forward(height: int, width: int) -> Callable[[], object]:
    prior, x = load_prior("embedded", dtype="float32"), pictures(1, height, width, 0)[1]
    step = prior.conditioning(torch.tensor([TIMESTEP]))[0]
    return lambda: prior.eps(x, step)


def rounds_of(call: Callable[[], object], seconds: float) -> list[list[tuple[float, float]]]:
    """Time rounds of one call on each number of threads: by the clock, and of the processor."""
    found: list[list[tuple[float, float]]] = []
    for count in THREADS:
        torch.set_num_threads(count)
        call()
    until = time.monotonic() + seconds
    while len(found) < LEAST_ROUNDS or time.monotonic() < until:
        found.append([])
        for count in THREADS:
            torch.set_num_threads(count)
            begun, used = time.perf_counter(), time.process_time()
            call()
            found[-1].append((time.perf_counter() - begun, time.process_time() - used))
    return found


def row_of(name: str, size: tuple[int, int], found: list[list[tuple[float, float]]]) -> str:
    columns = [[one[k] for one in found] for k in range(len(THREADS))]
    cells = [f"{1e3 * statistics.median(clock for clock, _ in one):.2f}" for one in columns]
    for k in range(1, len(THREADS)):
        faster = statistics.median(one[0][0] / one[k][0] for one in found)
        cells.append(f"{faster:.2f}")
    cells += [f"{statistics.median(used / clock for clock, used in one):.2f}" for one in columns]
    return f"| {name} | {size[0]}x{size[1]} | {len(found)} | " + " | ".join(cells) + " |"


def main(seconds: str = "100") -> None:
    print(f"{os.cpu_count()} cores, PyTorch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    titles = ["", "size", "rounds", *(f"{n}, ms" for n in THREADS)]
    titles += [f"1 by {n}" for n in THREADS[1:]] + [f"busy of {n}" for n in THREADS]
    print("| " + " | ".join(titles) + " |" + "\n|" + "---|" * len(titles))
    share = float(seconds) / len(SIZES) / 2
    with pages_kept(torch.device("cpu")):
        for name, make in (("instant", instant), ("forward", forward)):
            for size in SIZES:
                print(row_of(name, size, rounds_of(make(*size), share)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
