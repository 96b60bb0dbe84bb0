"""The closed form in C++ against its twin, PyTorch's and OpenCV's operations."""

from __future__ import annotations

from dataclasses import replace

import builds
import pytest
import torch

from ddfm_fast.kernels.cpu import build, cache, closed, prebuilt
from ddfm_fast.target import choose as target
from ddfm_fast.target import pyramid

needs_kernels = pytest.mark.skipif(
    closed.status() is not None, reason=f"no CPU kernels here: {closed.status()}"
)
SIZES = [(16, 16), (17, 33), (47, 16), (70, 47), (130, 90), (301, 527)]
LEVEL_ERROR, ERROR = 2e-6, 2e-5
"""the largest error of one level's result and of the whole result, both in [0, 1]"""
GAUSSIAN, MAP = 5e-7, 5e-4
"""the largest error of a pyramid, and of a map, whose correlations and variances are differences of
squares"""
PHOTO = target.PHOTOGRAPHIC
NO_SKY = replace(PHOTO, sky_coring=0, sky_share=0, sky_base=0)
TERMS = {
    "photographic": PHOTO,
    "functional": target.FUNCTIONAL,
    "no sky": NO_SKY,
    "no conflict": replace(PHOTO, conflict=0),
    "neither": replace(NO_SKY, conflict=0),
    "no weight": replace(PHOTO, salient=0, bright=0),
    "no contrast": replace(PHOTO, contrast=0),
}


narrow, kernels = builds.fixtures(closed)
threads = builds.threads


def plane(height, width, seed=0):
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed))


def pair(height, width, seed=0):
    """Make two smooth sources with noise, a bright flat part and a black one: [1, 1, H, W] each."""
    sources = []
    for k in range(2):
        x = pyramid.smooth(pyramid.smooth(plane(height, width, seed + k))) + k * 0.1
        x[: height // 3] = 0.8 + 0.01 * plane(height, width, seed + 2 + k)[: height // 3]
        x[-height // 5 :] *= 0.02
        sources.append(x.clamp_(0, 1)[None, None])
    return sources


@needs_kernels
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_stage(kernels, size, name):
    """Pyramids, maps and levels agree with float64, each computed from the stages before it."""
    numbers, depth = TERMS[name], pyramid.depth(*size, target.LEVELS)
    i, v = (x[0, 0] for x in pair(*size))
    work = torch.full((closed.work_floats(*size),), float("nan"))
    out = closed.choose(i, v, numbers, depth, target.BLACK_MARGIN, work)
    planes = closed.planes_of(work, *size) | {"ir0": i, "vis0": v, "result0": out}
    found = {name: plane.double() for name, plane in planes.items()}
    exact = [pyramid.down_times(x.double(), depth) for x in (i, v)]
    maps = target._maps(*exact, v.double(), numbers)
    for k in range(1, depth + 1):
        for name, plane in zip(("ir", "vis"), exact, strict=True):
            assert (found[f"{name}{k}"] - plane[k]).abs().max() < GAUSSIAN
        of_level = maps.at(k)
        if of_level.sky is not None:
            assert (found[f"sky{k}"] - of_level.sky).abs().max() < MAP
        if of_level.conflict is not None:  # where there is no conflict nobody is picked
            assert (found[f"conflict{k}"] - of_level.conflict).abs().max() < MAP
            share = (found[f"pick{k}"] - of_level.pick) * of_level.conflict
            assert share.abs().max() < MAP
    for k in reversed(range(depth)):
        sources, coarse = ((found[f"ir{n}"], found[f"vis{n}"]) for n in (k, k + 1))
        ours = [
            None if plane is None else found[f"{name}{max(k, 1)}"]
            for name, plane in zip(("conflict", "pick", "sky"), maps.at(k), strict=True)
        ]
        if not k:
            ours = [None if plane is None else pyramid.up(plane, *size) for plane in ours]
        margin = 0.0 if k else target.BLACK_MARGIN
        level = target._fuse_level(
            sources, coarse, found[f"result{k + 1}"], target._Level(*ours), numbers, margin
        )
        assert (found[f"result{k}"] - level).abs().max() < LEVEL_ERROR


@needs_kernels
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("size", [*SIZES, (17, 8191), (256, 600)], ids=str)
def test_the_result_is_that_of_float64_for_any_threads(kernels, threads, size, name):
    i, v = (x[0, 0] for x in pair(*size))
    depth, numbers = pyramid.depth(*size, target.LEVELS), TERMS[name]
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(closed.choose(i, v, numbers, depth, target.BLACK_MARGIN))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    exact = target._choose(i.double(), v.double(), numbers)
    assert (found[0] - exact).abs().max() < ERROR
    assert (found[0] - twin(i, v, numbers)).abs().max() < ERROR


def twin(i, v, numbers):
    """Compute the closed form by the plain path, even if the C++ is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed, "load", lambda: (None, "off"))
        return target._choose(i, v, numbers)


@needs_kernels
@pytest.mark.parametrize("functional", [False, True])
def test_a_batch_gives_what_each_image_gets_alone(kernels, functional):
    i, v = pair(47, 61)
    alone = target.choose(i, v, [functional])
    batch = target.choose(torch.cat((v, i, i)), torch.cat((i, v, v)), [functional] * 3)
    assert alone.shape == i.shape and not alone.is_inference()
    assert torch.equal(batch[1:2], alone) and torch.equal(batch[2:], alone)
    numbers = target.FUNCTIONAL if functional else PHOTO
    assert not torch.equal(twin(i[0, 0], v[0, 0], numbers), alone[0, 0]), "C++ was not used"


@needs_kernels
def test_flat_sources():
    for grays in ((0.0, 0.0), (0.8, 0.2), (1.0, 1.0)):
        i, v = (torch.full((1, 1, 40, 50), gray) for gray in grays)
        fused = target.choose(i, v)
        assert fused.isfinite().all() and fused.min() >= 0 and fused.max() <= 1


def test_no_compiler(monkeypatch, tmp_path):
    """PyTorch's and OpenCV's operations are used then, without a warning."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "load", build.load_again)
    monkeypatch.setattr(closed, "load", closed.load_again)
    reason = closed.status()
    assert reason is not None and target._compiled(plane(8, 8), plane(8, 8)) is None
    fused = target.choose(*pair(40, 50))
    assert fused.shape == (1, 1, 40, 50) and fused.isfinite().all()
    with pytest.raises(RuntimeError, match="cannot be used: "):
        closed.choose(plane(16, 16), plane(16, 16), PHOTO, 2, 6.0)


@needs_kernels
def test_found_again_without_a_compiler(monkeypatch):
    """The library is in the cache under a name that depends only on the sources."""
    assert closed.load_again()[1] is None
    calls, run = [], build.run
    monkeypatch.setattr(build, "run", lambda command: calls.append(command) or run(command))
    assert closed.load_again()[1] is None
    if cache.usable_folder() is not None:
        assert not [command for command in calls if "-o" in command]


def test_only_for_float32_on_a_cpu():
    assert target._compiled(plane(8, 8).double(), plane(8, 8).double()) is None
    assert target._compiled(plane(8, 8).to("meta"), plane(8, 8).to("meta")) is None


@needs_kernels
def test_what_does_not_fit_is_refused():
    i, v = plane(20, 24, 1), plane(20, 24, 2)
    call = lambda i, v, depth=2, **work: closed.choose(i, v, PHOTO, depth, 6.0, **work)  # noqa: E731
    call(i, v)
    for wrong in (v.double(), v.T.contiguous().T, v.to("meta")):
        with pytest.raises(ValueError, match="float32 on the CPU, without gaps"):
            call(i, wrong)
    with pytest.raises(ValueError, match=r"expected \(20, 24\)"):
        call(i, v[:19])
    with pytest.raises(ValueError, match="from 16 up"):
        call(i[:15], v[:15])
    for depth in (1, 3, 6):
        with pytest.raises(ValueError, match=f"depth: {depth} of 20x24"):
            call(i, v, depth)
    with pytest.raises(ValueError, match="work of shape"):
        call(i, v, work=torch.empty(closed.work_floats(20, 24) - 1))


def test_source_is_packaged():
    assert closed.SOURCE.is_file() and closed.SOURCE.parent == prebuilt.HERE
