"""The target's CPU kernels against their twin, PyTorch's and OpenCV's operations."""

from __future__ import annotations

import ctypes
import os
import shutil

import emulated
import pytest
import torch

from ddfm_fast.kernels.cpu import bands, build, cache
from ddfm_fast.target import choose as target
from ddfm_fast.target import pyramid, terms

needs_kernels = pytest.mark.skipif(
    bands.status() is not None, reason=f"no CPU kernels here: {bands.status()}"
)
SIZES = [(7, 8), (8, 7), (9, 31), (33, 64), (70, 47), (301, 527)]
TWICE_SIZES = [(2, 2), (3, 2), (4, 9), *SIZES]
LEVEL_ERROR, ERROR = 2e-6, 2e-5
"""of a level's result and of all, both in [0, 1]"""


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Compiled for vectors of four."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("bands") / "narrow.so"
    flags = *build.FLAGS, build.this_processor(), "-DVL=4"
    build.run([compiler, *flags, str(bands.SOURCE), "-o", str(path)])
    return bands.Library(ctypes.CDLL(str(path)), build.library().team)


@pytest.fixture(params=["native", "narrow", *emulated.PARAMS])
def kernels(request, monkeypatch):
    """Compiled functions whose results hold NaN before they are written."""
    if request.param in emulated.TARGETS:
        shared = request.getfixturevalue("foreign")(request.param)
        shared.watch(monkeypatch)
        library = bands.Library(shared, 0)
        monkeypatch.setattr(bands, "load", lambda: (library, None))
    elif request.param == "narrow":
        library = request.getfixturevalue("narrow")
        monkeypatch.setattr(bands, "load", lambda: (library, None))
    empty = torch.empty

    def poisoned(*args, **options):
        x = empty(*args, **options)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def plane(height, width, seed=0):
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed))


def pair(height, width, seed=0):
    """Two smooth sources with noise, a bright flat part and a black one: [1, 1, H, W] each."""
    sources = []
    for k in range(2):
        x = pyramid.smooth(pyramid.smooth(plane(height, width, seed + k))) + k * 0.1
        x[: height // 3] = 0.8 + 0.01 * plane(height, width, seed + 2 + k)[: height // 3]
        x[-height // 5 :] *= 0.02
        sources.append(x.clamp_(0, 1)[None, None])
    return sources


def level_of(height, width, known, halved):
    size, half = (height, width), ((height + 1) // 2, (width + 1) // 2)
    sources = plane(*size, 1), plane(*size, 2)
    coarse = pyramid.down(sources[0]), pyramid.down(sources[1])
    maps = [plane(*(half if halved else size), 3 + k) if k in known else None for k in range(3)]
    return sources, coarse, plane(*half, 9), maps


@needs_kernels
@pytest.mark.parametrize("halved", [False, True], ids=["full", "halved"])
@pytest.mark.parametrize("known", [(), (2,), (0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_level(kernels, threads, size, known, halved):
    for numbers in (target.PHOTOGRAPHIC, target.FUNCTIONAL):
        for margin in (0.0, target.BLACK_MARGIN):
            call = *level_of(*size, known, halved), numbers, margin
            found = []
            for count in (1, 2, 3):
                threads(count)
                found.append(bands.fuse_level(*call))
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
            sources, coarse, result, maps, *rest = call
            if halved:
                maps = [None if m is None else pyramid.up(m, *size) for m in maps]
            inputs = sources, coarse, result, target._Level(*maps)
            doubled = [
                tuple(None if x is None else x.double() for x in part)
                for part in (*inputs[:2], inputs[3])
            ]
            exact = target._fuse_level(
                doubled[0], doubled[1], result.double(), target._Level(*doubled[2]), *rest
            )
            assert (found[0] - exact).abs().max() < LEVEL_ERROR
            twin = target._fuse_level(*inputs, *rest)
            assert (found[0] - twin).abs().max() < LEVEL_ERROR


@needs_kernels
@pytest.mark.parametrize("size", TWICE_SIZES, ids=str)
def test_smooth_twice(kernels, threads, size):
    x = plane(*size)
    threads(1)
    found = bands.smooth_twice(x)
    assert (found - pyramid.smooth(pyramid.smooth(x))).abs().max() < 5e-7
    threads(2)
    assert torch.equal(bands.smooth_twice(x), found)


@needs_kernels
@pytest.mark.parametrize("size", [(1, 3), *SIZES], ids=str)
def test_sky(kernels, threads, size):
    mean, noise = plane(*size), plane(*size, 1)
    square = mean * mean + (noise - 0.1) ** 3 * 1e-3
    square[0, 0] = 1e3  # e^-4,444,444
    threads(1)
    found = bands.sky(mean, square, 0.65, 20.0, 0.015, -50.0)
    flat = (-(square - mean * mean).double().clamp(min=0) / 0.015**2).clamp(min=-50).exp()
    expected = torch.sigmoid((mean.double() - 0.65) * 20) * flat
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=0)
    assert found.min() > torch.finfo(torch.float32).tiny, "numbers below are slow"
    threads(2)
    assert torch.equal(bands.sky(mean, square, 0.65, 20.0, 0.015, -50.0), found)


@needs_kernels
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (17, 33), (47, 16), (130, 90), (301, 527)], ids=str)
def test_all_of_it(kernels, threads, monkeypatch, size, functional):
    i, v = pair(*size)
    found = []
    for count in (1, 2):
        threads(count)
        found.append(target.choose(i, v, [functional]))
    assert torch.equal(found[0], found[1])
    batch = target.choose(torch.cat((v, i, i)), torch.cat((i, v, v)), [functional] * 3)
    assert found[0].shape == i.shape and not found[0].is_inference()
    assert torch.equal(batch[1:2], found[0]) and torch.equal(batch[2:], found[0])
    monkeypatch.setattr(bands, "load", lambda: (None, "off"))
    twin = target.choose(i, v, [functional])
    assert not torch.equal(twin, found[0]), "the compiled code was not used"
    assert (found[0] - twin).abs().max() < ERROR


@needs_kernels
def test_flat_sources():
    for grays in ((0.0, 0.0), (0.8, 0.2), (1.0, 1.0)):
        i, v = (torch.full((1, 1, 40, 50), gray) for gray in grays)
        fused = target.choose(i, v)
        assert fused.isfinite().all() and fused.min() >= 0 and fused.max() <= 1


def test_no_compiler(monkeypatch, tmp_path):
    """PyTorch's and OpenCV's operations are the path then, and say nothing."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "load", build.load_again)
    monkeypatch.setattr(bands, "load", bands.load_again)
    reason = bands.status()
    assert reason is not None and terms.compiled(plane(8, 8)) is None
    fused = target.choose(*pair(40, 50))
    assert fused.shape == (1, 1, 40, 50) and fused.isfinite().all()
    with pytest.raises(RuntimeError, match="cannot be used: "):
        bands.smooth_twice(plane(8, 8))


@needs_kernels
def test_found_again_without_a_compiler(monkeypatch):
    """What was compiled lies in the cache under a name that needs no more than the sources."""
    assert bands.load_again()[1] is None
    calls, run = [], build.run
    monkeypatch.setattr(build, "run", lambda command: calls.append(command) or run(command))
    assert bands.load_again()[1] is None
    if cache.usable_folder() is not None:
        assert not [command for command in calls if "-o" in command]


def test_only_for_float32_on_a_cpu():
    assert terms.compiled(plane(8, 8).double()) is None
    assert terms.compiled(plane(8, 8).to("meta")) is None


@needs_kernels
def test_what_does_not_fit_is_refused():
    sources, coarse, result, maps = level_of(8, 10, (0, 1, 2), False)
    numbers = target.PHOTOGRAPHIC
    bands.fuse_level(sources, coarse, result, maps, numbers)
    for wrong in (sources[0].double(), sources[0].T.contiguous().T, sources[0].to("meta")):
        with pytest.raises(ValueError, match="float32 on the CPU, without gaps"):
            bands.fuse_level((wrong, sources[1]), coarse, result, maps, numbers)
    with pytest.raises(ValueError, match=r"expected \(4, 5\)"):
        bands.fuse_level(sources, coarse, sources[0], maps, numbers)
    with pytest.raises(ValueError, match=r"expected \(8, 10\)"):
        bands.fuse_level(sources, coarse, result, [maps[0], maps[1], result], numbers)
    with pytest.raises(ValueError, match="from 4 up"):
        bands.fuse_level((plane(3, 9), plane(3, 9)), coarse, result, maps, numbers)
    with pytest.raises(ValueError, match="from 2 up"):
        bands.smooth_twice(plane(1, 9))
    with pytest.raises(ValueError, match=r"expected \(8, 10\)"):
        bands.sky(sources[0], result, 0.65, 20.0, 0.015, -50.0)


def test_source_is_packaged():
    assert bands.SOURCE.is_file() and bands.SOURCE.parent == build.HERE
