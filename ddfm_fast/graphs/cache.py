"""The graphs of a fuser, by shape and settings: captured where it pays."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from ..config import FuseConfig
from ..images.doubts import warn
from ..priors.conditioning import Conditioning
from ..priors.prior import Prior
from ..runtime.capture import (
    CAPTURING,
    CudaCapture,
    bytes_of_environment,
    checked_limit,
    spoilt_by_another,
)
from ..runtime.dispatch import Backend
from ..runtime.locks import ForkLock
from ..sampler import Loop
from .captured import Captured, CapturedCall, CapturedLoop, LongGraph

log = logging.getLogger(__name__)

SEEN_LIMIT = 256
MOST_NODES = 2000
"""most nodes of a graph of the loop or of some of its steps, if the mode is automatic"""
MOST_SPOILT = 3
"""captures that may fail because of other threads before the prior itself is blamed"""
MIB = 2**20
Make = Callable[[str, CudaCapture], Captured]
"""function that captures in a given mode"""


class _Key(NamedTuple):
    """Everything that is frozen into a graph."""

    device: torch.device
    shape: tuple[int, ...]
    owner: Hashable
    """the prior itself, by identity: its weights' addresses are frozen in; or a call's name"""
    config: FuseConfig | None
    """of a loop, else None"""
    backend: tuple
    watched: bool
    kind: type[Loop] | None = None
    """of a loop, else None"""

    @property
    def name(self) -> str:
        """The shape, for people."""
        return "x".join(map(str, self.shape))


class GraphSummary(TypedDict):
    """A CUDA graph that is kept."""

    shape: tuple[int, ...]
    """(N, H, W) of a loop, (N, C, H, W) of the rest, padded as the prior needs it"""
    mode: str
    """"loop", "step", "eps" or "call": see ``ddfm_fast.graphs``"""
    nodes: int | None
    """kernels and copies of the graph that is replayed; None if the driver does not tell"""
    bytes: int
    """device memory that it holds"""
    seconds: float
    """time that the first call spent on it, including compilation"""
    tile: int
    """side of the tiles that the prior is evaluated in; 0 for whole pictures"""


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
        self._lock = ForkLock()
        self._graphs: OrderedDict[_Key, Captured] = OrderedDict()
        self._seen: OrderedDict[_Key, str] = OrderedDict()
        """keys that ran, and the mode to capture them in: "off" where memory was short"""
        self._steps: OrderedDict[tuple[Prior, int], Conditioning] = OrderedDict()
        self._refused: set[Hashable] = set()
        """owners that cannot be captured, at any size"""
        self._spoilt: Counter[Hashable] = Counter()
        """captures that failed, it seems, because of other threads"""

    def loop(
        self,
        prior: Prior,
        config: FuseConfig,
        shape: tuple[int, int, int],
        watched: bool,
        kind: type[Loop] = Loop,
    ) -> Loop | CapturedLoop:
        """Return the loop of a kind for a batch (N, H, W).

        ``watched``: a callback or a bar follows the steps.
        """
        key = self._key(prior, config, shape, watched, kind)
        new_loop = partial(kind, prior, config, shape, self.backend, watched=watched)

        def make(mode: str, capture: CudaCapture) -> CapturedLoop:
            bounded = self.mode == "auto" and not self._frozen(prior)
            bounded = bounded and not (watched and mode == "step")
            new = CapturedLoop(new_loop, mode, capture, MOST_NODES if bounded else None)
            if prior.foreign:
                _require_equal(new)
            return new

        with self._lock:
            found = self._found(key, make)
        return found if isinstance(found, CapturedLoop) else new_loop()

    def evaluate(self, prior: Prior, x: Tensor, timestep: int) -> Tensor:
        """Evaluate ``prior.eps`` of x [N, C, H, W] at a training timestep."""
        conditioning = self._conditioning(prior, timestep)
        inputs = x, conditioning.table[0]

        def work(x: Tensor, row: Tensor) -> tuple[Tensor]:
            return (prior.eps(x, conditioning.unpack(row)).float(),)

        def make(mode: str, capture: CudaCapture) -> CapturedCall:
            new = CapturedCall(work, inputs, mode, capture)
            if prior.foreign:
                _require_close(prior.eps(x, conditioning[0]).float(), new(*inputs)[0])
            return new

        with self._lock:
            found = self._found(self._key(prior, None, tuple(x.shape), False), make)
        if isinstance(found, CapturedCall):
            return found(*inputs)[0]
        return prior.eps(x, conditioning[0])

    def _conditioning(self, prior: Prior, timestep: int) -> Conditioning:
        """Compute what depends on the timestep alone; kept for graphs, as a loop's graph does."""
        key = prior, timestep
        with self._lock:
            if key in self._steps:
                return self._steps[key]
            made = prior.conditioning(torch.tensor([timestep]))
            if self.mode != "off":
                if prior.device.type == "cuda":  # calls on other streams will read it
                    torch.cuda.current_stream(prior.device).synchronize()
                self._steps[key] = made
                while len(self._steps) > SEEN_LIMIT:
                    for capture in self._captures.values():
                        capture.wait()  # before its memory is used again
                    self._steps.popitem(last=False)
        return made

    def call(
        self, name: Hashable, work: Callable[..., Sequence[Tensor]], *inputs: Tensor
    ) -> Sequence[Tensor]:
        """Do any work on tensors of one device that reads none of them on the host.

        Args:
            name: Tells this work from other work whose first input has the same shape.
            work: Maps tensors to tensors.
            *inputs: The tensors that it takes.

        Returns:
            What the work returns; copies of it if it is replayed.
        """
        key = _Key(inputs[0].device, tuple(inputs[0].shape), name, None, self.backend[:2], False)
        with self._lock:
            found = self._found(
                key, lambda mode, capture: CapturedCall(work, inputs, mode, capture)
            )
        return found(*inputs) if isinstance(found, CapturedCall) else work(*inputs)

    def _found(self, key: _Key, make: Make) -> Captured | None:
        """Return what is captured under a key, capturing if need be; None to run eagerly."""
        if key.owner in self._refused:
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
                key.name,
            )
        return None if mode in (None, "off") else self._captured(key, make)

    def warm_up(
        self,
        prior: Prior,
        config: FuseConfig,
        shape: tuple[int, int, int],
        watched: bool = False,
        kind: type[Loop] = Loop,
    ) -> None:
        """Do the first-call work of a shape: capture it or, without capture, run one step."""
        key = self._key(prior, config, shape, watched, kind)
        with self._lock, torch.inference_mode():
            captures = self.mode != "off" and prior not in self._refused
            if captures and self._seen.get(key) != "off":
                self._note(key, self._seen.get(key, self.mode))
                self.loop(prior, config, shape, watched, kind)
            else:
                loop = kind(prior, config, shape, self.backend, watched=watched)
                loop.begin()
                loop.step(0)

    def clear(self) -> None:
        """Drop every graph and its memory."""
        with self._lock:
            self._graphs.clear()
            self._seen.clear()
            self._steps.clear()
            self._refused.clear()
            for capture in self._captures.values():
                capture.release()

    def __len__(self) -> int:
        return len(self._graphs)

    def summary(self) -> list[GraphSummary]:
        """Describe each graph kept, the least recently used first."""
        return [
            {
                "shape": key.shape,
                "mode": graph.mode,
                "nodes": graph.nodes,
                "bytes": graph.bytes,
                "seconds": graph.seconds,
                "tile": _tile_of(key),
            }
            for key, graph in list(self._graphs.items())
        ]

    def _key(
        self,
        prior: Prior,
        config: FuseConfig | None,
        shape: tuple[int, ...],
        watched: bool,
        kind: type[Loop] | None = None,
    ) -> _Key:
        return _Key(prior.device, tuple(shape), prior, config, self.backend[:2], watched, kind)

    def _note(self, key: _Key, mode: str) -> None:
        self._seen[key] = mode
        self._seen.move_to_end(key)
        while len(self._seen) > SEEN_LIMIT:
            self._seen.popitem(last=False)

    def _captured(self, key: _Key, make: Make) -> Captured | None:
        """Capture in the best mode that works, and remember it; None if none does."""
        for mode in self._modes(key):
            try:
                captured = self._capture(mode, key, make)
            except LongGraph as error:
                log.info("%s: graph='step', since the whole loop has %s", key.name, error)
            except torch.OutOfMemoryError:
                warn(
                    f"{key.name}: too little memory to capture graph={mode!r}, so it runs slower; "
                    'free some, or pass graph="off" to silence this'
                )
            except Exception as error:  # the prior's own errors come again from eager code
                self._refuse(key.owner, error)
                return None
            else:
                self._graphs[key] = captured
                self._drop_beyond_bytes()
                return captured
            self._captures[key.device].release()
        self._note(key, "off")
        return None

    def _refuse(self, owner: Hashable, error: Exception) -> None:
        self._spoilt[owner] += 1
        if spoilt_by_another(error) and self._spoilt[owner] < MOST_SPOILT:
            log.info("a capture was spoiled, perhaps by another thread; a later call tries again")
            return
        what = f"prior {owner.name!r}" if isinstance(owner, Prior) else f"{owner}"
        warn(
            f"{what} cannot be captured in a CUDA graph "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); it runs "
            'operation by operation: pass graph="off" to silence this'
        )
        self._refused.add(owner)

    def _modes(self, key: _Key) -> tuple[str, ...]:
        """Return the modes to try, the best first."""
        if key.config is None:
            return ("eps",) if isinstance(key.owner, Prior) else ("call",)
        only_steps = key.watched or self._seen[key] == "step"
        if self._frozen(key.owner):
            return () if only_steps else ("loop",)
        return ("step",) if only_steps else ("loop", "step")

    def _frozen(self, prior: object) -> bool:
        """Return whether a captured step freezes its coefficients: PyTorch's does."""
        return self.backend.name == "torch" or getattr(prior, "channels", 3) != 3

    def _capture(self, mode: str, key: _Key, make: Make) -> Captured:
        capture = self._captures.get(key.device)
        if capture is None:
            capture = self._captures[key.device] = self._make_capture(key.device)
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
                log.info("%s: dropping older graphs to make room", key.name)
                self._graphs.clear()
                capture.release()
                captured = make(mode, capture)
        log.info(
            "captured %s, graph=%r, in %.2f s, %.0f MiB, %s nodes",
            key.name, mode, captured.seconds, captured.bytes / MIB, captured.nodes,
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
        log.info("dropped the graph of %s, the least recently used", key.name)


def _tile_of(key: _Key) -> int:
    """Return the side of the tiles that a graph evaluates its prior in."""
    return key.owner.tile_at(*key.shape[-2:]) if isinstance(key.owner, Prior) else 0


def _require_equal(captured: CapturedLoop) -> None:
    """Raise RuntimeError unless a replay gives what the code itself gives.

    A callable may keep state or draw numbers on the host, which a capture freezes silently.
    """
    loop = captured.loop
    generator = torch.Generator().manual_seed(0)
    shape = 2, *loop.i.shape
    planes = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    results = []
    for run in (loop, captured):
        i, v = planes.to(loop.device)
        loop.load(i, v, 1)
        run.run(range(len(loop.rows)), None)
        results.append(loop.x.clone())
    _require_close(*results)


def _require_close(eager: Tensor, replayed: Tensor) -> None:
    """Raise RuntimeError unless both are nearly the same."""
    scale = eager.abs().max().clamp(min=1)
    if not bool((eager - replayed).abs().max() <= 1e-3 * scale):
        raise RuntimeError("a replay differs from the code: it has state or host code in it")
