"""What more threads bring on a CPU: alone, and beside programs that take all cores."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ddfm_fast import Fuser
from ddfm_fast.priors.load import load_prior
from ddfm_fast.runtime.machine import usable_cores

from ..place import Place, Task, largest_difference, named
from ..results import Measurement, Parity
from . import prior

ABOUT = "1, 2, 3 threads and more than cores, alone and on a busy machine: the same bytes, faster"
SIZE, TINY = (480, 640), (64, 96)
BUSY = "while True: pass"


def tasks(place: Place) -> list[Task]:
    """A forward and a closed form, each alone and on a busy machine; nothing on a GPU."""
    if place.device.type != "cpu" or place.rehearse:
        return []
    size = TINY if place.tiny else SIZE
    made: list[Task] = []
    for what, work in (("forward of the prior", forward), ("whole fusion, preset instant", fusion)):
        for busy in (False, True):
            name = f"{what}, {'a busy' if busy else 'an idle'} machine"
            made.append(Task("threads", name, named(*size), partial(measure, place, work, busy)))
    return made


def counts() -> list[int]:
    """Numbers of threads: 1, 2, 3, the cores, and one more than these."""
    cores = usable_cores()
    return sorted({1, 2, 3, cores, cores + 1})


def forward(height: int, width: int) -> Callable[[], Tensor]:
    """A forward of the embedded prior in float32."""
    cpu = torch.device("cpu")
    ours = load_prior("embedded", device=cpu, dtype="float32")
    return prior.forward(ours, prior.noise(height, width, cpu))


def fusion(height: int, width: int) -> Callable[[], Tensor]:
    """A clean pair of 8 bits, by the closed form."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    ir, vis = ((rows * a + columns * b) % 256 for a, b in ((1, 2), (3, 1)))
    fuser = Fuser(preset="instant", device="cpu", denoise="off")
    return partial(fuser, ir.to(torch.uint8), vis.to(torch.uint8))


@contextlib.contextmanager
def busy_machine(busy: bool) -> Iterator[None]:
    """Beside it, a process a core that computes; none unless ``busy``."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy * usable_cores())]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(place: Place, make: Callable, busy: bool) -> Measurement:
    """The same work on each number of threads, in turn; their results hold the same bytes."""
    work, before = make(*(TINY if place.tiny else SIZE)), torch.get_num_threads()

    def on(threads: int) -> Tensor:
        torch.set_num_threads(threads)
        return work()

    try:
        one = on(1).clone()
        check = [
            Parity(f"{n} threads against 1", largest_difference(one, on(n)), 0.0)
            for n in counts()[1:]
        ]
        works = {f"{n} thread{'s' * (n > 1)}": partial(on, n) for n in counts()}
        with busy_machine(busy):
            return place.measure(
                works, *check, baseline="1 thread", facts={"cores": usable_cores()}
            )
    finally:
        torch.set_num_threads(before)
