"""The engine against the plain network: PyTorch's operations here, the kernels interpreted."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import shared
from networks import SMALL, channels_last, option_grid, option_id, random_unet
from safetensors.torch import load_file

from ddfm_fast.priors.engine import Engine
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.ops import base, plain
from ddfm_fast.priors.ops.fused import FusedOps
from ddfm_fast.priors.ops.native import NativeOps
from ddfm_fast.priors.ops.onednn import OneDnnOps
from ddfm_fast.priors.ops.onepass import OnePassOps
from ddfm_fast.priors.ops.plain import PlainOps
from ddfm_fast.priors.unet import UNet
from ddfm_fast.priors.unet_config import UNetConfig

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TINY = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
"""a rounding or two of the output, relative to its largest value"""


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/priors/test_engine.py", "-k", "TestWithKernels")
def test_with_kernels_in_the_interpreter(assert_interpreted):
    assert_interpreted()


def example(config, seed=0):
    unet = channels_last(random_unet(config, seed))
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(seed))
    return unet, x, unet.conditioning(torch.tensor([431]))[0]


@torch.no_grad()
def assert_as_good(engine_of, unet, x, dtype, out_channels=None):
    """Check for at most twice the plain network's error, both against the network in float64."""
    exact_unet = random_unet_copy(unet).double()
    exact = exact_unet.run(x.double(), unet.conditioning(torch.tensor([431]))[0], out_channels)
    low = channels_last(random_unet_copy(unet).to(dtype))
    step = low.conditioning(torch.tensor([431]))[0]
    plain = low.run(x.to(dtype), step, out_channels)
    got = engine_of(low)(x.to(dtype), step, out_channels)
    assert got.shape == exact.shape and got.dtype == dtype
    allowed = 2 * (plain - exact).abs().max() + TINY[dtype] * exact.abs().max()
    assert (got - exact).abs().max() <= allowed


def random_unet_copy(unet: UNet) -> UNet:
    copy = UNet(unet.config).requires_grad_(False)
    copy.load_state_dict(unet.state_dict())
    return copy


@pytest.mark.parametrize("kind", [PlainOps, OneDnnOps, NativeOps])
@pytest.mark.parametrize("config", option_grid(), ids=option_id)
def test_same_function_as_the_plain_network(config, kind, monkeypatch):
    if kind is not PlainOps and not kind.available():
        pytest.skip(f"{kind.__name__} cannot be used here")
    monkeypatch.setattr(OneDnnOps, "SMALL", 0)
    unet, x, step = example(config)
    with torch.no_grad():
        plain, engine = unet.run(x, step), Engine(unet, kind())
        torch.testing.assert_close(engine(x, step), plain, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(engine(x, step, 3), plain[:, :3], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", [OneDnnOps, NativeOps])
def test_in_threads_of_different_sizes(kind, monkeypatch):
    if not kind.available():
        pytest.skip(f"{kind.__name__} cannot be used here")
    monkeypatch.setattr(OneDnnOps, "SMALL", 0)
    unet, _, step = example(SMALL)
    fast = Engine(unet, kind())

    def run(side):
        with torch.no_grad():
            x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))
            return max(float((fast(x, step) - unet.run(x, step)).abs().max()) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(run, [8, 16, 24, 32])) < 2e-4


@pytest.mark.parametrize("n, channels, height, width", [(1, 32, 640, 512), (3, 96, 96, 131)])
def test_group_norm_of_large_maps_is_exact(n, channels, height, width, monkeypatch):
    """PyTorch's channels_last group norm misses these bounds on a CPU; its own layout does not."""
    monkeypatch.setattr(plain, "IN_CACHE", 2**16 + 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, height, width, generator=generator) + 2
    x = x.to(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels, generator=generator)
    exact = F.group_norm(x.double(), 32, weight.double(), bias.double(), 1e-5)
    assert height * width > plain.NAIVE_SUMS
    norm = base.Norm("", weight, bias)
    got = PlainOps.norm(x, norm)
    assert got.is_contiguous(memory_format=torch.channels_last)
    bound = 3e-6 * exact.abs().max()
    assert (got - exact).abs().max() < bound
    contiguous = F.group_norm(x.contiguous(), 32, weight, bias, 1e-5)
    assert (contiguous - exact).abs().max() < bound


@pytest.mark.skipif(not OneDnnOps.available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("small", [0, 1500, OneDnnOps.SMALL])
@torch.no_grad()
def test_onednn_at_changing_sizes(small, monkeypatch):
    """Layouts are for one size each; small inputs, here some of the layers, do without."""
    monkeypatch.setattr(OneDnnOps, "SMALL", small)
    unet, _, step = example({**SMALL, "resblock_updown": False})
    fast = Engine(unet, OneDnnOps())
    for shape in [(1, 16, 24), (3, 16, 24), (1, 64, 40), (1, 16, 24), (2, 40, 64)]:
        n, height, width = shape
        x = torch.randn(n, 3, height, width)
        torch.testing.assert_close(fast(x, step), unet.run(x, step), rtol=1e-4, atol=2e-5)
    kept = [len(sizes) for sizes in fast.ops._packed.values()]
    assert kept and max(kept) <= OneDnnOps.SIZES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("updown", [False, True])
def test_precision_is_that_of_the_plain_network(dtype, updown):
    config = {**SMALL, "attention_resolutions": [2], "resblock_updown": updown}
    unet, x, _ = example({**config, "use_scale_shift_norm": updown})
    assert_as_good(Engine, unet, x, dtype)


@pytest.fixture(scope="module")
def golden():
    found = np.load(shared("golden/adm_small_io.npz"))
    weights = load_file(shared("golden/adm_small.safetensors"))
    unet = UNet(UNetConfig.from_dict(json.loads(str(found["config_json"])))).requires_grad_(False)
    unet.load_state_dict({k: v.float() for k, v in weights.items()})
    return unet, found


@pytest.mark.parametrize("case", ["b1", "b2_rect"])
def test_official_outputs(golden, case):
    unet, found = golden
    prior = load_prior(unet)
    x, t, out = (torch.from_numpy(found[f"{case}/{k}"]) for k in ("x", "t", "out"))
    for n, step in enumerate(prior.conditioning(t)):
        got = prior.eps(x[n : n + 1], step, variance=True)[0]
        assert (got - out[n]).abs().max() < 1e-4
        assert (prior.eps(x[n : n + 1], step)[0] - out[n, :3]).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["b1", "b2_rect"])
def test_official_outputs_in_low_precision(golden, case, dtype):
    """err(ours against float32) <= 2 err(plain low precision against float32) + a rounding."""
    unet, found = golden
    prior = load_prior(unet, dtype=dtype)
    x, t, out = (torch.from_numpy(found[f"{case}/{k}"]) for k in ("x", "t", "out"))
    plain_unet = random_unet_copy(unet).to(dtype)
    for n, step in enumerate(prior.conditioning(t)):
        with torch.no_grad():
            plain = plain_unet(x[n : n + 1].to(dtype), t[n : n + 1])[0]
        got = prior.eps(x[n : n + 1], step, variance=True)[0]
        tiny = TINY[dtype] * out[n].abs().max()
        assert (got - out[n]).abs().max() <= 2 * (plain - out[n]).abs().max() + tiny
        rms = ((a - out[n]).square().mean().sqrt() for a in (got.float(), plain.float()))
        ours, theirs = rms
        assert 0 < ours <= 2 * theirs


def test_load_reorders_attention_and_keeps_state_dict_and_fingerprint(golden):
    unet, _ = golden
    prior = load_prior(unet)
    block = prior.unet.middle_block["1"]
    assert block.new_order and not unet.middle_block["1"].new_order
    assert not torch.equal(block.qkv.weight, unet.middle_block["1"].qkv.weight)
    for key, value in prior.unet.state_dict().items():
        assert torch.equal(value, unet.state_dict()[key]), key
    again = prior.to("cpu", torch.bfloat16).to("cpu", torch.float32)
    assert again.unet.middle_block["1"].new_order
    assert load_prior(unet).fingerprint == prior.fingerprint


def test_large_weights_are_not_copied():
    prior = load_prior("embedded")
    addresses = {p.data_ptr() for p in prior.unet.parameters()}
    engine = prior.engine
    layers = [layer for stage in [*engine.down, engine.middle, *engine.up] for layer in stage]
    for layer in layers:
        for conv in (getattr(layer, name, None) for name in ("conv", "out", "skip")):
            assert conv is None or conv.weight.data_ptr() in addresses


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("limit", [1, 8 * 11 * 5, 10**9])
def test_convolution_in_strips(monkeypatch, size, limit):
    """Strips of one row, of three, and a single one; the border rows are padded with zeros."""
    monkeypatch.setattr(base, "CONV_ELEMENTS", limit)
    x = torch.randn(2, 5, 9, 11).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(8, 5, size, size), torch.randn(8)
    wanted = F.conv2d(x, weight, bias, padding=size // 2)
    got = base.convolve_in_strips(x, weight, bias)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_batch_gives_each_image_what_it_gets_alone():
    unet, x, step = example({**SMALL, "attention_resolutions": [2]})
    engine = Engine(unet)
    with torch.no_grad():
        together = engine(x, step)
        for n in range(2):
            torch.testing.assert_close(engine(x[n : n + 1], step)[0], together[n])
        assert torch.equal(engine(x, step), together), "the same call, the same bytes"


KERNEL_CONFIGS = [
    {**SMALL, "attention_resolutions": [2], "use_scale_shift_norm": True, "resblock_updown": True},
    {**SMALL, "model_channels": 64, "channel_mult": (0.5, 1), "num_heads": 2},
    {**SMALL, "resblock_updown": True, "middle_attention": False, "pixel_unshuffle": 2},
]


class TestWithKernels:
    __test__ = INTERPRETED

    def test_residual_blocks_that_resample_in_float32(self):
        unet, x, step = example(KERNEL_CONFIGS[0])
        before = x.clone()
        assert_as_good(lambda u: Engine(u, FusedOps()), unet, x[:1], torch.float32)
        assert torch.equal(x, before)

    def test_other_layers_in_bfloat16(self):
        unet, x, _ = example(KERNEL_CONFIGS[1])
        assert_as_good(lambda u: Engine(u, FusedOps()), unet, x[:1], torch.bfloat16, 3)

    def test_folded_upsampling_in_float16(self):
        unet, x, _ = example(KERNEL_CONFIGS[2])
        assert_as_good(
            lambda u: Engine(u.fold_upsampling(), FusedOps()), unet, x[:1], torch.float16
        )

    @pytest.mark.parametrize(
        "config, dtype",
        [
            (0, torch.float32),
            (0, torch.float16),
            pytest.param(1, torch.bfloat16, marks=pytest.mark.thorough),
            pytest.param(2, torch.float32, marks=pytest.mark.thorough),
        ],
    )
    def test_a_layer_in_one_launch(self, config, dtype):
        unet, x, _ = example({**KERNEL_CONFIGS[config], "out_channels": 3})
        assert_as_good(lambda u: Engine(u, OnePassOps()), unet, x[:1, :, :8, :16], dtype)

    def test_own_convolutions_of_wide_networks(self):
        unet, x, _ = example(KERNEL_CONFIGS[0])
        x = x[:1, :, :8, :8]
        assert_as_good(lambda u: Engine(u, FusedOps(own=512)), unet, x, torch.float32)

    def test_pooling_and_repeating_without_convolutions(self):
        unet, x, step = example({**SMALL, "conv_resample": False, "middle_attention": False})
        with torch.no_grad():
            x = x[:1, :, :8, :8]
            got = Engine(unet, OnePassOps())(x, step)
            torch.testing.assert_close(got, unet.run(x, step), rtol=1e-4, atol=2e-5)
