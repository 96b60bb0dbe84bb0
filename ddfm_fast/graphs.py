"""The sampling loop as CUDA graphs: captured once a shape, then replayed.

    "loop"   one launch for the whole loop: initial state, every step's prior and rectification,
             and the luma at the end. No host work between the steps.
    "step"   one launch a step; which row it is, a counter on the device says. For callbacks and
             progress bars, where a graph of all steps takes too much memory, and where it would
             have more than ``MOST_NODES`` nodes.
    "eps"    one evaluation of the prior outside of the loop, as denoising sources takes them; its
             timestep is an input like x.

A hundred steps of a UNet are 26,000 nodes, which take seconds to capture and a host's memory to
keep, and save nothing: a graph of a step keeps the device busy while the host launches the next.
Conditional nodes would need the driver's own interface for a body that PyTorch captures.

A shape's first call runs eagerly, since most shapes of a mixed folder come once; the second
captures, or ``Fuser.warmup`` does beforehand. What a graph has frozen in is its key: device,
shape, every setting, prior and mode. Beyond ``limit`` graphs or ``most_bytes`` the least recently
used is dropped, and its memory with it: each has a pool of its own. The prior's weights are shared.

A capture that fails leaves everything as it was (``runtime.capture``), and the call runs eagerly.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

from .config import FuseConfig
from .priors.callable import CallablePrior
from .priors.conditioning import Conditioning
from .priors.prior import Prior
from .runtime.capture import (
    CAPTURING,
    CudaCapture,
    Replay,
    bytes_of_environment,
    checked_limit,
    spoilt_by_another,
)
from .runtime.dispatch import Backend
from .sampler import Loop, Sampled, StepInfo

log = logging.getLogger(__name__)

SEEN_LIMIT = 256
MOST_NODES = 2000
"""of a graph of the whole loop, where the mode is left to choose"""
MOST_SPOILT = 3
"""captures of a prior that may fail through other threads before it is taken for the prior's own"""
MIB = 2**20


class LongGraph(RuntimeError):
    """A graph of the whole loop would have more than ``MOST_NODES`` nodes."""


class Captured:
    """What was captured: its mode, what making it took, and what it holds."""

    mode: str
    seconds = 0.0
    """from the first eager run to the graph"""
    bytes = 0
    """of device memory"""

    def __init__(self, capture: CudaCapture):
        self.capture = capture
        self.replays: list[Replay] = []

    @property
    def nodes(self) -> int | None:
        """Nodes of the graph, or of a step's; None where the driver does not tell."""
        counts = [replay.nodes for replay in self.replays]
        return None if None in counts else max(n for n in counts if n is not None)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        started, before = time.perf_counter(), self.capture.memory()
        yield
        self.seconds = time.perf_counter() - started
        self.bytes = self.capture.memory() - before


class CapturedLoop(Captured):
    """A :class:`Loop` whose work is replayed; the same interface, one call at a time: ``lock``.

    Args:
        make: Makes the loop.
        mode: "loop" or "step".
        capture: What captures.
        most_nodes: Of the whole loop's graph; None for any number.

    Raises:
        LongGraph: There would be more nodes.
        torch.OutOfMemoryError: Memory is short.
        Exception: What the prior raises, or RuntimeError where its code cannot be captured.
    """

    def __init__(
        self,
        make: Callable[[], Loop],
        mode: str,
        capture: CudaCapture,
        most_nodes: int | None = None,
    ):
        super().__init__(capture)
        self.mode, self.most_nodes = mode, most_nodes
        self.lock: AbstractContextManager = capture.lock
        with self._measured():
            self.loop = make()
            self.rows = self.loop.rows
            capture.warm_up(self._some_steps)
            pool = capture.new_pool()
            if mode == "loop":
                self.replays = [capture.capture(self._all_steps, pool)]
            else:
                self.replays = self._capture_steps(pool)

    def _all_steps(self) -> None:
        self.loop.begin()
        for s in range(len(self.rows)):
            self.loop.step(s)
            if s == 0 and self.most_nodes is not None:
                nodes = (self.capture.nodes() or 0) * len(self.rows)
                if nodes > self.most_nodes:
                    raise LongGraph(f"about {nodes} nodes, more than {self.most_nodes}")
        self.loop.finish()

    def _some_steps(self) -> None:
        """Every kernel and library call of the loop, in as few steps as have them all."""
        last = len(self.rows) - 1
        self.loop.begin()
        for s in sorted({0, min(1, last), last}):
            self.loop.step(s)
        self.loop.finish()

    def _capture_steps(self, pool: object) -> list[Replay]:
        """A graph for each place that x_t can be in: step s replays number s modulo their count."""
        loop = self.loop
        loop.begin()

        def step(s: int) -> None:
            loop.step(s, loop.next_conditioning())

        return [self.capture.capture(partial(step, s), pool) for s in range(loop.reverse.period)]

    def load(self, i: Tensor, v: Tensor, seed: int, x_start: Tensor | None = None) -> None:
        """See :meth:`Loop.load`; the device first finishes the call before."""
        self.capture.wait()
        self.loop.load(i, v, seed, x_start)

    def run(self, steps: Iterable[int], callback: Callable[[StepInfo], None] | None) -> None:
        """See :meth:`Loop.run`; in mode "loop" ``steps`` and ``callback`` are not looked at."""
        try:
            if self.mode == "loop":
                self.replays[0]()
                return
            self.loop.begin()
            for s in steps:
                self.replays[s % len(self.replays)]()
                self.loop.report(s, callback)
            self.loop.finish()
        finally:  # a callback may raise
            self.capture.record()

    def take(self) -> Sampled:
        """A copy of the result: the next call overwrites it."""
        result = Sampled(*(tensor.clone() for tensor in self.loop.take()))
        self.capture.record()
        return result


class CapturedEvaluation(Captured):
    """An evaluation of the prior that is replayed, on an x and a timestep of its own.

    ``shape``: that of x. ``conditioning``: any one step's; its layout is that of all. Raises what
    :class:`CapturedLoop` does.
    """

    mode = "eps"

    def __init__(
        self, prior: Prior, shape: tuple[int, ...], conditioning: Conditioning, capture: CudaCapture
    ):
        super().__init__(capture)

        def work() -> None:
            self.eps = prior.eps(self.x, item).float()

        with self._measured():
            self.x = torch.zeros(shape, device=prior.device)
            self.row = conditioning.table[0].clone()
            item = conditioning.unpack(self.row)
            capture.warm_up(work)
            self.replays = [capture.capture(work, capture.new_pool())]

    def __call__(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        """``prior.eps`` of x at the one step of ``conditioning``, float32, a copy."""
        with self.capture.lock:
            self.capture.wait()
            self.x.copy_(x)
            self.row.copy_(conditioning.table[0])
            self.replays[0]()
            result = self.eps.clone()
            self.capture.record()
        return result


Make = Callable[[str, CudaCapture], Captured]
"""captures in a mode"""


class GraphSummary(TypedDict):
    """A CUDA graph that is kept."""

    shape: tuple[int, ...]
    """(N, H, W) of a loop, (N, C, H, W) of an evaluation, padded as the prior needs it"""
    mode: str
    """"loop", "step" or "eps": see ``ddfm_fast.graphs``"""
    nodes: int | None
    """kernels and copies of the graph, or of a step's; None where the driver does not tell"""
    bytes: int
    """device memory that it holds"""
    seconds: float
    """that the first call spent on it, compiling included"""


class GraphCache:
    """Loops and evaluations by shape and settings for one ``Fuser``: captured where it pays.

    Args:
        mode: "auto", "loop", "step" or "off" (``dispatch.resolve_graph``).
        backend: What runs a step.
        limit: Graphs kept, by default 8 or what the environment variable DDFM_FAST_GRAPHS says.
        most_bytes: Device memory that they may hold, by default a quarter of the device's or what
            DDFM_FAST_GRAPHS_MIB says; the newest graph is kept even if it is larger.
        capture: Makes what captures on a device.
    """

    def __init__(
        self,
        mode: str,
        backend: Backend,
        *,
        limit: int | None = None,
        most_bytes: int | None = None,
        capture: Callable[[torch.device], CudaCapture] = CudaCapture,
    ):
        self.mode, self.backend, self.limit = mode, backend, checked_limit(limit)
        self.most_bytes = bytes_of_environment() if most_bytes is None else most_bytes
        self._make_capture = capture
        self._captures: dict[torch.device, CudaCapture] = {}
        self._lock = threading.RLock()
        self._graphs: OrderedDict[tuple, Captured] = OrderedDict()
        self._seen: OrderedDict[tuple, str] = OrderedDict()
        """keys that ran, and the mode to capture them in: "off" where memory was short"""
        self._refused: set[Prior] = set()
        """priors that cannot be captured, at any size"""
        self._spoilt: Counter[Prior] = Counter()
        """captures that failed through other threads, it seems"""

    def loop(
        self, prior: Prior, config: FuseConfig, shape: tuple[int, int, int], watched: bool
    ) -> Loop | CapturedLoop:
        """The loop for a batch (N, H, W); ``watched``: a callback or a bar follows the steps."""
        key = self._key(prior, config, shape, watched)

        def make(mode: str, capture: CudaCapture) -> CapturedLoop:
            bounded = self.mode == "auto" and self.backend.name != "torch"
            new = CapturedLoop(
                partial(self._new_loop, prior, config, shape, watched), mode, capture,
                MOST_NODES if bounded else None,
            )  # fmt: skip
            if isinstance(prior, CallablePrior):
                _require_equal(new)
            return new

        with self._lock:
            found = self._found(key, prior, make)
        if isinstance(found, CapturedLoop):
            return found
        return self._new_loop(prior, config, shape, watched)

    def evaluate(self, prior: Prior, x: Tensor, conditioning: Conditioning) -> Tensor:
        """Evaluate ``prior.eps`` of x [N, C, H, W] at the one step of ``conditioning``."""
        key = self._key(prior, None, tuple(x.shape), False)

        def make(_mode: str, capture: CudaCapture) -> CapturedEvaluation:
            new = CapturedEvaluation(prior, tuple(x.shape), conditioning, capture)
            if isinstance(prior, CallablePrior):
                _require_close(prior.eps(x, conditioning[0]).float(), new(x, conditioning))
            return new

        with self._lock:
            found = self._found(key, prior, make)
        if isinstance(found, CapturedEvaluation):
            return found(x, conditioning)
        return prior.eps(x, conditioning[0])

    def _found(self, key: tuple, prior: Prior, make: Make) -> Captured | None:
        """What is captured under a key, if need be now; None where the call runs eagerly."""
        if prior in self._refused:
            return None
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        mode = self._seen.get(key)
        if mode is None and self.mode != "off":
            self._note(key, self.mode)
            log.info(
                "%s runs eagerly the first time and is captured the second; "
                "Fuser.warmup captures beforehand",
                _name(key[1]),
            )
        return None if mode in (None, "off") else self._captured(key, prior, make)

    def warm_up(
        self, prior: Prior, config: FuseConfig, shape: tuple[int, int, int], watched: bool = False
    ) -> None:
        """Do the first-call work of a shape: capture it, or run one step where nothing is."""
        key = self._key(prior, config, shape, watched)
        with self._lock, torch.inference_mode():
            captures = self.mode != "off" and prior not in self._refused
            if captures and self._seen.get(key) != "off":
                self._note(key, self._seen.get(key, self.mode))
                self.loop(prior, config, shape, watched)
            else:
                loop = self._new_loop(prior, config, shape, watched)
                loop.begin()
                loop.step(0)

    def clear(self) -> None:
        """Drop every graph and its memory."""
        with self._lock:
            self._graphs.clear()
            self._seen.clear()
            self._refused.clear()
            for capture in self._captures.values():
                capture.release()

    def __len__(self) -> int:
        return len(self._graphs)

    def summary(self) -> list[GraphSummary]:
        """Describe each graph kept, the least recently used first."""
        return [
            {
                "shape": key[1],
                "mode": graph.mode,
                "nodes": graph.nodes,
                "bytes": graph.bytes,
                "seconds": graph.seconds,
            }
            for key, graph in list(self._graphs.items())
        ]

    def _key(self, prior: Prior, config: FuseConfig | None, shape: tuple, watched: bool) -> tuple:
        # the prior itself: it hashes by identity, and its weights' addresses are frozen in
        return str(prior.device), tuple(shape), prior, config, self.backend[:2], watched

    def _new_loop(self, prior, config, shape, watched) -> Loop:
        return Loop(prior, config, shape, self.backend, watched=watched)

    def _note(self, key: tuple, mode: str) -> None:
        self._seen[key] = mode
        self._seen.move_to_end(key)
        while len(self._seen) > SEEN_LIMIT:
            self._seen.popitem(last=False)

    def _captured(self, key: tuple, prior: Prior, make: Make) -> Captured | None:
        """Capture in the best mode that works, and remember it; None where none does."""
        for mode in self._modes(key):
            try:
                captured = self._capture(mode, prior, key[1], make)
            except LongGraph as error:
                log.info("%s: graph='step', since the whole loop has %s", _name(key[1]), error)
            except torch.OutOfMemoryError:
                log.warning("%s: too little memory to capture graph=%r", _name(key[1]), mode)
            except Exception as error:  # the prior's own come again, and through, from eager code
                self._refuse(prior, error)
                return None
            else:
                self._graphs[key] = captured
                self._drop_beyond_bytes()
                return captured
            self._captures[prior.device].release()
        self._note(key, "off")
        return None

    def _refuse(self, prior: Prior, error: Exception) -> None:
        self._spoilt[prior] += 1
        if spoilt_by_another(error) and self._spoilt[prior] < MOST_SPOILT:
            log.info("a capture was spoilt, perhaps by another thread; a later call tries again")
            return
        log.warning(
            "prior %r cannot be captured in a CUDA graph (%s); it runs step by step: "
            'pass graph="off" to silence this',
            prior.name,
            str(error).split("\n")[0] or type(error).__name__,
        )
        self._refused.add(prior)

    def _modes(self, key: tuple) -> tuple[str, ...]:
        """The modes to try, the best first."""
        _, _, _, config, _, watched = key
        if config is None:
            return ("eps",)
        only_steps = watched or self._seen[key] == "step"
        if self.backend.name == "torch":  # whose steps have their coefficients frozen in
            return () if only_steps else ("loop",)
        return ("step",) if only_steps else ("loop", "step")

    def _capture(self, mode: str, prior: Prior, shape: tuple, make: Make) -> Captured:
        capture = self._captures.get(prior.device)
        if capture is None:
            capture = self._captures[prior.device] = self._make_capture(prior.device)
        while len(self._graphs) >= self.limit:
            self._drop_oldest()
        captured = None
        with CAPTURING:
            try:
                captured = make(mode, capture)
            except torch.OutOfMemoryError:
                if not self._graphs:
                    raise
            if captured is None:  # outside the handler, whose traceback keeps tensors alive
                log.warning("%s: dropping older graphs to make room", _name(shape))
                self._graphs.clear()
                capture.release()
                captured = make(mode, capture)
        log.info(
            "captured %s, graph=%r, in %.2f s, %.0f MiB, %s nodes",
            _name(shape), mode, captured.seconds, captured.bytes / MIB, captured.nodes,
        )  # fmt: skip
        return captured

    def _drop_beyond_bytes(self) -> None:
        most = self.most_bytes
        while len(self._graphs) > 1:
            if most is None:
                most = next(iter(self._captures.values())).total_memory() // 4
            if sum(graph.bytes for graph in self._graphs.values()) <= most:
                return
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        key, captured = self._graphs.popitem(last=False)
        capture = captured.capture
        del captured
        capture.release()
        log.info("dropped the graph of %s, the least recently used", _name(key[1]))


def _require_equal(captured: CapturedLoop) -> None:
    """RuntimeError unless a replay gives what the code itself gives.

    A callable may keep state or draw numbers on the host, which a capture freezes silently.
    """
    loop = captured.loop
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(2, *loop.i.shape, generator=generator) * 2 - 1
    results = []
    for run in (loop, captured):
        i, v = planes.to(loop.device)
        loop.load(i, v, 1)
        run.run(range(len(loop.rows)), None)
        results.append(loop.x[0].clone())
    _require_close(*results)


def _require_close(eager: Tensor, replayed: Tensor) -> None:
    """RuntimeError unless both are nearly the same."""
    scale = eager.abs().max().clamp(min=1)
    if not bool((eager - replayed).abs().max() <= 1e-3 * scale):
        raise RuntimeError("a replay differs from the code: it has state or host code in it")


def _name(shape: tuple) -> str:
    return "x".join(map(str, shape))
