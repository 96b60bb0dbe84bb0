"""Print what one and two threads take on a machine that this script keeps busy.

    python tests/tools/busy.py [SECONDS] [LOADS]

LOADS (0,1,2,5,11) are how many programs run beside, each in a session of its own, as those of other
users are; SECONDS (200) are for everything. A row is a network's forward pass: "in turn" in one
process, blocks on one and on two threads; "apart" in a process for each, which take turns as well.
Milliseconds by the clock, medians, then the processor's; two threads' time by that of one; and how
many layers of a pass two threads left to one since more did not pay (kernels/cpu/worth.h). "others"
is how many cores other programs kept busy meanwhile: where it is not near 0, repeat it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ddfm_fast.bench.data import network
from ddfm_fast.bench.engines import TIMESTEP, pictures
from ddfm_fast.kernels.cpu import build
from ddfm_fast.priors import load_prior

CASES = (("embedded", 64, 64), ("embedded", 128, 128), ("embedded", 256, 320),
         ("small ADM", 128, 128))  # fmt: skip
LEAST, BLOCK = 20, 5
LOOP = [sys.executable, "-c", "import time\nwhile time.process_time() < 600: pass"]
"""ends by itself should this script be killed"""
TICK = os.sysconf("SC_CLK_TCK")
Process = subprocess.Popen[str]


def worker(case: int) -> None:
    """Answer lines "threads calls" with the layers left to one thread, then two times per call."""
    name, height, width = CASES[case]
    prior = load_prior(network(name), dtype="float32")
    x, alone = pictures(1, height, width, 0)[1], build.library().shared.ddfm_team_alone
    alone.restype = ctypes.c_int64
    for line in sys.stdin:
        threads, calls = map(int, line.split())
        torch.set_num_threads(threads)
        before, found = alone(), []
        for _ in range(calls):
            begun, used = time.perf_counter(), time.process_time()
            prior(x, TIMESTEP)
            found += [time.perf_counter() - begun, time.process_time() - used]
        print(alone() - before, *found, flush=True)


def ask(process: Process, threads: int, calls: int = BLOCK) -> list[float]:
    """Let a worker make calls; its answer."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{threads} {calls}\n")
    process.stdin.flush()
    return [float(word) for word in process.stdout.readline().split()]


@contextlib.contextmanager
def started(commands: list[list[str]]) -> Iterator[list[Process]]:
    """Start programs, each in a session of its own, and kill them at the end of the block."""
    pipe, found = subprocess.PIPE, list[Process]()
    try:
        for command in commands:
            found.append(
                subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, text=True, start_new_session=True
                )
            )
        yield found
    finally:
        for process in found:
            process.kill()
        for process in found:
            process.communicate()


def worked(processes: list[Process]) -> float:
    """Return the seconds of the processor that went to other processes than these, so far."""
    user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split()[1:8]
    ours = [Path(f"/proc/{p.pid}/stat").read_text().rpartition(")")[2].split() for p in processes]
    spent = sum(int(number) for fields in ours for number in fields[11:13])
    return (sum(map(int, (user, nice, system, *interrupts))) - spent) / TICK


def row_of(load: int, case: int, workers: list[Process], loops: list[Process], share: float) -> str:
    """Time one and two threads in turn: on one worker, or on two of them."""
    found: dict[int, list[float]] = {1: [], 2: []}
    alone, begun, before = 0.0, time.monotonic(), worked(workers + loops)
    while time.monotonic() < begun + share or len(found[1]) < 2 * LEAST:
        for threads, process in ((1, workers[0]), (2, workers[-1])):
            left, *times = ask(process, threads)
            found[threads] += times
            alone += left
    others = (worked(workers + loops) - before) / (time.monotonic() - begun)
    medians = [statistics.median(found[n][k::2]) for n in found for k in (0, 1)]
    name, height, width = CASES[case]
    cells = [str(load), f"{others:.1f}", f"{name} {height}x{width}"]
    cells += ["in turn" if len(workers) == 1 else "apart", str(len(found[1]) // 2)]
    cells += [f"{1e3 * medians[k]:.1f}, {1e3 * medians[k + 1]:.1f}" for k in (0, 2)]
    cells += [f"{medians[2] / medians[0]:.2f}", f"{2 * alone / len(found[2]):.0f}"]
    return "| " + " | ".join(cells) + " |"


def main(seconds: str = "200", loads: str = "0,1,2,5,11") -> None:
    counts = [int(load) for load in loads.split(",")]
    print(f"{os.cpu_count()} cores, PyTorch {torch.__version__}, load {os.getloadavg()[0]:.1f}\n")
    titles = ["programs", "others", "forward pass", "", "calls", "one thread", "two threads",
              "two by one", "layers left to one"]  # fmt: skip
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    share = float(seconds) / len(counts) / len(CASES) / 2
    for case in range(len(CASES)):
        with started([[sys.executable, __file__, "--worker", str(case)]] * 2) as workers:
            for process in workers:
                for threads in (1, 2):
                    ask(process, threads)
            for load in counts:
                with started([LOOP] * load) as loops:
                    for several in (workers[:1], workers):
                        print(row_of(load, case, several, loops, share), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(int(sys.argv[2]))
    elif {"-h", "--help"} & set(sys.argv):
        print(__doc__)
    else:
        main(*sys.argv[1:])
