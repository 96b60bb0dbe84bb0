"""A stand-in for CUDA graphs on the CPU: what a capture would freeze, this freezes too.

Every operator that PyTorch runs, and every kernel of Triton's interpreter, is written down with
its tensors; a replay does the same operators on the same memory. As in a real capture, reading a
value on the host is an error, what Python decided stays decided, and what was computed meanwhile
is not there afterwards: it is overwritten by NaN.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

HOST_READS = {"aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::is_nonzero"}


def tensors(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.entries, self.written = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function._schema.name in HOST_READS:
            raise RuntimeError(f"{function._schema.name}: operation not permitted when capturing")
        out = function(*args, **kwargs)
        self.entries.append((function, args, kwargs, tensors(out)))
        aliases = [r.alias_info for r in function._schema.returns]
        if all(alias is None or alias.is_write for alias in aliases):  # not a view
            self.written += tensors(out)
        return out

    def note_kernel(self, run, kernel, args, kwargs):
        def again(*_, **__):
            run(kernel, *args, **kwargs)

        with _disable_current_modes():
            again()
        self.entries.append((again, (), {}, []))

    def poison(self):
        for out in self.written:
            if out.is_floating_point():
                out.fill_(float("nan"))

    def replay(self):
        with torch.inference_mode():
            for function, args, kwargs, outs in self.entries:
                again = function(*args, **kwargs)
                for old, new in zip(outs, tensors(again), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


@contextmanager
def kernels_noted(tape: Tape):
    """Write down the kernels of Triton's interpreter, where this process interprets."""
    try:
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError:
        yield
        return
    run = InterpretedFunction.run
    InterpretedFunction.run = lambda kernel, *args, **kwargs: tape.note_kernel(
        run, kernel, args, kwargs
    )
    try:
        yield
    finally:
        InterpretedFunction.run = run


class RecordingCapture:
    """The interface of ``ddfm_fast.runtime.capture.CudaCapture``.

    ``short_of_memory``: how many captures fail for want of memory, or "loop" to fail those of
    whole loops (recognized by their length).
    """

    def __init__(self, device, short_of_memory=0):
        self.lock = threading.RLock()
        self.short, self.captures, self.replays, self.released = short_of_memory, 0, 0, 0

    def warm_up(self, work):
        work()

    def nodes(self):
        """Count the entries of the capture under way."""
        return len(self.tape.entries)

    def total_memory(self):
        return 2**36

    def capture(self, work):
        self.captures += 1
        if self.short:
            self.short -= 1
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        tape = self.tape = Tape()
        with kernels_noted(tape), tape:
            work()
        tape.poison()

        def replay():
            self.replays += 1
            tape.replay()

        replay.nodes = len(tape.entries)
        return replay

    def memory(self):
        return 0

    def release(self):
        self.released += 1

    def wait(self):
        pass

    def record(self):
        pass
