"""What is captured: a loop, or any work on tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..runtime.capture import CudaCapture, Replay
from ..runtime.transfer import copy_each_, stacked
from ..sampler import Callback, Loop


class LongGraph(RuntimeError):
    """A graph of the whole loop would have more than ``MOST_NODES`` nodes."""


class Captured:
    """What was captured: its mode, the time it took, and the memory it holds."""

    mode: str
    replay: Replay
    seconds = 0.0
    """from the first eager run to the graph"""
    bytes = 0
    """of device memory"""

    def __init__(self, capture: CudaCapture):
        self.capture = capture

    @property
    def nodes(self) -> int | None:
        """Nodes of the graph that is replayed; None if the driver does not tell."""
        return self.replay.nodes

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
        most_nodes: Most nodes of a graph. In mode "step" a graph has as many steps as stay below
            it, or one step if it is None. In mode "loop", None allows any number.

    Raises:
        LongGraph: The whole loop would have more nodes.
        torch.OutOfMemoryError: Memory is short.
        Exception: What the prior raises, or RuntimeError if its code cannot be captured.
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
            self.rows, self.device = self.loop.rows, self.loop.device
            capture.warm_up(self._some_steps)
            if mode == "loop":
                self.replay = capture.capture(self._all_steps)
            else:
                self._begin = capture.capture(self.loop.begin)
                self.steps_a_replay = 1
                if self.loop.kept is None:
                    self.replay = capture.capture(self._some_any_steps)
                else:  # the second reads what the first keeps, in the memory of the first
                    self.replay = capture.capture(self._any_step)
                    self._replay_reused = capture.capture(partial(self._any_step, 1))
                if len(self.rows) % self.steps_a_replay:
                    self._replay_one = capture.capture(self._any_step)
                self._finish = capture.capture(self.loop.finish)

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
        """Run every kernel and library call of the loop, in the fewest steps that have them all."""
        last = len(self.rows) - 1
        self.loop.begin()
        for s in sorted({0, min(1, last), last}):
            self.loop.step(s)
        self.loop.finish()

    def _some_any_steps(self) -> None:
        """Run as many of the next steps as ``most_nodes`` allows, in graphs of similar length."""
        self._any_step()
        nodes = self.capture.nodes()
        if self.most_nodes is None or not nodes:
            return
        most = max(1, self.most_nodes // nodes)
        self.steps_a_replay = len(self.rows) // math.ceil(len(self.rows) / most)
        for _ in range(self.steps_a_replay - 1):
            self._any_step()

    def _any_step(self, like: int = 0) -> None:
        """Run the next step, which a replay finds by the counter on the device.

        ``like``: a step that reuses deep layers in the same way.
        """
        self.loop.step(like, self.loop.next_conditioning())

    def load(self, i: Tensor, v: Tensor, seed: int, x_start: Tensor | None = None) -> None:
        """See :meth:`Loop.load`; the device first finishes the previous call."""
        self.capture.wait()
        self.loop.load(i, v, seed, x_start)

    def run(self, steps: Iterable[int], callback: Callback | None) -> None:
        """See :meth:`Loop.run`; ``steps`` and ``callback`` matter only if a replay is one step."""
        try:
            if self.mode == "loop":
                self.replay()
                return
            self._begin()
            if self.steps_a_replay == 1:
                for s in steps:
                    self._replay_step(s)
                    self.loop.report(s, callback)
            else:
                self._replay_all()
            self._finish()
        finally:  # a callback may raise
            self.capture.record()

    def _replay_step(self, s: int) -> None:
        whole = s % self.loop.config.reuse == 0
        (self.replay if whole else self._replay_reused)()

    def _replay_all(self) -> None:
        graphs, rest = divmod(len(self.rows), self.steps_a_replay)
        for _ in range(graphs):
            self.replay()
        for _ in range(rest):
            self._replay_one()

    def take(self) -> Any:
        """Return a copy of the result: the next call overwrites it."""
        result = self.loop.take().kept()
        self.capture.record()
        return result


class CapturedCall(Captured):
    """Work on tensors that is replayed, on inputs of its own.

    Args:
        work: Maps tensors to tensors, and reads none of them on the host.
        inputs: Examples: every call has their shapes, dtypes and strides.
        mode: A name for the summary.
        capture: What captures.

    Raises:
        torch.OutOfMemoryError: Memory is short.
        Exception: What the work raises, or RuntimeError if it cannot be captured.
    """

    def __init__(
        self,
        work: Callable[..., Sequence[Tensor]],
        inputs: Sequence[Tensor],
        mode: str,
        capture: CudaCapture,
    ):
        super().__init__(capture)
        self.mode = mode

        def on_inputs() -> None:
            self.outputs = work(*self.inputs)

        # not inference tensors, into which a later call outside of that mode could not copy
        with torch.inference_mode(False), torch.no_grad(), self._measured():
            together = stacked(*inputs)
            self.inputs = (
                [x.clone() for x in inputs] if together is None else list(together.clone().unbind())
            )
            capture.warm_up(on_inputs)
            self.replay = capture.capture(on_inputs)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Return copies of what the work returns for such inputs."""
        with self.capture.lock, torch.inference_mode(False), torch.no_grad():
            self.capture.wait()
            copy_each_(self.inputs, inputs)
            self.replay()
            results = [x.clone() for x in self.outputs]
            self.capture.record()
        return results
