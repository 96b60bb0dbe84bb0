"""Integers to luma, limits and back in C++ against their twin, plain PyTorch."""

from __future__ import annotations

import builds
import numpy as np
import pytest
import torch

from ddfm_fast import Fuser
from ddfm_fast.images.color import luma
from ddfm_fast.images.pixels import Pixels
from ddfm_fast.images.planes import read_raw
from ddfm_fast.images.stretch import Fused, stretch_limits
from ddfm_fast.kernels.cpu import pixels

needs_kernels = pytest.mark.skipif(
    pixels.status() is not None, reason=f"no CPU kernels here: {pixels.status()}"
)
SIZES = [(16, 16), (17, 33), (70, 47), (301, 527), (17, 8191)]
PLAIN = Pixels(torch.device("cpu"))
DTYPES = (np.uint8, np.uint16)
LAYOUTS = ("HWC", "CHW")
STRETCHES = ("none", "minmax", "percentile", "sources")


narrow, kernels = builds.fixtures(pixels)
threads = builds.threads


def image(size, dtype, channels, layout, seed=0):
    shape = (*size, channels) if layout == "HWC" else (channels, *size)
    most = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, most + 1, shape).astype(dtype)


def beyond(size, seed=1):
    """Draw a fused luma that leaves [0, 1]."""
    return torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2


@needs_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_read_luma(kernels, threads, size, dtype, channels, layout):
    raw = read_raw(image(size, dtype, channels, layout), "ir", layout=layout)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(pixels.read_luma(raw.values))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert (found[0] - luma(raw.planes())).abs().max() < 2e-7
    turned = raw.values.transpose(2, 3)  # strides that are copied first
    assert torch.equal(pixels.read_luma(turned), found[0].transpose(2, 3))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_gray_comes_back_exactly(kernels, dtype):
    gray = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(16, -1)
    raw = read_raw(gray, "ir")
    y = pixels.read_luma(raw.values)
    assert np.array_equal(pixels.give_back(Fused(y), raw.spec).numpy(), gray)
    assert torch.equal(pixels.read_luma(read_raw(np.dstack([gray] * 3), "ir").values), y)


@needs_kernels
@pytest.mark.parametrize("stretch", STRETCHES[1:])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_limits_are_the_twins(kernels, threads, size, stretch):
    """Order statistics are exact, in any order of the values."""
    y, ir, vis = (beyond(size, seed) for seed in (1, 2, 3))
    ordered = y.flatten().sort().values.view(y.shape)
    few = (y * 8).round() / 8
    back = ordered.flip(3).flip(2).contiguous()
    for values in (y, ordered, back, y.abs() + 0.1, -y.abs() - 0.1, few, torch.zeros_like(y)):
        expected = stretch_limits(stretch, values, ir, vis)
        for count in (1, 2):
            threads(count)
            assert torch.equal(pixels.limits(values, ir, vis, stretch), expected)


@needs_kernels
def test_limits_of_a_batch(kernels):
    y, ir, vis = (torch.cat([beyond((40, 50), s + k) for k in range(3)]) for s in (1, 5, 9))
    expected = stretch_limits("sources", y, ir, vis)
    assert torch.equal(pixels.limits(y, ir, vis, "sources"), expected)


@needs_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["gray", "whole", "unit"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_give_back(kernels, threads, size, dtype, kind, layout):
    """Results differ by at most one level, and rarely: if a value lies between two levels."""
    raw = read_raw(image(size, dtype, 1 if kind == "gray" else 3, layout), "vis", layout=layout)
    y, rgb = beyond(size), None if kind == "gray" else raw.planes()
    for stretch in STRETCHES:
        ends = stretch_limits(stretch, y, *(beyond(size, s).clamp(0, 1) for s in (2, 3)))
        for dims in (False, True):
            expected = PLAIN.give_back(Fused(y, ends), raw.spec, chroma=rgb, dims=dims).image()
            found = []
            for count in (1, 2):
                threads(count)
                chroma = raw.values if kind == "whole" else rgb
                values = pixels.give_back(Fused(y, ends), raw.spec, chroma=chroma, dims=dims)
                found.append(values.numpy())
            assert np.array_equal(*found) and found[0].dtype == expected.dtype
            apart = np.abs(found[0].astype(int) - expected)
            assert apart.shape == expected.shape and apart.max() <= 1
            assert (apart > 0).mean() < (1e-3 if dtype == np.uint8 else 0.02)


@needs_kernels
def test_a_batch_gives_what_each_image_gets_alone(kernels):
    images = np.stack([image((20, 30), np.uint8, 3, "HWC", seed) for seed in range(3)])
    raw = read_raw(images, "vis")
    y = torch.cat([beyond((20, 30), seed) for seed in range(3)])
    ends = stretch_limits("minmax", y, y, y)
    whole = pixels.give_back(Fused(y, ends), raw.spec, chroma=raw.values)
    for n in range(3):
        one = read_raw(images[n], "vis")
        part = Fused(y, ends).images(n, 1)
        assert torch.equal(pixels.give_back(part, one.spec, chroma=one.values), whole[n])


@needs_kernels
def test_what_does_not_fit_is_refused():
    raw = read_raw(image((16, 20), np.uint8, 3, "HWC"), "vis")
    y = beyond((16, 20))
    for wrong in (raw.values.int(), raw.values[0], raw.values[:, :2], raw.values.to("meta")):
        with pytest.raises(ValueError, match="expected"):
            pixels.read_luma(wrong)
    with pytest.raises(ValueError, match="chroma of shape"):
        pixels.give_back(Fused(y[..., :19]), raw.spec, chroma=raw.values)
    with pytest.raises(ValueError, match="of uint8, uint16, float32"):
        pixels.give_back(Fused(y), raw.spec, chroma=raw.values.double())
    with pytest.raises(ValueError, match="expected one, and integers"):
        pixels.give_back(Fused(y), read_raw(np.zeros((16, 20), np.float32), "vis").spec)


@needs_kernels
@pytest.mark.parametrize("preset", ["instant", "balanced"])
def test_a_call_is_the_same_without_them(preset, monkeypatch):
    """A color of either source, in batches, and the noise of chroma: one level apart at most."""
    rng, fuser = np.random.default_rng(0), Fuser(preset=preset, device="cpu")
    ramp = np.linspace(30, 200, 96)[None, :, None] * np.ones((80, 1, 1))
    colored = ramp * [1.0, 0.7, 0.4]
    noise = rng.normal(0, 12, (80, 96, 3))
    gray = ramp[:, ::-1] * np.ones(3)
    ir, vis = (
        np.stack(images).clip(0, 255).astype(np.uint8)
        for images in ((gray, colored), (colored + noise, gray + noise[..., :1]))
    )
    ours = fuser(ir, vis)
    monkeypatch.setattr(pixels, "load", lambda: (None, "off"))
    plain = fuser(ir, vis)
    apart = np.abs(ours.astype(int) - plain)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01
