"""What is passed to the C++: any address of floats gives the same, and all else is refused."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import emulated
import pytest
import torch

from ddfm_fast.kernels import cpu
from ddfm_fast.kernels.cpu import carry, closed, memory, pixels
from ddfm_fast.target import choose as target

needs_kernels = pytest.mark.skipif(
    cpu.status() is not None, reason=f"no CPU kernels here: {cpu.status()}"
)
GROUPS = 4


def normal(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


def placed(x: torch.Tensor, offset: int) -> torch.Tensor:
    """Return the same values and strides, ``offset`` bytes behind an address fit for any vector."""
    size = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    room = torch.empty(4 * size + 128, dtype=torch.uint8)
    first = -room.data_ptr() % 64 + offset
    flat = torch.frombuffer(room.numpy(), dtype=torch.float32, count=size, offset=first)
    moved = flat.as_strided(x.shape, x.stride())
    moved.copy_(x)
    return moved


def freed(x: torch.Tensor) -> torch.Tensor:
    x = x.clone(memory_format=torch.preserve_format)
    x.untyped_storage().resize_(0)
    return x


def with_negative_bit(x: torch.Tensor) -> torch.Tensor:
    return torch._neg_view(x.clone(memory_format=torch.preserve_format))


class Call:
    """A function of C++ and its tensors by name, of which ``run`` changes one."""

    def __init__(self, function, **tensors):
        self.function, self.tensors = function, tensors

    def run(self, **changed):
        return self.function(**(self.tensors | changed))


def layer_call(channels, out, *, side=3, skip=(), residual=False, **options):
    """Make a call of a layer with two inputs and everything else, each an argument of its own."""
    every, options = sum(channels), {"groups": GROUPS, "silu": True, "epsilon": 1e-5} | options
    weight = cpu.pack(normal(out, every, side, side), side == 3 and every % 32 == 0)
    skips = (cpu.pack(normal(out, sum(skip), 1, 1), False), skip) if skip else None
    layer = cpu.Layer(weight, [(2, c, 6, 10) for c in channels], skip=skips, **options)
    tensors = {f"part{i}": normal(2, c, 6, 10, seed=i) for i, c in enumerate(channels)}
    for i in range(len(channels)):
        x = tensors[f"part{i}"]
        tensors[f"sums{i}"] = torch.stack([x.sum((2, 3)), (x * x).sum((2, 3))], 1)[:, None]
    tensors |= {f"skip{i}": normal(2, c, 6, 10, seed=5 + i) for i, c in enumerate(skip)}
    tensors |= {"bias": normal(out), "scale": normal(every), "shift": normal(every, seed=1)}
    if residual:
        tensors["residual"] = normal(2, out, 6, 10, seed=9)

    def function(**t):
        return layer(
            [(t[f"part{i}"], t[f"sums{i}"]) for i in range(len(channels))],
            bias=t["bias"],
            norm=(t["scale"], t["shift"]),
            skip=[(t[f"skip{i}"], None) for i in range(len(skip))],
            residual=t.get("residual"),
            out=t.get("out"),
        )[0]

    return Call(function, **tensors)


def attention_call():
    q, k, v = (normal(2, 30, 3 * 20, seed=s).view(2, 30, 3, 20) for s in range(3))
    return Call(lambda q, k, v: cpu.attention(q, k, v), q=q, k=k, v=v)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def choose_call():
    function = lambda ir, vis: closed.choose(ir, vis, target.PHOTOGRAPHIC, 2, 6.0)  # noqa: E731
    return Call(function, ir=uniform(16, 21), vis=uniform(16, 21, seed=1))


def carry_call():
    def function(now_a, now_b, kept_a, kept_b, flow):
        return torch.stack(carry.carry((now_a, now_b), (kept_a, kept_b), flow, 2.0, 1.0))

    planes = {n: uniform(9, 37, seed=i) for i, n in enumerate(("now_a", "now_b"))}
    kept = {n: uniform(9, 37, seed=i) + 0.01 for i, n in enumerate(("kept_a", "kept_b"))}
    return Call(function, **planes, **kept, flow=normal(9, 37, 2))


def limits_call():
    function = lambda y, ir, vis: pixels.limits(y, ir, vis, "sources")  # noqa: E731
    return Call(
        function, **{n: uniform(1, 1, 17, 41, seed=i) for i, n in enumerate(("y", "ir", "vis"))}
    )


CALLS = {
    "winograd": lambda: layer_call((32, 32), 32, residual=True),
    "direct": lambda: layer_call((20, 8), 9, residual=True),
    "1x1 with skip": lambda: layer_call((8, 12), 9, side=1, skip=(5, 7)),
    "attention": attention_call,
    "choose": choose_call,
    "carry": carry_call,
    "limits": limits_call,
}
ARGUMENTS = [
    *((c, a) for c in ("winograd", "direct", "1x1 with skip")
      for a in ("part0", "part1", "sums0", "sums1", "bias", "scale", "shift")),
    ("winograd", "residual"), ("direct", "residual"), ("1x1 with skip", "skip0"),
    ("1x1 with skip", "skip1"), *(("attention", a) for a in "qkv"), ("choose", "ir"),
    ("choose", "vis"), *(("carry", a) for a in ("now_a", "now_b", "kept_a", "kept_b", "flow")),
    *(("limits", a) for a in ("y", "ir", "vis")),
]  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("kind", CALLS)
def test_every_argument_is_tried(kind):
    assert sorted(a for c, a in ARGUMENTS if c == kind) == sorted(CALLS[kind]().tensors)


@needs_kernels
@pytest.mark.parametrize("kind, argument", ARGUMENTS)
def test_floats_at_any_address_give_the_same(kind, argument):
    call = CALLS[kind]()
    right = call.run()
    assert right.isfinite().all()
    for offset in (4, 20, 36):
        moved = placed(call.tensors[argument], offset)
        assert moved.data_ptr() % 64 == offset
        assert torch.equal(call.run(**{argument: moved}), right)


@needs_kernels
@pytest.mark.parametrize("kind, argument", ARGUMENTS)
def test_no_float_can_lie_there(kind, argument):
    call = CALLS[kind]()
    x = call.tensors[argument]
    for offset in (1, 2, 3):
        with pytest.raises(ValueError, match="at a multiple of 4 bytes"):
            call.run(**{argument: placed(x, offset)})
    with pytest.raises(ValueError, match="begins at address 0x0"):
        call.run(**{argument: freed(x)})
    with pytest.raises(ValueError, match="negative bit True"):
        call.run(**{argument: with_negative_bit(x)})


@needs_kernels
@pytest.mark.parametrize("kind, argument", ARGUMENTS)
def test_other_tensors_are_refused(kind, argument):
    """Tensors of another dtype, device or shape, or with gaps."""
    call = CALLS[kind]()
    x = call.tensors[argument]
    gaps = x.repeat_interleave(2, -1)[..., ::2]
    wrong = [x.double(), x.half(), x.int(), x.to("meta"), x[..., :-1], x[..., None]]
    wrong += [gaps, x.expand(2, *x.shape), x[:0]]
    for tensor in wrong:
        with pytest.raises(ValueError, match="expected"):
            call.run(**{argument: tensor})


@needs_kernels
@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("default", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_pytorchs_default_dtype_is_not_that_of_results(kind, default):
    """The code writes floats; in a tensor of halves it would write past the end."""
    right = CALLS[kind]().run()
    call = CALLS[kind]()
    torch.set_default_dtype(default)
    try:
        found = call.run()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found, right)


@needs_kernels
@pytest.mark.parametrize("kind", CALLS)
def test_nor_is_its_default_device(kind):
    right, call = CALLS[kind]().run(), CALLS[kind]()
    with torch.device("meta"):
        assert torch.equal(call.run(), right)


@needs_kernels
def test_weights_are_packed_so_whatever_the_defaults_are():
    weight = normal(32, 32, 3, 3)
    for winograd in (False, True):
        right = cpu.pack(weight, winograd)
        torch.set_default_dtype(torch.float16)
        try:
            with torch.device("meta"):
                found = cpu.pack(weight, winograd)
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(found.data, right.data) and found[1:] == right[1:]


@needs_kernels
@pytest.mark.parametrize("shape", [(4, 8, 5, 5), (4, 8, 3, 1), (4,), (4, 8, 3), (4, 8, 3, 3, 3)])
def test_weights_of_other_kernels_are_not_packed(shape):
    with pytest.raises(ValueError, match=r"expected \[O, I, 3, 3\]"):
        cpu.pack(torch.zeros(shape), False)
    with pytest.raises(ValueError, match="3x3 for Winograd"):
        cpu.pack(torch.zeros(32, 32, 1, 1), True)


SHAPE = 1, 32, 4, 6


def packed(side=3, winograd=False, out=32):
    return cpu.pack(normal(out, 32, side, side), winograd)


UNPREPARED = {
    "stride": (packed, dict(stride=3), "stride"),
    "resampling": (packed, dict(resample="left"), "resample"),
    "groups": (packed, dict(groups=-4), "expected a divisor"),
    "silu alone": (packed, dict(silu=True), "silu: True without groups"),
    "winograd, stride 2": (lambda: packed(3, True), dict(stride=2), "packed for Winograd"),
    "side": (lambda: packed()._replace(side=5), {}, "side 5, expected 1 or 3|packed weight"),
    "too short": (lambda: packed()._replace(out_channels=64), {}, "packed weight of shape"),
    "of halves": (lambda: packed()._replace(data=packed().data.half()), {}, "packed weight of"),
    "for winograd": (lambda: packed()._replace(winograd=True), {}, "packed weight of shape"),
    "many": (lambda: packed()._replace(out_channels=2**21), {}, "expected at most"),
    "skip of 3x3": (packed, dict(skip=(packed(), [32])), "skip: .* expected 1x1"),
    "skip to others": (packed, dict(skip=(packed(1, out=16), [32])), "skip: .* to 32 channels"),
}


@needs_kernels
@pytest.mark.parametrize("kind", UNPREPARED)
def test_layers_that_cannot_be_prepared(kind):
    weight, options, message = UNPREPARED[kind]
    with pytest.raises(ValueError, match=message):
        cpu.Layer(weight(), [SHAPE], **options)


@needs_kernels
def test_sizes_that_cannot_be_prepared():
    for shape in ((0, 32, 4, 6), (1, 32, 0, 6), (1, 32, 4, 0)):
        with pytest.raises(ValueError, match="no side of it 0"):
            cpu.Layer(packed(), [shape])
    with pytest.raises(ValueError, match="no side of it 0"):
        cpu.Layer(packed(), [(1, 32, 1, 6)], resample="down")
    with pytest.raises(ValueError, match="even ones for a residual"):
        cpu.Layer(packed(), [(1, 32, 4, 7)], residual_up=True)
    with pytest.raises(ValueError, match=r"\[32, 0\] channels"):
        cpu.Layer(packed(), [SHAPE, (1, 0, 4, 6)])


@needs_kernels
def test_as_many_tensors_as_prepared_for():
    """A skip that is not expected does not make up for a missing part."""
    one, two = normal(1, 16, 4, 6), normal(1, 32, 4, 6)
    layer = cpu.Layer(packed(), [one.shape, one.shape])
    for parts, skip in (([one], [two]), ([one], [one]), ([one, one, one], []), ([], [])):
        with pytest.raises(ValueError, match="prepared for"):
            layer([(x, None) for x in parts], skip=[(x, None) for x in skip])
    with pytest.raises(ValueError, match="norm: given"):
        layer([(one, None)] * 2, norm=(torch.ones(32), torch.ones(32)))
    skipping = cpu.Layer(packed(), [SHAPE], skip=(packed(1), [32]))
    with pytest.raises(ValueError, match="residual: given"):
        skipping([(two, None)], skip=[(two, None)], residual=two)


@needs_kernels
@pytest.mark.parametrize("kind", ["winograd", "direct", "1x1 with skip"])
def test_results_are_not_written_over_inputs(kind):
    call = CALLS[kind]()
    right, names = call.run(), [n for n in call.tensors if n != "residual"]
    size = right.numel()
    for name in names:
        x = call.tensors[name]
        memory_of = torch.zeros(size + x.numel())
        out = memory_of[:size].as_strided(right.shape, right.stride())
        inside = memory_of[size - 1 : size - 1 + x.numel()].as_strided(x.shape, x.stride())
        inside.copy_(x)
        with pytest.raises(ValueError, match="out: shares memory with"):
            call.run(**{name: inside, "out": out})
        beside = memory_of[size:].as_strided(x.shape, x.stride())
        beside.copy_(x)
        assert torch.equal(call.run(**{name: beside, "out": out}), right)


@needs_kernels
def test_a_result_may_take_the_place_of_its_residual_alone():
    call = CALLS["winograd"]()
    right, residual = call.run(), call.tensors["residual"]
    copy = residual.clone(memory_format=torch.preserve_format)
    assert torch.equal(call.run(residual=copy, out=copy), right)
    longer = torch.zeros(residual.numel() + 32)
    first, second = (
        longer[start : start + residual.numel()].as_strided(residual.shape, residual.stride())
        for start in (0, 32)
    )
    with pytest.raises(ValueError, match="out: shares memory with residual"):
        call.run(residual=first, out=second)
    layer = cpu.Layer(packed(), [SHAPE], residual_up=True)
    out = normal(*SHAPE)
    half = out.permute(0, 2, 3, 1).reshape(-1)[: 32 * 6].view(1, 2, 3, 32).permute(0, 3, 1, 2)
    assert half.data_ptr() == out.data_ptr()
    with pytest.raises(ValueError, match="out: shares memory with residual"):
        layer([(normal(*SHAPE, seed=1), None)], residual=half, out=out)


@needs_kernels
def test_attention_of_nothing_and_of_too_much():
    for shape in ((0, 5, 2, 8), (1, 0, 2, 8), (1, 5, 0, 8), (1, 5, 2, 0)):
        q = torch.zeros(shape)
        assert cpu.attention(q, q, q).shape == shape
    for shape in ((1, 2**20, 2**21, 8), (1, 2**33, 1, 1)):
        q = torch.zeros(1).as_strided(shape, (0, 0, 0, 0))
        with pytest.raises(ValueError, match="q: shape"):
            cpu.attention(q, q, q)
    with pytest.raises(ValueError, match="q: shape"):
        cpu.attention(*[torch.zeros(5, 2, 8)] * 3)


@needs_kernels
def test_attention_reads_strides_of_zero():
    """All tokens' keys, and queries, may be the same memory."""
    one = normal(1, 1, 2, 8).contiguous()
    q = one.expand(1, 40, 2, 8)
    torch.testing.assert_close(cpu.attention(q, q, q), q.contiguous(), rtol=1e-5, atol=1e-6)


def test_a_made_tensor_is_float32_on_the_cpu():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            made = memory.empty(2, 3), memory.empty_strided((2, 3), (1, 2))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(x.dtype == torch.float32 and x.is_cpu and x.shape == (2, 3) for x in made)


@pytest.mark.parametrize("begin", [0, 4096, (1 << 21) - 16])
@pytest.mark.parametrize("size", [(1 << 22) - 4, 1 << 22, 5 << 21])
def test_huge_pages_are_asked_for_inside_a_large_tensor_alone(begin, size, monkeypatch):
    storage, asked = torch.zeros(4 << 21), []
    at = -(-storage.data_ptr() // memory.HUGE_PAGE) * memory.HUGE_PAGE + begin
    first = (at - storage.data_ptr()) // 4
    x = storage[first : first + size // 4]
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *call: asked.append(call))
    assert memory.in_huge_pages(x) is x
    if size < memory.LARGE:
        assert asked == []
        return
    ((where, length, advice),) = asked
    assert where % memory.HUGE_PAGE == 0 and where >= at and where + length <= at + size
    assert length == (size // memory.HUGE_PAGE - (begin > 0)) * memory.HUGE_PAGE
    assert advice == mmap.MADV_HUGEPAGE


def test_a_large_result_may_lie_in_huge_pages_and_others_where_nothing_can_be_asked(monkeypatch):
    x = memory.empty(1 << 24)
    middle, flags, inside = x.data_ptr() + x.nbytes // 2, "", False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= middle < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert " hg" in flags
    monkeypatch.setattr(memory, "_madvise", lambda: None)
    assert memory.empty(1 << 21).fill_(1).sum() == 1 << 21


@pytest.mark.parametrize("target", emulated.PARAMS)
def test_an_emulated_kernel_is_seen_to_write_beside_its_memory(foreign, target, monkeypatch):
    """The tests of other processors rely on this: a result with a row fewer than is written."""
    library = foreign(target)
    assert (library.process.args[0], library.ddfm_group()) == (emulated.EMULATOR, 8)
    library.watch(monkeypatch)
    now, out = torch.full((5, 64), 0.5), torch.zeros(4, 64)
    here, there = now.data_ptr(), out.data_ptr()
    addresses = here, here, here, here, 0, there, there, 0
    call = carry.CARRY.pack(*addresses, 4, 64, 2.0, 1.0)
    assert library.ddfm_carry(call, 1) == 0 and out.count_nonzero() == out.numel()
    call = carry.CARRY.pack(*addresses, 5, 64, 2.0, 1.0)
    with pytest.raises(AssertionError, match="wrote beside its memory"):
        library.ddfm_carry(call, 1)
