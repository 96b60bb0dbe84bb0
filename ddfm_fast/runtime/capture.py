"""Work captured as CUDA graphs, such that a failed capture leaves the process as it was.

A process makes one capture at a time: ``CAPTURING``. Replays, eager calls and other work in other
threads continue meanwhile, with these exceptions, which CUDA and PyTorch do not let us prevent:

- ``torch.cuda.synchronize()`` in another thread, like anything that waits for the whole device,
  raises there and spoils the capture; our call then runs eagerly, and a later one captures.
- Another thread that draws random numbers from CUDA's default generator at the moment in which a
  capture begins gets an error.
- A capture of the program's own, by ``torch.cuda.graph``, waits for the whole device when it
  begins, as in the first case. Hold ``CAPTURING`` around it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import sys
import threading
from collections.abc import Callable

import torch

from . import environment

CAPTURING = threading.RLock()
"""held from the warm-up to the end of a capture, and while cached memory is given back"""
WARMUPS = 2
"""eager runs before a capture: libraries choose algorithms and make plans and handles in them"""
MODE = "thread_local"
"""mode of capture in which other threads' work does not spoil it"""
_MODE_NUMBER = 1
_SPOILT = "failed due to a previous error during capture"


def release_cached_memory() -> None:
    """Release cached memory of CUDA devices, while nothing of ours captures."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        with CAPTURING:
            torch.cuda.empty_cache()


def spoilt_by_another(error: BaseException) -> bool:
    """Return whether a capture failed although its own work did nothing that is not allowed."""
    return _SPOILT in str(error)


class Replay:
    """A captured graph: call it to run it on the current stream.

    Attributes:
        nodes: The graph's kernels and copies; None if the driver does not tell.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, device: torch.device, nodes: int | None):
        self._graph, self._device, self.nodes = graph, device, nodes

    def __call__(self) -> None:
        """Launch the graph."""
        with torch.cuda.device(self._device):
            self._graph.replay()


class CudaCapture:
    """How work becomes graphs on a CUDA device; tests replace it with a recorder.

    The graphs of one ``CudaCapture`` run one at a time: ``lock`` keeps threads apart, and ``wait``
    and ``record`` the calls on different streams.
    """

    def __init__(self, device: torch.device):
        with torch.cuda.device(device):
            self.device = torch.device("cuda", torch.cuda.current_device())
            self.stream, self.done = torch.cuda.Stream(), torch.cuda.Event()
            self._blank = torch.zeros(1, device=self.device)
        self.lock = threading.RLock()

    def warm_up(self, work: Callable[[], object]) -> None:
        """Run ``work`` eagerly on the capturing stream, and give its memory back."""
        with CAPTURING, torch.cuda.device(self.device):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                for _ in range(WARMUPS):
                    work()
            torch.cuda.current_stream().wait_stream(self.stream)
            self.stream.synchronize()
            torch.cuda.empty_cache()

    def capture(self, work: Callable[[], object]) -> Replay:
        """Capture ``work``, without running it, on memory of its own; return its replay.

        Whatever ``work`` raises is raised, with stream, allocator and generator as they were.
        """
        graph = torch.cuda.CUDAGraph()
        with CAPTURING, torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            try:
                self._begin(graph)
                work()
                nodes = self.nodes()
                graph.capture_end()
            except BaseException:
                self._abandon(graph)
                raise
        return Replay(graph, self.device, nodes)

    def nodes(self) -> int | None:
        """Count the nodes of the capture in progress; None if the driver does not tell."""
        status, identifier = ctypes.c_int(), ctypes.c_uint64()
        graph, count = ctypes.c_void_p(), ctypes.c_size_t()
        by = ctypes.byref
        try:
            failed = _driver().cuStreamGetCaptureInfo_v2(
                self._handle(), by(status), by(identifier), by(graph), None, None
            ) or _driver().cuGraphGetNodes(graph, None, by(count))
        except (OSError, AttributeError):
            return None
        return None if failed or status.value != 1 else count.value

    def memory(self) -> int:
        """Return the bytes that PyTorch holds on the device, except those that nothing uses."""
        release_cached_memory()
        return torch.cuda.memory_reserved(self.device)

    def total_memory(self) -> int:
        """Return the bytes of memory that the device has."""
        return torch.cuda.get_device_properties(self.device).total_memory

    def release(self) -> None:
        """Give back unused memory, once the last call is done with it."""
        self.done.synchronize()
        gc.collect()
        release_cached_memory()

    def wait(self) -> None:
        """Make the current stream wait for the last ``record``."""
        torch.cuda.current_stream(self.device).wait_event(self.done)

    def record(self) -> None:
        """Mark the end of a call on the current stream."""
        self.done.record(torch.cuda.current_stream(self.device))

    def _begin(self, graph: torch.cuda.CUDAGraph) -> None:
        """Begin a capture that holds a copy of the generator's state in place of the state.

        PyTorch lets nobody draw from a state that is being captured, which would stop other
        threads.
        """
        generator = torch.cuda.default_generators[self.device.index]
        state = generator.graphsafe_get_state()
        generator.graphsafe_set_state(generator.clone_state())
        try:
            graph.capture_begin(pool=torch.cuda.graph_pool_handle(), capture_error_mode=MODE)
        finally:
            generator.graphsafe_set_state(state)

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a failed capture in such a way that PyTorch notices no failure.

        If CUDA refuses to end a capture, ``capture_end`` stops halfway: memory pools stay open, and
        the generator stays in the capture. So the driver ends it and begins another one, which
        ends without an error.
        """
        torch.cuda.set_stream(self.stream)  # the work may have set another
        handle, partial = self._handle(), ctypes.c_void_p()
        with contextlib.suppress(OSError, AttributeError):  # no such driver, as with ROCm
            if _driver().cuStreamEndCapture(handle, ctypes.byref(partial)) == 0 and partial:
                _driver().cuGraphDestroy(partial)
            _driver().cuStreamBeginCapture_v2(handle, _MODE_NUMBER)
            self._blank.zero_()  # PyTorch warns of empty graphs
        graph.capture_end()
        graph.reset()

    def _handle(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream.cuda_stream)


def checked_limit(limit: int | None) -> int:
    """Return how many graphs to keep: ``limit`` or DDFM_FAST_GRAPHS; ValueError below 1."""
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


def bytes_of_environment() -> int | None:
    """Return how many bytes graphs may hold, by DDFM_FAST_GRAPHS_MIB; None for "auto"."""
    value = environment.get("DDFM_FAST_GRAPHS_MIB")
    if value == "auto":
        return None
    if not value.isdecimal() or not int(value):
        raise ValueError(
            f"DDFM_FAST_GRAPHS_MIB is {value!r}; expected how many MiB of a GPU's memory the CUDA "
            "graphs of a Fuser may hold, at least 1, or auto"
        )
    return int(value) * 2**20


@functools.cache
def _driver() -> ctypes.CDLL:
    """Return the driver's library, which shares streams and graphs with the runtime."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
