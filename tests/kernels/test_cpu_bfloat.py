"""The layers of the CPU in bfloat16 against PyTorch in float64, and the prior that they run.

What goes in is exact in bfloat16, so that only the code's own rounding is seen.
"""

from __future__ import annotations

import emulated
import pytest
import torch
from networks import SMALL, random_unet
from test_cpu_kernels import (
    CASES,
    SIZES,
    kernels,
    make,
    needs_kernels,
    normal,
    sums_of,
)  # fmt: skip

from ddfm_fast.bench.data import network
from ddfm_fast.bench.engines import TIMESTEP, pictures
from ddfm_fast.kernels import cpu
from ddfm_fast.kernels.cpu import build, winograd
from ddfm_fast.kernels.cpu.operators import cpu_layer
from ddfm_fast.priors import load_prior
from ddfm_fast.priors.network import UNetPrior
from ddfm_fast.priors.ops.base import Conv
from ddfm_fast.priors.ops.native import NativeOps

FIXTURES = (kernels,)
LOW = torch.bfloat16
ROUNDING = 2.0**-8
"""the largest relative error of a rounded result"""
needs_pairs = pytest.mark.skipif(
    not NativeOps.available(LOW), reason="no instruction here that multiplies in bfloat16"
)
pytestmark = needs_kernels


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_layer_is_its_twin(case, size):
    if CASES[case].get("norm") and size[1:] == (1, 1):
        size = 1, 1, 3  # as in test_cpu_kernels
    made = make(*size, **CASES[case], dtype=LOW)
    if made is None:
        return
    layer, arguments, exact = made
    poisoned = torch.full_like(exact, float("nan"), dtype=LOW, memory_format=torch.channels_last)
    got, sums = layer(**arguments, out=poisoned)
    assert got is poisoned and got.isfinite().all()
    error = (got.double() - exact).abs()
    # of direct sums only what goes in after a norm or a mean is rounded, and what comes out
    between = layer.weight.winograd or layer.groups or CASES[case].get("resample")
    if between:
        scale = exact.square().mean().sqrt()
        bound = 5e-3 if not layer.weight.winograd else 1.5e-2
        assert error.square().mean().sqrt() < bound * scale and error.max() < 12 * bound * scale
    else:
        assert (error <= ROUNDING * exact.abs() + 1e-5).all()
    apart = 1.01 * ROUNDING  # sums are of what is not yet rounded
    total, values = sums.double().sum(1), got.double()
    assert (
        (total[:, 0] - values.sum((2, 3))).abs() <= apart * values.abs().sum((2, 3)) + 1e-5
    ).all()
    squares = values.square().sum((2, 3))
    assert ((total[:, 1] - squares).abs() <= 2.1 * apart * squares + 1e-5).all()


@pytest.mark.parametrize("case", CASES)
def test_layer_does_not_depend_on_threads_or_neighbors(case, monkeypatch):
    layer, arguments, _ = make(3, 40, 62, **CASES[case], dtype=LOW)
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(layer(**arguments))
    for got, sums in results[1:]:
        assert torch.equal(got, results[0][0]) and torch.equal(sums, results[0][1])
    alone, single, _ = make(1, 40, 62, **CASES[case], dtype=LOW)
    for name in ("parts", "skip"):
        single[name] = [(x[:1], None if s is None else s[:1]) for x, s in arguments[name]]
    if arguments["residual"] is not None:
        single["residual"] = arguments["residual"][:1]
    assert torch.equal(alone(**single)[0], results[0][0][:1])


@pytest.mark.usefixtures("kernels")
def test_results_are_rounded_to_the_nearest():
    """Ties go to even, values past the largest to infinity, and NaN stays."""
    x = normal(1, 20, 40, 50).mul_(100).to(LOW)
    bias = torch.zeros(20)
    bias[:8] = torch.tensor([1.0, 2.0**-9, 3 * 2.0**-9, 1e-3, 1e30, -3.3e38, torch.nan, 3.4e38])
    x[:, :3, 0] = 1
    x[:, 5, 0] = -3e38
    x[0, 11, 3, 4] = float("nan")
    identity = torch.eye(20)[:, :, None, None]
    got, _ = cpu.Layer(cpu.pack(identity, False, LOW), [x.shape])([(x, None)], bias=bias)
    exact = (x.float() + bias[:, None, None]).to(LOW)
    exact[0, :, 3, 4] = float("nan")  # each output has a product with it
    assert got[0, 5, 0].isinf().all()
    torch.testing.assert_close(got, exact, rtol=0, atol=0, equal_nan=True)


def test_what_does_not_fit_is_refused():
    x = normal(1, 32, 8, 8)
    layer = cpu.Layer(cpu.pack(normal(32, 32, 3, 3), True, LOW), [x.shape])
    with pytest.raises(ValueError, match="bfloat16 on the CPU, channels_last"):
        layer([(x, None)])
    with pytest.raises(ValueError, match="expected torch.float32 or torch.bfloat16"):
        cpu.pack(normal(32, 32, 3, 3), True, torch.float16)
    skip = cpu.pack(normal(32, 32, 1, 1), False)
    with pytest.raises(ValueError, match="skip: .*torch.bfloat16"):
        cpu.Layer(layer.weight, [x.shape], skip=(skip, [32]))
    skip = cpu.pack(normal(32, 32, 1, 1), False, LOW)
    with pytest.raises(ValueError, match="skip: 5 channels first; expected an even number"):
        cpu.Layer(layer.weight, [x.shape], skip=(skip, [5, 27]))


def test_operator_is_the_layer():
    x = normal(1, 32, 18, 10).to(LOW)
    weight, sums = normal(64, 32, 3, 3, seed=1).to(LOW), sums_of(x)
    norm, bias = list(normal(2, 32, seed=2)), normal(64, seed=3)
    skip, skip_weight = normal(1, 32, 18, 10, seed=4).to(LOW), normal(64, 32, seed=5).to(LOW)
    call = ([x], [sums], weight, bias, norm, skip_weight, [skip], None, 32, 1e-5, True, "", 1,
            False, True)  # fmt: skip
    layer = cpu.Layer(
        cpu.pack(weight, True, LOW), [x.shape], groups=32, epsilon=1e-5, silu=True,
        skip=(cpu.pack(skip_weight, False, LOW), [32]),
    )  # fmt: skip
    own = layer([(x, sums)], norm=(norm[0], norm[1]), bias=bias, skip=[(skip, None)])
    found = cpu_layer(*call)
    assert found[0].dtype == LOW and found[1].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(own, found, strict=True))
    torch.library.opcheck(torch.ops.ddfm_fast.cpu_layer, call)


def tiles(count, channels):
    """Inputs of tiles like SiLU's output, filters, and the result of a direct convolution."""
    inputs = torch.nn.functional.silu(normal(count, channels, 6, 6)).double()
    filters = normal(16, channels, 3, 3, seed=1).double()
    return inputs, filters, torch.nn.functional.conv2d(inputs, filters)


def by_points(inputs, filters, narrow):
    once = winograd.weights_transform()
    weights = torch.einsum("ia,ocab,jb->ijoc", once, filters, once)
    weights = narrow(weights.reshape(36, -1)).double().view_as(weights)
    across, back = (
        torch.from_numpy(f()) for f in (winograd.inputs_transform, winograd.outputs_transform)
    )
    values = torch.einsum("ia,ncab,jb->ijnc", across, inputs, across)
    return torch.einsum("xi,yj,ijoc,ijnc->noxy", back, back, weights, values)


def test_transforms_are_a_convolution():
    inputs, filters, exact = tiles(3, 5)
    torch.testing.assert_close(by_points(inputs, filters, lambda w: w), exact, rtol=0, atol=1e-12)


def test_weights_are_rounded_together():
    """Outputs lose 0.6 of what rounding one by one loses; values that bfloat16 holds stay."""
    inputs, filters, exact = tiles(200, 64)
    alone, together = (
        (by_points(inputs, filters, narrow) - exact).square().mean().sqrt()
        for narrow in (lambda w: w.to(LOW), winograd.rounded)
    )
    assert together < 0.68 * alone
    held = normal(36, 7, seed=2).to(LOW)
    assert torch.equal(winograd.rounded(held.double()), held)


def test_winograd_of_inputs_loses_less_than_by_rounding_one_by_one():
    """Rounded one by one, inputs and weights would cost 1.2 % of the result, either alone .93 %."""
    x = torch.nn.functional.silu(normal(1, 64, 64, 96)).to(LOW)
    weight = normal(32, 64, 3, 3, seed=1)
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    got, _ = cpu.Layer(cpu.pack(weight, True, LOW), [x.shape])([(x, None)])
    error = (got.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 9e-3


@needs_pairs
@torch.no_grad()
def test_plain_network_is_within_the_limit_of_the_comparison():
    """5 %, of ``bench.engines``; with random weights, which no training has made robust."""
    prior = UNetPrior(network("ADM 32"))
    low = prior.to(None, "bfloat16")
    x, step = pictures(1, 64, 96, 0)[1], prior.conditioning(torch.tensor([TIMESTEP]))[0]
    exact = prior.eps(x, step)
    error = (low.eps(x, step).float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 5e-2


@needs_pairs
@pytest.mark.parametrize("size", [(16, 48), (80, 112)])
def test_prior(size):
    exact, low = load_prior("embedded"), load_prior("embedded", dtype="bfloat16")
    assert isinstance(low.engine.ops, NativeOps) and low.reproducible
    x = normal(3, 3, *size)
    step = exact.conditioning(torch.tensor([300]))[0]
    eps = low.eps(x, step)
    error = (eps.float() - exact.eps(x, step)).square().mean().sqrt()
    assert 0 < error < 2e-2
    assert torch.equal(low.eps(x[1:2], step), eps[1:2])


@needs_pairs
@pytest.mark.parametrize("changes", [{}, {"attention_resolutions": [2]}, {"resblock_updown": True}])
@torch.no_grad()
def test_networks(changes):
    """With attention, and either way of resampling."""
    unet = random_unet({**SMALL, **changes}, 0).to(memory_format=torch.channels_last)
    prior = UNetPrior(unet)
    low = prior.to(None, "bfloat16")
    assert isinstance(low.engine.ops, NativeOps)
    x, step = normal(2, 3, 32, 48), prior.conditioning(torch.tensor([431]))[0]
    exact = prior.eps(x, step)
    assert (low.eps(x, step).float() - exact).abs().max() < 5e-2 * exact.abs().max()


@needs_pairs
def test_weights_beyond_the_range():
    unet = random_unet(SMALL, 0)
    with torch.no_grad():
        unet.input_conv.weight[0, 0] = 0
        unet.input_conv.weight[0, 0, 0, 0] = 3.4e38
    with pytest.raises(ValueError, match="cannot hold the weights of input_blocks.0.0.weight"):
        UNetPrior(unet).to(None, "bfloat16")


@needs_pairs
def test_weights_beyond_the_range_once_laid_out():
    """In the Winograd domain values are sums of nine, up to 1.5 times the largest."""
    weight = torch.zeros(32, 32, 3, 3)
    signs = torch.tensor([1.0, -1, 1])
    weight[3, 5] = 3e38 * signs * signs[:, None]
    conv = Conv("middle_block.1", weight.to(LOW), torch.zeros(32))
    with pytest.raises(ValueError, match="dtype: .*bfloat16.*weights of middle_block.1.*float32"):
        NativeOps().first(normal(1, 32, 8, 8).to(LOW), conv)


@needs_pairs
def test_other_cpus(monkeypatch):
    """Without the instruction PyTorch's own path runs, here by oneDNN."""
    library = build.library()
    monkeypatch.setattr(library, "pairs", False)
    assert NativeOps.available() and not NativeOps.available(LOW)
    assert not isinstance(load_prior("embedded", dtype="bfloat16").engine.ops, NativeOps)


@pytest.mark.parametrize("target", emulated.PARAMS)
def test_instructions_of_arm(foreign, target):
    """If the compiler may use it, one of them multiplies pairs; the tests above compare it."""
    assert build.Library(foreign(target)).pairs == (target == emulated.BFDOT)
