"""The CPU kernels against PyTorch in float64, compiled for this processor and for other widths."""

from __future__ import annotations

import ctypes
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import emulated
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from networks import SMALL, random_unet

from ddfm_fast.kernels import cpu
from ddfm_fast.kernels.cpu import build, prebuilt
from ddfm_fast.priors.engine import Engine
from ddfm_fast.priors.ops import native
from ddfm_fast.priors.ops.choice import ops_for
from ddfm_fast.priors.ops.native import NativeOps
from ddfm_fast.priors.ops.onednn import OneDnnOps
from ddfm_fast.priors.ops.plain import PlainOps

needs_kernels = pytest.mark.skipif(
    cpu.status() is not None, reason=f"no CPU kernels here: {cpu.status()}"
)
GROUPS, EPSILON = 32, 1e-5
WIDTHS = [None, 4, 16]
"""floats in a vector: this processor's, and others, for which the compiler splits or joins
vectors"""
SIZES = [(1, 1, 1), (3, 5, 7), (1, 17, 25), (3, 34, 50)]


@pytest.fixture(params=[*WIDTHS, *emulated.PARAMS], ids=lambda w: f"{w or 'native'}")
def kernels(request, libraries, monkeypatch):
    if request.param in emulated.TARGETS:
        shared = request.getfixturevalue("foreign")(request.param)
        shared.watch(monkeypatch)
        library = build.Library(shared)
        library.team = 0
    else:
        library = libraries(request.param)
    monkeypatch.setattr(build, "load", lambda: (library, None))
    return library


def normal(*shape, seed=0, shift=0.0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shift
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


def sums_of(x):
    """Return sums as a layer does, in one block."""
    return torch.stack([x.double().sum((2, 3)), (x.double() ** 2).sum((2, 3))], 1)[:, None].float()


def twin(parts, weight, *, bias, norm, silu, resample, stride, skip, residual, up):
    """Compute by PyTorch in float64 what a layer computes."""
    x = torch.cat(parts, 1).double()
    if norm is not None:
        x = torch.group_norm(x, GROUPS, norm[0].double(), norm[1].double(), EPSILON)
        x = F.silu(x) if silu else x
    if resample == "up":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    elif resample == "down":
        x = F.avg_pool2d(x, 2)
    weight = weight.double().reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1)))
    y = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)
    if bias is not None:
        y = y + bias.double()[:, None, None]
    if skip is not None:
        y = y + F.conv2d(torch.cat(skip[0], 1).double(), skip[1].double())
    if residual is not None:
        r = residual.double()
        y = y + (F.interpolate(r, scale_factor=2, mode="nearest") if up else r)
    return y


CASES = {
    "winograd": dict(channels=(32,), out=32),
    "winograd after norm": dict(channels=(64,), out=64, norm=True, bias=True),
    "winograd of two": dict(channels=(64, 32), out=32, norm=True, silu=False),
    "winograd doubled": dict(channels=(32,), out=64, norm=True, resample="up"),
    "winograd halved": dict(channels=(32,), out=32, norm=True, resample="down", bias=True),
    "winograd with residual": dict(channels=(32,), out=32, norm=True, residual=True, bias=True),
    "winograd with half residual": dict(
        channels=(32,), out=32, norm=True, resample="up", residual=True, up=True
    ),
    "winograd with skip of two": dict(channels=(32,), out=64, norm=True, skip=(64, 32)),
    "winograd to three": dict(channels=(64,), out=3, norm=True, bias=True),
    "winograd to 50": dict(channels=(32,), out=50, residual=True, bias=True),
    "direct of three": dict(channels=(3,), out=32, bias=True),
    "direct of 12": dict(channels=(12,), out=64),
    "direct, stride 2": dict(channels=(32,), out=32, stride=2, bias=True),
    "direct of 20 and 9": dict(channels=(20, 9), out=5, bias=True, residual=True),
    "direct, half residual": dict(channels=(5,), out=18, resample="up", residual=True, up=True),
    "direct halved": dict(channels=(7,), out=18, resample="down", skip=(5,)),
    "1x1": dict(channels=(64,), out=192, side=1, norm=True, silu=False, bias=True),
    "1x1 of two": dict(channels=(32, 96), out=40, side=1, residual=True),
}


def make(n, height, width, channels, out, *, side=3, stride=1, norm=False, silu=True, bias=False,
         resample="", skip=(), residual=False, up=False, dtype=torch.float32):  # fmt: skip
    """Return (layer, its arguments, the exact result), or None if the input is too small."""
    if resample == "down" and min(height, width) < 2:
        return None
    parts = [normal(n, c, height, width, seed=c, shift=0.5).to(dtype) for c in channels]
    every = sum(channels)
    weight = (normal(out, every, side, side, seed=1) / (side * every**0.5)).to(dtype)
    h, w = (s * 2 if resample == "up" else s // 2 if resample == "down" else s
            for s in (height, width))  # fmt: skip
    h, w = ((s - 1) // stride + 1 for s in (h, w))
    skips = [normal(n, c, h, w, seed=2 + c).to(dtype) for c in skip]
    skip_weight = normal(out, sum(skip), 1, 1, seed=3).to(dtype) if skip else None
    half = 2 if up else 1
    tensors = dict(
        bias=normal(out, seed=4) if bias else None,
        norm=tuple(normal(2, every, seed=5)) if norm else None,
        residual=normal(n, out, h // half, w // half, seed=6).to(dtype) if residual else None,
    )
    exact = twin(
        parts, weight, **tensors, silu=silu, resample=resample, stride=stride, up=up,
        skip=(skips, skip_weight) if skip else None,
    )  # fmt: skip
    winograd = cpu.suits_winograd(channels, side, stride)
    layer = cpu.Layer(
        cpu.pack(weight, winograd, dtype),
        [p.shape for p in parts],
        groups=GROUPS if norm else 0,
        epsilon=EPSILON,
        silu=silu and norm,
        resample=resample,
        stride=stride,
        skip=(cpu.pack(skip_weight, False, dtype), skip) if skip else None,
        residual_up=up,
    )
    arguments = dict(parts=[(p, sums_of(p)) for p in parts], skip=[(s, None) for s in skips])
    return layer, arguments | tensors, exact


@needs_kernels
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_layer_is_its_twin(kernels, case, size):
    if CASES[case].get("norm") and size[1:] == (1, 1):
        size = 1, 1, 3  # a norm of one value is a difference of equal numbers, times 300
    made = make(*size, **CASES[case])
    if made is None:
        return
    layer, arguments, exact = made
    n, out, height, width = exact.shape
    poisoned = normal(n, out, height, width).fill_(float("nan"))
    got, sums = layer(**arguments, out=poisoned)
    assert got is poisoned and got.is_contiguous(memory_format=torch.channels_last)
    scale = exact.abs().max()
    assert (got - exact).abs().max() < 6e-6 * scale
    total = sums.double().sum(1)
    torch.testing.assert_close(total[:, 0], exact.sum((2, 3)), rtol=1e-5, atol=1e-4 * scale)
    torch.testing.assert_close(total[:, 1], (exact**2).sum((2, 3)), rtol=1e-5, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("case", CASES)
def test_layer_does_not_depend_on_threads_or_neighbors(case, monkeypatch):
    """The bits are equal with one thread or three, alone or in a batch."""
    layer, arguments, _ = make(3, 40, 62, **CASES[case])
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(layer(**arguments))
    for got, sums in results[1:]:
        assert torch.equal(got, results[0][0]) and torch.equal(sums, results[0][1])
    alone, single, _ = make(1, 40, 62, **CASES[case])
    for name in ("parts", "skip"):
        single[name] = [(x[:1], None if s is None else s[:1]) for x, s in arguments[name]]
    if arguments["residual"] is not None:
        single["residual"] = arguments["residual"][:1]
    assert torch.equal(alone(**single)[0], results[0][0][:1])


@needs_kernels
def test_winograd_is_nearly_as_exact_as_the_direct_product():
    x = normal(1, 64, 48, 72).relu_()
    weight = normal(64, 64, 3, 3, seed=1) / 24
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    errors = []
    for winograd in (False, True):
        layer = cpu.Layer(cpu.pack(weight, winograd), [x.shape])
        errors.append(float((layer([(x, None)])[0] - exact).abs().mean()))
    assert errors[1] < 4 * errors[0]


@needs_kernels
def test_norm_and_silu_at_their_limits(kernels):
    """Values far from zero are right, and NaN stays where it was."""
    x = normal(1, 32, 8, 8)
    scale = torch.full((32,), 60.0)
    identity = torch.eye(32)[:, :, None, None]
    layer = cpu.Layer(cpu.pack(identity, False), [x.shape], groups=32, epsilon=1e-5, silu=True)
    got, _ = layer([(x, sums_of(x))], norm=(scale, torch.zeros(32)))
    exact = F.silu(F.group_norm(x.double(), 32, scale.double(), None, 1e-5))
    assert exact.abs().max() > 120
    torch.testing.assert_close(got.double(), exact, rtol=2e-6, atol=1e-5)

    poisoned = x.clone(memory_format=torch.channels_last)
    poisoned[0, 5, 2, 2] = float("nan")
    got, _ = layer([(poisoned, sums_of(x))], norm=(scale, torch.zeros(32)))
    assert got.isnan().sum() == 32, "one pixel, of which every output has a product"
    got, _ = layer([(poisoned, sums_of(poisoned))], norm=(scale, torch.zeros(32)))
    assert got.isnan().all()


@needs_kernels
@pytest.mark.parametrize(
    "n, tokens, heads, width", [(1, 1, 1, 8), (3, 77, 3, 20), (1, 600, 2, 32), (2, 64, 1, 64)]
)
@pytest.mark.parametrize("new_order", [False, True])
def test_attention_is_pytorchs(kernels, n, tokens, heads, width, new_order):
    shape = (n, tokens, 3, heads, width) if new_order else (n, tokens, heads, 3, width)
    for factor in (1.0, 40.0):
        q, k, v = (normal(*shape) * factor).unbind(2 if new_order else 3)
        exact = F.scaled_dot_product_attention(
            *(a.double().transpose(1, 2) for a in (q, k, v))
        ).transpose(1, 2)
        got = cpu.attention(q, k, v)
        assert got.is_contiguous() and got.shape == exact.shape
        # scores of some thousands are rounded before the exponential
        bound = 2e-6 if factor == 1 else 2e-3
        assert (got - exact).abs().max() < bound * exact.abs().max()


@needs_kernels
def test_attention_keeps_nan(kernels):
    q, k, v = normal(1, 100, 2, 3, 32).unbind(3)
    k = k.clone()
    q, v = q.clone(), v.clone()
    k[0, 50, 1, 3] = float("nan")
    got = cpu.attention(q, k, v)
    assert got[:, :, 1].isnan().all() and not got[:, :, 0].isnan().any()


@needs_kernels
def test_what_does_not_fit_is_refused():
    x = normal(1, 32, 8, 8)
    weight = cpu.pack(normal(32, 32, 3, 3), True)
    layer = cpu.Layer(weight, [x.shape])
    for wrong in (x.contiguous(), x.double(), normal(1, 32, 8, 9), x.to("meta")):
        with pytest.raises(ValueError, match="float32 on the CPU, channels_last"):
            layer([(wrong, None)])
    with pytest.raises(ValueError, match="channels_last"):
        layer([(x, None)], residual=normal(1, 32, 4, 4))
    with pytest.raises(ValueError, match="prepared for"):
        layer([(x, None)], skip=[(x, None)])
    with pytest.raises(ValueError, match="one or two inputs with 32 together"):
        cpu.Layer(weight, [(1, 32, 8, 8), (1, 32, 8, 8)])
    with pytest.raises(ValueError, match="differ in channels only"):
        cpu.Layer(weight, [(1, 16, 8, 8), (1, 16, 8, 9)])
    with pytest.raises(ValueError, match="expected a divisor"):
        cpu.Layer(weight, [x.shape], groups=5)
    normed = cpu.Layer(weight, [x.shape], groups=32)
    with pytest.raises(ValueError, match="norm: None, prepared for a norm"):
        normed([(x, sums_of(x))])
    with pytest.raises(ValueError, match="parts: without the sums"):
        normed([(x, None)], norm=(torch.ones(32), torch.ones(32)))
    q, k, v = normal(1, 9, 2, 3, 8).unbind(3)
    with pytest.raises(ValueError, match="v of shape"):
        cpu.attention(q, k, v[:, :8])


def fresh_status(monkeypatch, **environment):
    """Return ``status`` as in a new process with such an environment."""
    monkeypatch.delenv("DDFM_FAST_CACHE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(build, "load", build.load_again)
    return cpu.status()


def test_switched_off(monkeypatch):
    assert fresh_status(monkeypatch, DDFM_FAST_CPU_KERNELS="0") == "DDFM_FAST_CPU_KERNELS=0"
    assert not NativeOps.available()
    assert isinstance(ops_for(torch.device("cpu"), 1), PlainOps)
    with pytest.raises(RuntimeError, match="cannot be used: DDFM_FAST_CPU_KERNELS=0"):
        build.library()


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(build.sys, "platform", "linux")
    reason = fresh_status(monkeypatch, CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert reason == "no C++ compiler (no-such-compiler); install g++"
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] || { echo 'does not compile' >&2; exit 1; }\n")
    broken.chmod(0o755)
    reason = fresh_status(monkeypatch, CXX=str(broken))
    assert "does not compile" in reason and not list(tmp_path.glob("ddfm_fast/*"))
    with_cpu = ops_for(torch.device("cpu"), 1)
    assert isinstance(with_cpu, OneDnnOps) == OneDnnOps.available()


@pytest.fixture
def quick_compiler(libraries, monkeypatch):
    """The compiler's results without the wait: what it made before."""
    libraries(None)
    made, run = libraries.folder, build.run
    native = build.build(made)

    def compile_or_run(command):
        if "-o" not in command:
            return run(command)
        shutil.copy(native, command[-1])
        return ""

    monkeypatch.setattr(build, "run", compile_or_run)


@needs_kernels
def test_compiled_once_for_all_processes(quick_compiler, monkeypatch, tmp_path):
    assert fresh_status(monkeypatch, XDG_CACHE_HOME=str(tmp_path)) is None
    (made,) = (tmp_path / "ddfm_fast").iterdir()
    before = made.stat().st_mtime_ns
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: build.build(made.parent), range(4))) == {made}
    assert made.stat().st_mtime_ns == before


@needs_kernels
def test_compiled_by_several_at_once(quick_compiler, tmp_path, monkeypatch):
    """Each process writes a file of its own, and the one that is renamed last stays."""
    at_once, run = threading.Barrier(2), build.run

    def slowly(command):
        if "-o" in command:
            at_once.wait(60)
        return run(command)

    monkeypatch.setattr(build, "run", slowly)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build.build(tmp_path), range(2))
    assert first == second and list(tmp_path.iterdir()) == [first]
    build.Library(ctypes.CDLL(str(first)))


@needs_kernels
def test_a_compiler_that_knows_no_native(quick_compiler, monkeypatch, tmp_path):
    """It compiles for any processor of the kind; other errors of the compiler are passed on."""
    tried, run = [], build.run

    def refusing(command):
        tried.append(command)
        if build.this_processor() in command and "-o" in command:
            raise RuntimeError("unknown value 'native'")
        return run(command)

    monkeypatch.setattr(build, "run", refusing)
    assert fresh_status(monkeypatch, XDG_CACHE_HOME=str(tmp_path)) is None
    first, second = [command for command in tried if "-o" in command]
    assert {flag for flag in first if flag not in second} == {build.this_processor()}
    monkeypatch.setattr(build, "run", lambda command: "" if "-o" not in command else 1 / 0)
    assert "division by zero" in fresh_status(monkeypatch, XDG_CACHE_HOME=str(tmp_path / "2"))


@pytest.mark.parametrize(
    "machine, flag",
    [("x86_64", "-march=native"), ("aarch64", "-mcpu=native"), ("arm64", "-mcpu=native")],
)
def test_processors_are_named_as_compilers_do(monkeypatch, machine, flag):
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    assert build.this_processor() == flag


@needs_kernels
def test_without_a_cache(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    assert fresh_status(monkeypatch, XDG_CACHE_HOME=str(blocked)) is None
    assert list(tmp_path.iterdir()) == [blocked], "nothing is left"


@needs_kernels
def test_a_full_cache(quick_compiler, monkeypatch, tmp_path):
    """The library is compiled for the process alone, as without a cache."""
    monkeypatch.setattr(build.cache, "folder", lambda: tmp_path / "own")
    check = build.cache.need_room

    def need_room(partial):
        if partial.parent == tmp_path / "own":
            raise OSError(28, "No space left on device")
        check(partial)

    monkeypatch.setattr(build.cache, "need_room", need_room)
    library, reason = build.load_again()
    assert reason is None
    assert library is not None and library.made == build.ONCE
    assert not list((tmp_path / "own").iterdir())


@needs_kernels
def test_what_a_compiler_made_wrong_does_not_stay(quick_compiler, monkeypatch, tmp_path):
    """A library that cannot be loaded is not kept, and one that was never made is not missed."""
    monkeypatch.setattr(build.cache, "folder", lambda: tmp_path / "own")
    run = build.run
    monkeypatch.setattr(build, "run", lambda command: run(command) if "-o" not in command else "")
    assert build.load_again()[1].endswith(" succeeded, but made no library")

    def cut_short(command):
        if "-o" not in command:
            return run(command)
        Path(command[-1]).write_bytes(b"\x7fELF")
        return ""

    monkeypatch.setattr(build, "run", cut_short)
    assert "too short" in build.load_again()[1]
    assert not list((tmp_path / "own").iterdir())
    monkeypatch.setattr(build, "run", run)
    library, reason = build.load_again()
    assert reason is None
    assert library is not None and library.made == build.COMPILED


def test_a_failing_compiler_is_reported_in_one_line_first():
    with pytest.raises(RuntimeError) as caught:
        build.run(["sh", "-c", "echo In file x >&2; echo 'error: no y' >&2; exit 3"])
    assert str(caught.value).splitlines()[0] == "sh failed with exit code 3: error: no y"
    with pytest.raises(RuntimeError, match="exit code 1: it printed no reason"):
        build.run(["false"])


@needs_kernels
@torch.no_grad()
def test_engine_prepares_layers_for_each_size(monkeypatch):
    unet = random_unet(SMALL, 0).to(memory_format=torch.channels_last)
    step = unet.conditioning(torch.tensor([431]))[0]
    engine = Engine(unet, NativeOps())
    kept = weakref.WeakSet()

    class Noted(cpu.Layer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            kept.add(self)

    monkeypatch.setattr(NativeOps, "MOST_LAYERS", 60)
    monkeypatch.setattr(native, "Layer", Noted)
    for size in [(16, 24), (64, 40), (16, 24), (8, 8)]:
        x = normal(2, 3, *size)
        torch.testing.assert_close(engine(x, step), unet.run(x, step), rtol=1e-4, atol=2e-5)
    assert 0 < len(kept) <= 60


def test_sources_are_packaged():
    setup = (Path(ROOT) / "setup.py").read_text()
    files = [*prebuilt.SOURCES, *prebuilt.HEADERS]
    assert {*files} == {*prebuilt.HERE.glob("*.cpp"), *prebuilt.HERE.glob("*.h")}, (
        "all count for the name"
    )
    for file in files:
        assert file.is_file() and f'"*{file.suffix}"' in setup
