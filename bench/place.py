"""Where and how things are timed: one ``Place`` per run, which every section receives.

A GPU is timed by CUDA events, a CPU by the host's clock. ``rehearse`` runs the GPU's sections on
the CPU with tiny sizes, the kernels in Triton's interpreter and no graphs: it tests only the logic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from . import machine
from .results import Candidate, Measurement, Parity
from .timing import cpu_seconds, gpu_seconds, interleave, synchronized_seconds

PLANES_OF_A_STEP = 13
"""float32 planes that a step must read or write once"""
MOST_SETS = 32
YARDSTICK = "yardstick"
SIZED = ("kernels", "step", "prior")
"""sections that ``--size`` is for"""


class ParityError(RuntimeError):
    """Two results that should agree do not: no timing is reported."""

    def __init__(self, parity: list[Parity]):
        self.parity = parity
        red = next(p for p in parity if not p.green)
        super().__init__(
            f"{red.what}: the results differ by {red.difference:.1e}, more than {red.limit:.0e}; "
            "no speed-up is reported for a different result"
        )


@dataclass
class Place:
    """``seconds``: after this time a measurement starts no new round beyond the third."""

    device: torch.device
    quick: bool = False
    rehearse: bool = False
    repeats: int = 20
    seconds: float = 20.0
    size: tuple[int, int] | None = None
    """of the step, the kernels and the prior, if requested"""
    tick: Callable[[], object] = lambda: None
    ceilings: dict[str, dict] = field(default_factory=dict)
    yardstick: list[float] = field(default_factory=list)
    """samples of the yardstick in the last measurement"""

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU's candidates run: on a GPU, or rehearsed."""
        return self.device.type == "cuda" or self.rehearse

    @property
    def tiny(self) -> bool:
        return self.quick or self.rehearse

    @property
    def clock(self) -> Callable:
        return gpu_seconds if self.device.type == "cuda" else cpu_seconds

    @property
    def wall(self) -> Callable:
        """For work with a host's share: the host's clock, with the device idle before and after."""
        return synchronized_seconds if self.device.type == "cuda" else cpu_seconds

    def command(self, section: str, size: str) -> str:
        """Return the command that repeats a section's measurement."""
        words = [machine.COMMAND, section]
        words += [f"--size {size}"] if section in SIZED else []
        words += ["--quick"] if self.quick else ["--rehearse"] if self.rehearse else []
        return " ".join(words)

    def measure_ceilings(self) -> None:
        scale = 512 if self.rehearse else 4 if self.quick else 1
        repeats = 2 if self.rehearse else 15
        self.ceilings = machine.ceilings(self.device, self.clock, scale=scale, repeats=repeats)

    def floor(self, moved: float, operations: float = 0.0, precision: str = "float32") -> float:
        """Return the least seconds for these bytes and operations at this run's ceilings."""
        products = self.ceilings.get(precision, self.ceilings["float32"])
        return max(moved / self.ceilings["copy"]["rate"], operations / products["rate"])

    def fixed_work(self) -> Callable[[], object]:
        """Make products, a copy and transforms that no change of ours affects; some ms on a CPU."""
        side = 2048 if self.device.type == "cuda" else 384
        a, b = torch.ones(2, side, side, device=self.device).unbind()
        source = torch.ones(2**21, device=self.device)
        target, plane = torch.empty_like(source), source[: 2**16].view(256, 256)
        return lambda: (a @ b, target.copy_(source), torch.fft.rfft2(plane))

    def sets(self, height: int, width: int) -> int:
        """Return how many sets of a step's buffers exceed the last cache three times: 2 to 32."""
        if self.tiny:
            return 2
        of_one = PLANES_OF_A_STEP * 4 * height * width
        return max(2, min(MOST_SETS, math.ceil(3 * machine.cache_bytes(self.device) / of_one)))

    def replay(self, work: Callable[[], object]) -> Callable[[], object]:
        """Return ``work`` as the replay of a CUDA graph, or itself if there are no graphs."""
        if self.device.type != "cuda":
            return work
        from ddfm_fast.runtime.capture import CudaCapture

        capture = CudaCapture(self.device)
        capture.warm_up(work)
        return capture.capture(work)

    def captured(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return ``replay`` of work that returns a tensor: the same one at every call."""
        if self.device.type != "cuda":
            return work
        kept: dict[str, Tensor] = {}
        replay = self.replay(lambda: kept.update(out=work()))

        def run() -> Tensor:
            replay()
            return kept["out"]

        return run

    def measure(
        self,
        candidates: dict[str, Callable[[], object]],
        *checks: Parity,
        baseline: str | None = "reference",
        floors: dict[str, float] | None = None,
        facts: dict | None = None,
        **timing,
    ) -> Measurement:
        """Time the candidates in turn (``times``) if all checks are green, else raise ParityError.

        ``floors``: least seconds by candidate. ``facts``: what else a reader wants to know.
        """
        parity = require(*checks)
        found = Measurement(baseline=baseline, parity=parity, facts=facts or {})
        found.candidates = self.times(candidates, **timing)
        for name, least in (floors or {}).items():
            found.candidates[name].floor = least
        return found

    def times(
        self,
        candidates: dict[str, Callable[[], object]],
        *,
        calls: dict[str, int] | None = None,
        repeats: int | None = None,
        clock: Callable | None = None,
        warmup: int = 1,
        rest: float = 0.0,
    ) -> dict[str, Candidate]:
        """Time interleaved; return seconds per call if a candidate makes ``calls[name]`` at once.

        A fixed piece of work also takes its turn, and its samples are ``yardstick``. ``rest``: as
        in ``interleave``.
        """
        samples = interleave(
            {**candidates, YARDSTICK: self.fixed_work()},
            repeats=1 if self.rehearse else min(repeats or self.repeats, self.repeats),
            warmup=0 if self.rehearse else warmup,
            clock=clock or self.clock,
            seconds=self.seconds,
            tick=self.tick,
            rest=0.0 if self.rehearse else rest,
        )
        self.yardstick = samples.pop(YARDSTICK)
        return {
            name: Candidate([s / (calls or {}).get(name, 1) for s in taken])
            for name, taken in samples.items()
        }


class Task(NamedTuple):
    """A measurement to make. ``work`` leaves section, name, size and command to the runner."""

    section: str
    name: str
    size: str
    work: Callable[[], Measurement]


def in_turn(works: list[Callable[[], object]]) -> Callable[[], object]:
    """Call the next of ``works``, round and round, so that inputs have left the cache."""
    turn = itertools.cycle(works)
    return lambda: next(turn)()


def require(*parity: Parity) -> list[Parity]:
    """Return the checks, if all are green; ParityError before anything is timed."""
    if not all(p.green for p in parity):
        raise ParityError(list(parity))
    return list(parity)


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Return max |a − b|; NaN if either has one, which no limit lets through."""
    return float((a.float() - b.to(a.device).float()).abs().max())


def apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, over the largest value of ``a`` if that is above 1."""
    return largest_difference(a, b) / max(1.0, float(a.abs().max()))


def named(height: int, width: int) -> str:
    return f"{height}x{width}"
