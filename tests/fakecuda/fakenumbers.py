"""Right numbers on the fake device: every operator and kernel also runs on the CPU, in its memory.

``install()`` once, before the first CUDA tensor (``FAKE_NUMBERS=1`` does it through fakeplugin).
"Device" memory is host memory, so a CPU tensor can lie on the same bytes as a CUDA tensor. The
real CUDA operator still runs, for its host code: allocator, streams, rules of capture, errors.
Then its twin on the CPU computes what the kernels would have, and writes it where they would.

- aten operators: a TorchDispatchMode, in every thread.
- Triton kernels: compiled and launched as usual, then run by Triton's interpreter.
- CUDA graphs: what is enqueued on a capturing stream runs at each replay, not before.
- poison: what ``torch.empty`` hands out is NaN (-1 for integers), at every replay too, and so are
  the masked lanes of a Triton load without ``other``; what reads too early shows.
- Triton: an access outside the kernel's tensors, and memory that one program writes and another
  reads or writes in the same launch, raise ``Fault``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import itertools
import os
import threading
import types
from dataclasses import replace

import numpy as np
import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from triton.runtime import interpreter

CPU = torch.device("cpu")
READS = {"_local_scalar_dense", "equal", "allclose"}
"""operators whose result is a number on the host"""
BLANK = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
"""operators whose result is memory as it is"""
WIDE = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "_addmm_activation", "convolution"}
"""operators that sum in float32 on a GPU, whatever their dtype"""
HALF = (torch.float16, torch.bfloat16)


JITERATED = {"digamma", "gcd", "i0", "lcm", "lgamma", "polygamma", "sinc"}
"""operators that PyTorch compiles when first used, as all of special_*: the fake has no NVRTC"""


# ---------------------------------------------------------------- memory
def on_bytes(pointer: int, size: int) -> torch.UntypedStorage:
    return torch._C._construct_storage_from_data_pointer(pointer, CPU, size)


def alias(t: torch.Tensor) -> torch.Tensor:
    """Return a CPU tensor on the memory of ``t``, which it does not keep alive."""
    storage = t.untyped_storage()
    host = on_bytes(storage.data_ptr(), storage.nbytes())
    host = torch.empty(0, dtype=t.dtype).set_(host, t.storage_offset(), t.size(), t.stride())
    host = host.conj() if t.is_conj() else host
    return host._neg_view() if t.is_neg() else host


def on_host(tree):
    """Return ``tree`` with aliases for CUDA tensors, and the CPU for devices."""

    def one(value):
        if isinstance(value, torch.Tensor):
            return alias(value) if value.is_cuda else value
        return CPU if isinstance(value, torch.device) else value

    return tree_map(one, tree)


def tensors(tree) -> list[torch.Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def first_device(found: list[torch.Tensor]) -> torch.device | None:
    return next((t.device for t in found if t.is_cuda), None)


def poison(t: torch.Tensor) -> None:
    storage = t.untyped_storage()
    if storage.nbytes():
        host = on_bytes(storage.data_ptr(), storage.nbytes())
        everything = torch.empty(0, dtype=torch.uint8).set_(host)
        submit(lambda: everything.fill_(255), t.device)


# ---------------------------------------------------------------- streams and graphs
CAPTURES: dict[int, list] = {}
"""what runs at a replay, by the identifier of the capture"""


def capture_id(device=None) -> int:
    """Return the number of the capture that the current stream takes part in, 0 without one."""
    status, number = ctypes.c_int(), ctypes.c_ulonglong()
    stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
    ctypes.CDLL(None).cudaStreamGetCaptureInfo_v2(
        stream, ctypes.byref(status), ctypes.byref(number), None, None, None
    )
    return number.value if status.value else 0


def run(work) -> None:
    with torch.inference_mode():
        work()


def submit(work, device=None) -> None:
    """Run ``work`` as the current stream would: now, or at the replays of what it captures."""
    number = capture_id(device)
    if number:
        CAPTURES.setdefault(number, []).append(work)
    else:
        run(work)


def follow_graphs() -> None:
    graph = torch.cuda.CUDAGraph
    end, replay, reset = graph.capture_end, graph.replay, graph.reset

    def capture_end(self):
        number = capture_id()
        work = CAPTURES.pop(number, [])
        end(self)
        self.work = work

    def replay_and_run(self):
        replay(self)
        with _disable_current_modes(), language():
            for work in self.work:
                run(work)

    def reset_and_forget(self):
        reset(self)
        self.work = []

    graph.capture_end, graph.replay, graph.reset = capture_end, replay_and_run, reset_and_forget


# ---------------------------------------------------------------- aten
class Numbers(TorchDispatchMode):
    """Runs each operator on CUDA tensors, and then its twin on their aliases."""

    def __init__(self, poisoned: bool):
        super().__init__()
        self.poisoned, self.draws = poisoned, itertools.count()

    def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._can_decompose():  # its parts come here one by one
            with self:
                return func.decompose(*args, **kwargs)
        given = tensors((args, kwargs))
        device = first_device(given)
        name = func._schema.name.removeprefix("aten::")
        jiterated = name in JITERATED or name.startswith("special_")
        if device and (jiterated or needs_values(func, name, args)):
            return self._on_the_host(func, args, kwargs, device)
        seed = self._seed(func, kwargs)
        result = func(*args, **kwargs)
        out = tensors(result)
        device = device or first_device(out)
        if device is None or torch.Tag.inplace_view in func.tags or name == "record_stream":
            return result
        if name in READS:
            return func(*on_host(args), **on_host(kwargs))
        if name in BLANK:
            if self.poisoned and out[0].is_cuda:
                poison(out[0])
            return result
        held = {t.untyped_storage().data_ptr() for t in given}
        made = [t for t in out if t.numel() and t.untyped_storage().data_ptr() not in held]
        if made or func._schema.is_mutable:
            submit(self._twin(func, name, *on_host((args, kwargs, out)), seed), device)
        return result

    @staticmethod
    def _on_the_host(func, args, kwargs, device):
        """Run an operator that reads the device to know its result's size: illegal in a capture."""
        torch.cuda.current_stream(device).synchronize()
        result = func(*on_host(args), **on_host(kwargs))
        if func._schema.is_mutable:
            return args[0]
        return tree_map_only(torch.Tensor, lambda t: t.to(device), result)

    def _seed(self, func, kwargs):
        """Return a function that gives the seed for the twin of a random operator, else None."""
        if torch.Tag.nondeterministic_seeded not in func.tags or not torch.cuda.is_initialized():
            return None
        default = torch.cuda.default_generators[torch.cuda.current_device()]
        generator = kwargs.get("generator") or default
        if generator.device.type != "cuda":
            return None
        if capture_id():  # each replay draws other numbers
            return lambda: generator.initial_seed() + 7919 * next(self.draws)
        seed = generator.initial_seed() + 7919 * generator.get_offset()
        return lambda: seed

    @staticmethod
    def _twin(func, name, args, kwargs, out, seed):
        """Return what writes the computed numbers into ``out``, and into what ``func`` changes."""
        compute = func
        if name.startswith("_scaled_dot_product"):
            compute = functools.partial(attention, func)
        elif name in WIDE and any(t.dtype in HALF for t in out):
            compute = functools.partial(widened, func)
        if "generator" in kwargs:
            kwargs = {**kwargs, "generator": None}

        def work():
            with torch.random.fork_rng(devices=[], enabled=seed is not None):
                if seed is not None:
                    torch.default_generator.manual_seed(seed() % 2**63)
                computed = compute(*args, **kwargs)
            computed = tensors(computed)
            for target, value in zip(
                out, computed, strict=False
            ):  # attention: only the first output
                if target.data_ptr() != value.data_ptr():
                    target.copy_(value)

        return work


def needs_values(func, name, args) -> bool:
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        kinds = (torch.bool, torch.uint8)
        return any(i is not None and i.dtype in kinds for i in args[1])
    return torch.Tag.dynamic_output_shape in func.tags


def widened(func, *args, **kwargs):
    def widen(t):
        return t.float() if t.dtype in HALF else t

    return func(*tree_map_only(torch.Tensor, widen, args), **kwargs)


def attention(func, *args, scale=None, **_):
    """Compute whichever attention was chosen, by the plain formula in float32."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
    q, k, v, bias = (given.get(n) for n in ("query", "key", "value", "attn_bias"))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = q.float() @ k.float().transpose(-1, -2) * scale
    if bias is not None:
        weights += bias
    if given.get("is_causal"):
        weights += torch.full_like(weights, -torch.inf).triu(1)
    return weights.softmax(-1) @ v.float()


def follow_threads(mode: Numbers) -> None:
    """Give this dispatch mode to every thread that starts: a mode applies to one thread."""
    start = threading.Thread.run

    def run_with_numbers(self):
        with mode:
            start(self)

    threading.Thread.run = run_with_numbers


# ---------------------------------------------------------------- Triton
JIT = threading.RLock()
"""lets one thread at a time compile or interpret: the interpreter changes triton.language"""
SPEAKING = 0


@contextlib.contextmanager
def language():
    """Make triton.language what the interpreter needs; costly, so a replay does it once."""
    global SPEAKING
    with JIT:
        SPEAKING += 1
        if SPEAKING == 1:
            modules = types.SimpleNamespace(__globals__={"core": tl.core, "tl": tl})
            scope = interpreter._patch_lang(modules)
        try:
            yield
        finally:
            SPEAKING -= 1
            if not SPEAKING:
                scope.restore()


@functools.cache
def interpreted(fn):
    return interpreter.FunctionRewriter(fn).rewrite_ast()


class Fault(AssertionError):
    """An access whose result is undefined on a GPU, or that ends with an illegal address there."""


class Watch:
    """The accesses of one launch. The interpreter runs its programs in turn, a GPU at once."""

    def __init__(self, name: str, tensors: list[torch.Tensor]):
        self.name, self.reads, self.writes, self.place = name, [], [], 0
        storages = [t.untyped_storage() for t in tensors]
        self.extents = [(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages]

    def see(self, accesses: list, ptrs, mask) -> None:
        at = ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)].astype(np.int64)
        size = max(8, ptrs.get_element_ty().primitive_bitwidth) // 8
        inside = np.zeros(at.shape, bool)
        for start, end in self.extents:
            inside |= (at >= start) & (at + size <= end)
        if not inside.all():
            raise Fault(f"{self.name} reaches outside its tensors, program {self.place}")
        accesses.append((at, np.full(at.shape, self.place)))

    def judge(self) -> None:
        if not self.writes or not self.place:
            return
        at, by = (np.concatenate(part) for part in zip(*self.writes, strict=True))
        order = np.lexsort((by, at))
        at, by = at[order], by[order]
        if ((at[1:] == at[:-1]) & (by[1:] != by[:-1])).any():
            raise Fault(f"two programs of {self.name} write to the same place")
        if not self.reads:
            return
        read, reader = (np.concatenate(part) for part in zip(*self.reads, strict=True))
        found = np.searchsorted(at, read).clip(max=len(at) - 1)
        if ((at[found] == read) & (by[found] != reader)).any():
            raise Fault(f"a program of {self.name} reads what another writes")


WATCH: Watch | None = None


def interpret(kernel, grid, given: dict) -> None:
    global WATCH
    with language():
        WATCH = Watch(kernel.fn.__name__, tensors(given))
        given = {n: a if kernel.params[i].is_constexpr else interpreter._implicit_cvt(a)
                 for i, (n, a) in enumerate(given.items())}  # fmt: skip
        builder, fn = interpreter.interpreter_builder, interpreted(kernel.fn)
        builder.set_grid_dim(*grid)
        for WATCH.place, place in enumerate(itertools.product(*map(range, grid))):
            builder.set_grid_idx(*place)
            fn(**given)
        WATCH.judge()


def follow_builder(poisoned: bool) -> None:
    """Watch loads and stores; poison masked lanes; multiply bfloat16 as float32."""
    builder = interpreter.InterpreterBuilder
    load, store, dot = builder.create_masked_load, builder.create_masked_store, builder.create_dot

    def create_masked_load(self, ptrs, mask, other, *options):
        WATCH.see(WATCH.reads, ptrs, mask)
        kind = ptrs.get_element_ty()
        if other is None and poisoned and kind.is_floating():
            raw = np.full(ptrs.data.shape, -1, f"i{kind.primitive_bitwidth // 8}")
            other = interpreter.TensorHandle(raw.view(interpreter._get_np_dtype(kind)), kind)
        return load(self, ptrs, mask, other, *options)

    def create_masked_store(self, ptrs, value, mask, *options):
        WATCH.see(WATCH.writes, ptrs, mask)
        return store(self, ptrs, value, mask, *options)

    def create_dot(self, a, b, *rest):
        a, b = (self.cast_impl(x, tl.float32) if x.dtype == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    options = interpreter.interpreter_builder.options  # its check takes a third of the time
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
    builder.create_masked_load, builder.create_masked_store = (
        create_masked_load,
        create_masked_store,
    )
    builder.create_dot = create_dot


def follow_triton() -> None:
    launch = triton.JITFunction.run

    def launch_and_interpret(self, *args, grid, warmup, **kwargs):
        with JIT:
            launched = launch(self, *args, grid=grid, warmup=warmup, **kwargs)
        if not warmup:
            named = {n: a for n, a in kwargs.items() if n in self.arg_names}
            bound = inspect.signature(self.fn).bind(*args, **named)
            bound.apply_defaults()
            shape = grid(bound.arguments) if callable(grid) else grid
            shape = tuple(shape) + (1,) * (3 - len(shape))
            given = on_host(dict(bound.arguments))
            submit(lambda: interpret(self, shape, given))
        return launched

    triton.JITFunction.run = launch_and_interpret
    # for functions that a kernel calls; without the interpreter, calling them is an error
    triton.JITFunction.__call__ = lambda self, *args, **kwargs: interpreted(self.fn)(
        *args, **kwargs
    )


def follow_cupy() -> None:
    """Compute the transforms of cupy_stub; the inverse destroys its input, as cuFFT's may."""
    from cupy.cuda.cufft import PlanNd

    execute = PlanNd.fft

    def tensor(array):
        dtype = getattr(torch, array.dtype)
        storage = on_bytes(array.data.ptr, int(np.prod(array.shape)) * dtype.itemsize)
        return torch.empty(0, dtype=dtype).set_(storage).view(array.shape)

    def fft(self, a, out, direction):
        execute(self, a, out, direction)
        a, out = tensor(a), tensor(out)

        def work():
            if self.kind == "R2C":
                out.copy_(torch.fft.rfft2(a))
            else:
                out.copy_(torch.fft.irfft2(a, s=out.shape[-2:], norm="forward"))
                a.fill_(torch.nan)

        submit(work)

    PlanNd.fft = fft


def install(poison: bool = True) -> Numbers:
    """Give the fake device right numbers, in this thread and those that start from now on."""
    mode = Numbers(poison)
    follow_graphs()
    follow_threads(mode)
    follow_triton()
    follow_builder(poison)
    if "CUPY_STUB" in os.environ:
        follow_cupy()
    show = torch.Tensor.__repr__  # it runs outside of all modes
    torch.Tensor.__repr__ = lambda t, **k: show(alias(t) if t.is_cuda else t, **k)
    mode.__enter__()
    return mode
