"""The prior's engine on a real GPU: kernels against PyTorch, captured graphs, memory."""

import pytest
import torch
import torch.nn.functional as F
from networks import SMALL, random_unet

pytest.importorskip("triton", reason="the kernels need Triton")

from ddfm_fast.priors.engine import Engine
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.ops import base
from ddfm_fast.priors.ops.fused import FusedOps
from ddfm_fast.priors.ops.onepass import OnePassOps
from ddfm_fast.priors.ops.plain import PlainOps
from ddfm_fast.priors.precision import float32_products
from ddfm_fast.runtime.memory import images_that_fit

pytestmark = pytest.mark.gpu

CONFIG = {
    **SMALL,
    "model_channels": 64,
    "channel_mult": (1, 2, 4),
    "attention_resolutions": [4],
    "num_head_channels": 64,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TINY = {torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def images(n, height, width):
    generator = torch.Generator().manual_seed(n * height + width)
    return torch.randn(n, 3, height, width, generator=generator).cuda()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 64, 64), (3, 52, 76), (1, 512, 640)])
def test_as_good_as_the_plain_network_in_the_same_dtype(size, dtype):
    """err(ours against float64) <= 2 err(plain low precision against float64) + a rounding."""
    unet = random_unet(CONFIG).cuda()
    prior = load_prior(unet, dtype=dtype)
    assert isinstance(prior.engine.ops, FusedOps)
    x, steps = images(*size), prior.conditioning(torch.tensor([431]))
    with torch.no_grad():
        exact = random_unet(CONFIG).cuda().double().run(x.double(), steps[0])
        plain = prior.unet.run(x.to(dtype), steps[0])
    got = prior.eps(x, steps[0], variance=True)
    allowed = 2 * (plain - exact).abs().max() + TINY[dtype] * exact.abs().max()
    assert got.dtype == dtype and (got - exact).abs().max() <= allowed


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("size", [(1, 64, 64), (3, 48, 80), (1, 512, 640)])
def test_narrow_networks_take_one_launch_a_layer(size, dtype):
    prior = load_prior("embedded", device="cuda", dtype=dtype)
    assert isinstance(prior.engine.ops, OnePassOps)
    x, steps = images(*size), prior.conditioning(torch.tensor([431]))
    with torch.no_grad():
        exact = load_prior("embedded", device="cuda", dtype="float32").unet.double()
        exact = exact.run(x.double(), steps[0])
        plain = prior.unet.run(x, steps[0])
    got = prior.eps(x, steps[0])
    allowed = 2 * (plain - exact).abs().max() + TINY[dtype] * exact.abs().max()
    assert (got - exact).abs().max() <= allowed
    alone = prior.eps(x[-1:].clone(), steps[0])
    assert torch.equal(alone[0], got[-1]), "no library chooses an algorithm by the batch"


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_against_pytorch(dtype):
    from ddfm_fast.kernels import group_norm as gn

    x = (images(2, 96, 132).repeat(1, 64, 1, 1)[:, :192] + 3).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, shift = torch.randn(2, 192, device="cuda")
    moments = gn.moments(x)
    got, _ = gn.normalize([(x, moments)], weight, shift)
    exact = F.silu(F.group_norm(x.double(), 32, weight.double(), shift.double(), 1e-5))
    plain = F.silu(F.group_norm(x, 32, weight.to(dtype), shift.to(dtype), 1e-5))
    allowed = 2 * (plain - exact).abs().max() + TINY[dtype] * exact.abs().max()
    assert (got - exact).abs().max() <= allowed
    assert torch.equal(moments, gn.moments(x)), "the same call, the same bytes"
    alone = x[1:].contiguous(memory_format=torch.channels_last)
    assert torch.equal(gn.moments(alone)[0], moments[1]), "a batch changes nothing"


@pytest.mark.parametrize("kind", ["unet", "embedded", "callable", "diffusers"])
def test_a_captured_forward_follows_the_step_on_the_device(kind):
    if kind == "diffusers":
        diffusers = pytest.importorskip("diffusers")
        spec = diffusers.UNet2DModel(
            sample_size=32, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ).requires_grad_(False)  # fmt: skip
    else:
        spec = {
            "unet": random_unet(CONFIG),
            "embedded": "embedded",
            "callable": lambda x, t: torch.tanh(x) * t.view(-1, 1, 1, 1) / 1000,
        }[kind]
    prior = load_prior(spec, device="cuda")
    x, steps = images(1, 64, 96), prior.conditioning(torch.tensor([900, 500, 3]))
    counter = torch.zeros(1, dtype=torch.int32, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        prior.eps(x, steps.at(counter))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = prior.eps(x, steps.at(counter))
    for s in (2, 0, 1):
        counter.fill_(s)
        graph.replay()
        torch.testing.assert_close(out, prior.eps(x, steps[s]), rtol=1e-4, atol=1e-4)


def test_tf32_rounds_and_float32_does_not():
    unet = random_unet(CONFIG).cuda()
    x = images(1, 64, 64)
    exact, tf32 = (load_prior(unet, dtype=p) for p in ("float32", "tf32"))
    step = exact.conditioning(torch.tensor([500]))[0]
    with torch.no_grad():
        wanted = random_unet(CONFIG).cuda().double().run(x.double(), step, 3)
    errors = [float((p.eps(x, step) - wanted).abs().max()) for p in (exact, tf32)]
    assert errors[0] < 1e-4 * float(wanted.abs().max()) < 100 * errors[1] and errors[0] < errors[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_convolutions_in_strips_are_the_same(monkeypatch, dtype):
    unet = random_unet(CONFIG).cuda()
    prior = load_prior(unet, dtype=dtype)
    x, steps = images(1, 128, 128), prior.conditioning(torch.tensor([500]))
    whole = prior.eps(x, steps[0])
    monkeypatch.setattr(base, "CONV_ELEMENTS", 64 * 128 * 20)
    torch.testing.assert_close(
        prior.eps(x, steps[0]), whole, rtol=0, atol=2 * TINY[dtype] * float(whole.abs().max())
    )


def test_offsets_beyond_two_to_the_31():
    """One image of 512 channels at 2176x2048: more than 2**31 elements, 4.6 GB each."""
    from ddfm_fast.kernels import group_norm as gn

    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")
    x = torch.zeros(
        1, 512, 2176, 2048, dtype=torch.float16, device="cuda"
    ).contiguous(memory_format=torch.channels_last)  # fmt: skip
    x[0, :, -1, -1] = 4096.0
    moments = gn.moments(x)
    assert bool((moments[0, -1, 0] > 0).all()), "the last row of all was seen"
    one, none = torch.ones(512, device="cuda"), torch.zeros(512, device="cuda")
    gn.normalize([(x, moments)], one, none, silu=False, out=x)
    # a lone value among r zeros is at r standard deviations / sqrt(r), the others just below 0
    assert bool((x[0, :, -1, -1] > 2000).all()) and bool((x[0, :, 0, 0] < 0).all())


def test_estimate_of_memory_is_near_the_truth():
    """It is right within a factor of 2: the allocator rounds up, and libraries take workspaces."""
    prior = load_prior(random_unet(CONFIG), device="cuda", dtype="float16")
    x, steps = images(1, 512, 640), prior.conditioning(torch.tensor([500]))
    prior.eps(x, steps[0])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    prior.eps(x, steps[0])
    peak = torch.cuda.max_memory_allocated() - before
    assert 0.8 < peak / prior.activation_bytes(1, 512, 640) < 2
    assert images_that_fit(prior, 512, 640, 8) >= 1


def test_engine_with_pytorch_alone_works_on_a_gpu_too():
    unet = random_unet(CONFIG).cuda()
    prior = load_prior(unet)
    x, steps = images(1, 64, 64), prior.conditioning(torch.tensor([500]))
    with torch.no_grad():
        plain = Engine(prior.unet, PlainOps())(x, steps[0], 3)
    # PyTorch alone rounds convolutions to TF32 by default
    torch.testing.assert_close(prior.eps(x, steps[0]), plain, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "channels, outs", [(3, 256), (256, 3), (12, 32), (32, 32), (64, 64), (128, 64), (512, 256)]
)
def test_layers(channels, outs, dtype):
    from ddfm_fast.kernels import conv
    from ddfm_fast.kernels import group_norm as gn

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 67, 101, generator=generator).cuda().to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outs, channels, 3, 3, generator=generator).cuda() / channels**0.5
    weight, bias = weight.to(dtype), torch.randn(outs, generator=generator).cuda()
    norm = torch.rand(2, channels, generator=generator).cuda().unbind() if outs <= 128 else None
    norm = None if channels % 32 else norm
    moments = None if norm is None else gn.moments(x)
    got, of_result = conv.layer([conv.Part(x, moments)], conv.pack(weight), norm=norm, bias=bias)

    def by_pytorch(kind):
        h = x.to(kind)
        if norm is not None:
            h = F.silu(F.group_norm(h, 32, *(a.to(kind) for a in norm), 1e-5))
        return F.conv2d(h, weight.to(kind), bias.to(kind), padding=1)

    exact, plain = by_pytorch(torch.float64), by_pytorch(dtype)
    allowed = 2 * (plain - exact).abs().max() + TINY[dtype] * exact.abs().max()
    assert (got - exact).abs().max() <= allowed
    if outs % 32 == 0:
        torch.testing.assert_close(of_result, gn.moments(got), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("own", [0, 512])
def test_layers_in_the_engine_and_in_a_graph(own):
    unet = load_prior(random_unet(CONFIG).cuda()).unet
    step = unet.conditioning(torch.tensor([431], device="cuda"))[0]
    engine, x = Engine(unet, FusedOps(own=own)), images(1, 64, 64)
    with torch.no_grad(), float32_products(False):
        plain = Engine(unet, PlainOps())(x, step, 3)
        torch.testing.assert_close(engine(x, step, 3), plain, rtol=1e-3, atol=1e-4)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = engine(x, step, 3)
        graph.replay()
        torch.testing.assert_close(captured, plain, rtol=1e-3, atol=1e-4)
