"""The first and last pass of a forward on a CPU, to the bit against PyTorch's operations."""

import builds
import pytest
import torch
import torch.nn.functional as F

from ddfm_fast.kernels.cpu import build, edges
from ddfm_fast.priors.timesteps import Mix, mixed

pytestmark = pytest.mark.skipif(build.status() is not None, reason=f"{build.status()}")
SHAPES = [(1, 3, 4, 4), (3, 3, 12, 20), (1, 1, 36, 28), (3, 6, 8, 4), (1, 3, 256, 320)]
each = pytest.mark.parametrize("shape", SHAPES, ids=str)
sides = pytest.mark.parametrize("side", edges.SIDES)
kinds = pytest.mark.parametrize("dtype", edges.DTYPES, ids=str)
narrow, kernels = builds.fixtures(edges)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fill results with NaN before they are written."""

    def empty(*shape):
        return torch.full(shape, torch.nan)

    def empty_strided(shape, strides, dtype=torch.float32):
        return torch.empty_strided(shape, strides, dtype=dtype).fill_(torch.nan)

    monkeypatch.setattr(edges.memory, "empty", empty)
    monkeypatch.setattr(edges.memory, "empty_strided", empty_strided)


def numbers(*shape, seed=0):
    """Draw numbers, a fifth of which lie halfway between two numbers of bfloat16."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3
    x.view(-1)[::5] = 1 + 2.0**-8
    return x


@each
@sides
@kinds
@pytest.mark.usefixtures("kernels")
def test_gather(shape, side, dtype):
    x = numbers(*shape)
    wanted = F.pixel_unshuffle(x.to(dtype), side) if side > 1 else x.to(dtype)
    found = edges.gather(x, side, dtype)
    assert found.dtype == dtype and torch.equal(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)


@each
@sides
@kinds
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.usefixtures("kernels")
def test_spread(shape, side, dtype, threads):
    n, c, h, w = shape
    out = numbers(n, c * side**2, h // side, w // side, seed=1).to(dtype)
    out = out.contiguous(memory_format=torch.channels_last)
    x = numbers(*shape, seed=2)
    for factors in {1, n}:
        mix = Mix(numbers(factors, seed=3), numbers(factors, seed=4))
        wanted = mixed(x, F.pixel_shuffle(out, side) if side > 1 else out, mix)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert torch.equal(edges.spread(out, side, x, *mix), wanted)
        finally:
            torch.set_num_threads(before)


@pytest.mark.usefixtures("kernels")
def test_not_a_number_stays():
    x = torch.full((1, 3, 4, 4), torch.nan)
    for dtype in edges.DTYPES:
        channels = edges.gather(x, 2, dtype)
        assert channels.isnan().all()
        assert edges.spread(channels, 2, x, torch.ones(1), torch.ones(1)).isnan().all()


@pytest.mark.parametrize(
    ("shape", "side", "words"),
    [((1, 3, 6, 6), 3, "side 3"), ((1, 3, 6, 7), 2, "multiples of side 2")],
)
def test_what_does_not_fit_is_refused(shape, side, words):
    with pytest.raises(ValueError, match=words):
        edges.gather(torch.zeros(shape), side)


def test_other_layouts_are_refused():
    with pytest.raises(ValueError, match="x of shape"):
        edges.gather(torch.zeros(1, 4, 4, 3).permute(0, 3, 1, 2), 2)
    with pytest.raises(ValueError, match="out of shape"):
        edges.spread(torch.zeros(1, 12, 2, 2), 2, torch.zeros(1, 3, 4, 4), *[torch.ones(1)] * 2)
