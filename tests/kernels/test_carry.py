"""The sources of a frame carried over in C++ against their twin in PyTorch."""

from __future__ import annotations

import builds
import pytest
import torch
import torch.nn.functional as F

from ddfm_fast.kernels.cpu import carry
from ddfm_fast.video import trust

needs_kernels = pytest.mark.skipif(
    carry.status() is not None, reason=f"no CPU kernels here: {carry.status()}"
)
SIZES = [(2, 2), (3, 17), (16, 16), (17, 33), (70, 47), (301, 527), (17, 1191)]
TINY = 2e-7
"""what float32 rounds in planes in [0, 1]; the twin's error already has the rounding of
positions"""
FLOWS = ("none", "zero", "pan", "smooth", "wild")


narrow, kernels = builds.fixtures(carry)
threads = builds.threads


def smooth(height, width, planes, seed):
    small = torch.rand(
        planes,
        max(height // 8, 2),
        max(width // 8, 2),
        generator=torch.Generator().manual_seed(seed),
    )
    return F.interpolate(small[None], (height, width), mode="bicubic")[0].clamp(0, 1)


def flow_of(kind, height, width):
    if kind == "none":
        return None
    if kind in ("zero", "pan"):
        return torch.full((height, width, 2), 2.3 if kind == "pan" else 0.0)
    if kind == "smooth":
        return (smooth(height, width, 2, 9) * 6 - 3).permute(1, 2, 0).contiguous()
    return torch.randn(height, width, 2, generator=torch.Generator().manual_seed(4)) * 40


def twin(now, kept, flow, scale):
    both = torch.stack(now)
    before, share = trust.trusted(both, torch.stack(kept), flow, scale)
    return torch.lerp(both, before, share)


@needs_kernels
@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_carry(kernels, threads, monkeypatch, size, kind):
    """It agrees with the twin in float64; with a margin below 0, moving is always used."""
    kept, flow = tuple(smooth(*size, 2, 1)), flow_of(kind, *size)
    noise = torch.randn(2, *size, generator=torch.Generator().manual_seed(2)) * 0.01
    now = tuple((torch.stack(kept) + noise).clamp_(0, 1))
    for scale, margin in ((2.0, trust.FLOW_MARGIN), (1e3, -1e4)):
        monkeypatch.setattr(trust, "FLOW_MARGIN", margin)
        found = []
        for count in (1, 2, 3):
            threads(count)
            found.append(torch.stack(carry.carry(now, kept, flow, scale, margin)))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        doubled = [[x.double() for x in planes] for planes in (now, kept)]
        exact = twin(*doubled, None if flow is None else flow.double(), scale)
        error = (found[0] - exact).abs()
        plain = (twin(now, kept, flow, scale) - exact).abs()
        assert error.max() <= 2 * plain.max() + TINY
        assert error.mean() <= 2 * plain.mean() + TINY


@needs_kernels
def test_what_does_not_change_stays_bit_for_bit(kernels):
    kept = tuple(smooth(40, 60, 2, 3))
    for flow in (None, torch.zeros(40, 60, 2), torch.full((40, 60, 2), float("nan"))):
        found = carry.carry(kept, kept, flow, 1.5, trust.FLOW_MARGIN)
        assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))


@needs_kernels
def test_a_pan_is_found_again(kernels):
    """A frame moved by whole pixels is the previous frame, except at its edges."""
    kept = tuple(smooth(64, 96, 2, 5))
    now = tuple(plane.roll((3, 5), (0, 1)) for plane in kept)
    flow = torch.tensor([-5.0, -3.0]).expand(64, 96, 2).contiguous()
    found = carry.carry(now, kept, flow, 1.5, trust.FLOW_MARGIN)
    for a, b in zip(found, now, strict=True):
        assert (a - b)[8:, 8:].abs().max() < 1e-6


@needs_kernels
def test_what_does_not_fit_is_refused():
    now, kept = (tuple(smooth(16, 20, 2, seed)) for seed in (1, 2))
    with pytest.raises(ValueError, match=r"flow of shape \(16, 20\)"):
        carry.carry(now, kept, now[0], 1.5, 1.0)
    with pytest.raises(ValueError, match="from 2 up"):
        carry.carry(tuple(p[:1] for p in now), kept, None, 1.5, 1.0)
