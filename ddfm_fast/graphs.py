"""The sampling loop as CUDA graphs: captured once a shape, then replayed.

    "loop"   one launch for the whole loop: initial state, every step's prior and rectification,
             and the luma at the end. No host work between the steps.
    "step"   one launch a step; which row it is, a counter on the device says. For callbacks and
             progress bars, and where a graph of all steps takes too much memory.
    "eps"    one evaluation of the prior outside of the loop, as denoising sources takes them; its
             timestep is an input like x.

A shape's first call runs eagerly, since most shapes of a mixed folder come once; the second
captures, or ``Fuser.warmup`` does beforehand. What a graph has frozen in is its key: device,
shape, every setting, prior and mode. The least recently used is dropped beyond ``limit`` graphs.
The graphs of one cache share one memory pool, which their lock and their order on the stream
allow, and the prior's weights; x, i, v and the seeds are theirs alone and keep their addresses.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .config import FuseConfig
from .priors.callable import CallablePrior
from .priors.conditioning import Conditioning
from .priors.prior import Prior
from .runtime import environment
from .runtime.dispatch import Backend
from .sampler import Loop, Sampled, StepInfo

log = logging.getLogger(__name__)

SEEN_LIMIT = 256
WARMUPS = 2
"""eager runs before a capture: libraries choose algorithms and make plans and handles in them"""
MIB = 2**20


class CudaCapture:
    """How work becomes graphs on a CUDA device; tests put a recorder of their own in its place.

    Its graphs share a memory pool, so only one of them may run at a time: ``lock`` keeps threads
    apart, and ``wait`` and ``record`` the calls on different streams.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.lock = threading.RLock()
        self.pool: Any = None
        self.graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        with torch.cuda.device(device):
            self.stream, self.done = torch.cuda.Stream(), torch.cuda.Event()

    def warm_up(self, work: Callable[[], object]) -> None:
        """Run ``work`` eagerly on the stream that captures."""
        with torch.cuda.device(self.device):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                for _ in range(WARMUPS):
                    work()
            torch.cuda.current_stream().wait_stream(self.stream)
            torch.cuda.synchronize()

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """The replay of ``work``, which is not run; raises what ``work`` does."""
        if not self.graphs:  # PyTorch forgets a pool with its last graph
            self.pool = torch.cuda.graph_pool_handle()
        graph, failures = torch.cuda.CUDAGraph(), []

        def noted() -> None:
            try:
                work()
            except Exception as error:
                failures.append(error)
                raise

        try:
            # thread_local: what other threads of the program do must not spoil the capture
            with (
                torch.cuda.device(self.device),
                torch.cuda.graph(
                    graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
                ),
            ):
                noted()
        except Exception as error:  # ending a spoilt capture raises too, and tells less
            raise (failures[0] if failures else error) from None
        self.graphs.add(graph)

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return replay

    def memory(self) -> int:
        """Bytes that PyTorch holds on the device."""
        return torch.cuda.memory_reserved(self.device)

    def release(self) -> None:
        """Give back what nothing uses any more, once the device is done with it."""
        torch.cuda.synchronize(self.device)
        gc.collect()
        torch.cuda.empty_cache()

    def wait(self) -> None:
        """Let the current stream wait for the last ``record``."""
        torch.cuda.current_stream(self.device).wait_event(self.done)

    def record(self) -> None:
        """Mark the end of a call on the current stream."""
        self.done.record(torch.cuda.current_stream(self.device))


class CapturedLoop:
    """A :class:`Loop` whose work is replayed; the same interface, one call at a time: ``lock``.

    ``mode``: "loop" or "step". Capturing raises what the prior raises, RuntimeError where its
    code cannot be captured, torch.OutOfMemoryError where memory is short.
    """

    def __init__(self, loop: Loop, mode: str, capture: CudaCapture):
        self.loop, self.mode, self.capture = loop, mode, capture
        self.rows = loop.rows
        self.lock: AbstractContextManager = capture.lock
        started, before = time.perf_counter(), capture.memory()
        capture.warm_up(self._some_steps)
        if mode == "loop":
            self.replays = [capture.capture(self._eagerly)]
        else:
            self.replays = self._capture_steps()
        self.seconds = time.perf_counter() - started
        self.bytes = capture.memory() - before

    def _eagerly(self) -> None:
        self.loop.run(range(len(self.rows)), None)

    def _some_steps(self) -> None:
        """Every kernel and library call of the loop, in as few steps as have them all."""
        last = len(self.rows) - 1
        self.loop.begin()
        for s in sorted({0, min(1, last), last}):
            self.loop.step(s)
        self.loop.finish()

    def _capture_steps(self) -> list[Callable[[], None]]:
        """A graph for each place that x_t can be in: step s replays number s modulo their count."""
        loop = self.loop
        loop.begin()

        def step(s: int) -> None:
            loop.step(s, loop.next_conditioning())

        return [self.capture.capture(partial(step, s)) for s in range(loop.reverse.period)]

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


class CapturedEvaluation:
    """An evaluation of the prior that is replayed, on an x and a timestep of its own.

    ``shape``: that of x. ``conditioning``: any one step's; its layout is that of all. Raises what
    :class:`CapturedLoop` does.
    """

    mode = "eps"

    def __init__(
        self, prior: Prior, shape: tuple[int, ...], conditioning: Conditioning, capture: CudaCapture
    ):
        self.capture = capture
        self.x = torch.zeros(shape, device=prior.device)
        self.row = conditioning.table[0].clone()
        self.eps = self.x  # what the work below leaves
        item = conditioning.unpack(self.row)

        def work() -> None:
            self.eps = prior.eps(self.x, item).float()

        started, before = time.perf_counter(), capture.memory()
        capture.warm_up(work)
        self.replay = capture.capture(work)
        self.seconds = time.perf_counter() - started
        self.bytes = capture.memory() - before

    def __call__(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        """``prior.eps`` of x at the one step of ``conditioning``, float32, a copy."""
        with self.capture.lock:
            self.capture.wait()
            self.x.copy_(x)
            self.row.copy_(conditioning.table[0])
            self.replay()
            result = self.eps.clone()
            self.capture.record()
        return result


class GraphCache:
    """Loops and evaluations by shape and settings for one ``Fuser``: captured where it pays.

    ``mode``: "loop", "step" or "off" (``dispatch.resolve_graph``). ``limit``: graphs kept, by
    default 8 or what the environment variable DDFM_FAST_GRAPHS says.
    """

    def __init__(
        self,
        mode: str,
        backend: Backend,
        *,
        limit: int | None = None,
        capture: Callable[[torch.device], CudaCapture] = CudaCapture,
    ):
        self.mode, self.backend, self.limit = mode, backend, _checked_limit(limit)
        self._make_capture = capture
        self._captures: dict[torch.device, CudaCapture] = {}
        self._lock = threading.RLock()
        self._graphs: OrderedDict[tuple, CapturedLoop | CapturedEvaluation] = OrderedDict()
        self._seen: OrderedDict[tuple, str] = OrderedDict()
        """keys that ran, and the mode to capture them in: "off" where memory was short"""
        self._refused: set[Prior] = set()
        """priors that cannot be captured, at any size"""

    def loop(
        self, prior: Prior, config: FuseConfig, shape: tuple[int, int, int], watched: bool
    ) -> Loop | CapturedLoop:
        """The loop for a batch (N, H, W); ``watched``: a callback or a bar follows the steps."""
        key = self._key(prior, config, shape, watched)

        def make(mode: str, capture: CudaCapture) -> CapturedLoop:
            new = CapturedLoop(self._new_loop(prior, config, shape, watched), mode, capture)
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

    def _found(
        self, key: tuple, prior: Prior, make: Callable[[str, CudaCapture], Captured]
    ) -> Captured | None:
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

    def summary(self) -> list[dict]:
        """Of each graph kept: shape (N, H, W), mode, seconds to capture, bytes it took then."""
        return [
            {"shape": key[1], "mode": g.mode, "seconds": g.seconds, "bytes": g.bytes}
            for key, g in self._graphs.items()
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

    def _captured(
        self, key: tuple, prior: Prior, make: Callable[[str, CudaCapture], Captured]
    ) -> Captured | None:
        """Capture in the best mode that works, and remember it; None where none does."""
        for mode in self._modes(key):
            try:
                captured = self._capture(mode, prior, key[1], make)
            except torch.OutOfMemoryError:
                log.warning("%s: too little memory to capture graph=%r", _name(key[1]), mode)
                self._captures[prior.device].release()
                continue
            except RuntimeError as error:
                log.warning(
                    "prior %r cannot be captured in a CUDA graph (%s); it runs step by step: "
                    'pass graph="off" to silence this',
                    prior.name,
                    str(error).split("\n")[0],
                )
                self._refused.add(prior)
                return None
            self._graphs[key] = captured
            return captured
        self._note(key, "off")
        return None

    def _modes(self, key: tuple) -> tuple[str, ...]:
        """The modes to try, the best first."""
        _, _, _, config, _, watched = key
        if config is None:
            return ("eps",)
        modes = {"loop": ("loop", "step"), "step": ("step",)}[self._seen[key]]
        if watched:
            modes = ("step",)
        if self.backend.name == "torch":
            modes = tuple(mode for mode in modes if mode == "loop")
        return modes

    def _capture(
        self,
        mode: str,
        prior: Prior,
        shape: tuple,
        make: Callable[[str, CudaCapture], Captured],
    ) -> Captured:
        capture = self._captures.get(prior.device)
        if capture is None:
            capture = self._captures[prior.device] = self._make_capture(prior.device)
        while len(self._graphs) >= self.limit:
            self._drop_oldest()
        with capture.lock:  # no other graph of the pool runs meanwhile
            try:
                captured = make(mode, capture)
            except torch.OutOfMemoryError:
                if not self._graphs:
                    raise
                log.warning("%s: dropping older graphs to make room", _name(shape))
                self._graphs.clear()
                capture.release()
                captured = make(mode, capture)
        log.info(
            "captured %s, graph=%r, in %.2f s, %.0f MiB",
            _name(shape), mode, captured.seconds, captured.bytes / MIB,
        )  # fmt: skip
        return captured

    def _drop_oldest(self) -> None:
        key, captured = self._graphs.popitem(last=False)
        capture = captured.capture
        del captured
        capture.release()
        log.info("dropped the graph of %s, the least recently used", _name(key[1]))


Captured = CapturedLoop | CapturedEvaluation


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


def _checked_limit(limit: int | None) -> int:
    source, value = "limit", str(limit)
    if limit is None:
        source = "DDFM_FAST_GRAPHS"
        value = environment.get(source)
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"{source} is {value!r}; expected how many graphs to keep, at least 1")
    return number
