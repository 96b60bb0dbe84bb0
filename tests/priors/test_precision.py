"""The precisions of the prior, their defaults, and what must hold inside a CUDA graph."""

from __future__ import annotations

import threading

import pytest
import torch
from networks import SMALL, channels_last, random_unet

from ddfm_fast import DDFMWarning, FuseConfig, Fuser
from ddfm_fast.priors import precision
from ddfm_fast.priors.engine import Engine
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.ops import native, plain
from ddfm_fast.priors.ops.choice import ops_for
from ddfm_fast.priors.ops.native import NativeOps
from ddfm_fast.priors.ops.onednn import OneDnnOps
from ddfm_fast.priors.ops.onepass import OnePassOps
from ddfm_fast.priors.ops.plain import PlainOps
from ddfm_fast.priors.unet_config import UNetConfig
from ddfm_fast.runtime.memory import image_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
X = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def ramp():
    return torch.linspace(0, 1, 32 * 48).view(32, 48).numpy()


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_names(name):
    prior = load_prior("embedded", dtype=name)
    assert prior.precision == name and prior.dtype == precision.PRECISIONS[name]
    assert prior.to("cpu").precision == name
    assert prior.to(None, "float32").precision == "float32"
    assert load_prior(prior, dtype="bfloat16").precision == "bfloat16"


@pytest.mark.parametrize("dtype", ["float8", torch.float64, 3])
def test_unknown_precision(dtype):
    with pytest.raises(ValueError, match="is not one of float32, tf32, bfloat16, float16, auto"):
        load_prior("embedded", dtype=dtype)


def test_tf32_is_float32_on_a_cpu():
    exact, tf32 = load_prior("embedded"), load_prior("embedded", dtype="tf32")
    step = exact.conditioning(torch.tensor([500]))[0]
    assert torch.equal(exact.eps(X, step), tf32.eps(X, step))


def settings():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.fixture
def general():
    """Yield ``torch.backends``, whose setting the test may change."""
    yield torch.backends
    torch.backends.fp32_precision = "none"


def in_effect():
    return tuple(setting == "tf32" for setting in settings())


@pytest.mark.parametrize("tf32", [False, True])
def test_settings_of_cuda_are_put_back(tf32):
    before = settings()
    with precision.float32_products(tf32):
        assert in_effect() == (tf32, tf32)
    assert settings() == before
    with pytest.raises(KeyError), precision.float32_products(tf32):
        raise KeyError
    assert settings() == before


def test_a_setting_that_inherits_does_so_afterwards(general):
    general.fp32_precision = "tf32"
    with precision.float32_products(False):
        assert in_effect() == (False, False)
    assert settings()[0] == "tf32"
    general.fp32_precision = "ieee"
    assert settings()[0] == "ieee"


def test_a_setting_of_its_own_keeps_it(general):
    matmul = torch.backends.cuda.matmul
    general.fp32_precision = matmul.fp32_precision = "tf32"
    try:
        with precision.float32_products(False):
            assert not in_effect()[0]
        general.fp32_precision = "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = "none"


def test_what_the_program_sets_meanwhile_stays():
    matmul = torch.backends.cuda.matmul
    try:
        with precision.float32_products(True):
            matmul.fp32_precision = "ieee"
        assert matmul.fp32_precision == "ieee"
    finally:
        matmul.fp32_precision = "none"


def test_threads_that_overlap_take_turns():
    before, seen = settings(), {}
    inside, leave, left = (threading.Event() for _ in range(3))

    def first():
        with precision.float32_products(False):
            inside.set()
            leave.wait(30)
            seen["first"] = in_effect()
        left.set()

    def second():
        with precision.float32_products(True):
            left.wait(30)
            seen["second"] = in_effect()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    threads[1].join(0.2)  # without turns it would be through by now, and have changed the first's
    leave.set()
    for thread in threads:
        thread.join()
    assert seen == {"first": (False, False), "second": (True, True)} and settings() == before


def test_convolutions_can_be_told_one_by_one():
    before = settings()
    for tf32 in (False, True):
        with precision.float32_products(tf32, convolutions=False):
            assert precision.convolutions_in_tf32() is tf32
            assert settings()[1] == before[1]
    assert precision.convolutions_in_tf32() is None


@pytest.mark.parametrize("capability, name", [((6, 1), "float32"), ((9, 0), "float16")])
def test_default_of_a_device(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert precision.default_precision(CUDA) == name
    assert precision.default_precision(CPU) == "float32"


def test_a_cpu_takes_float32_even_where_it_multiplies_in_less(monkeypatch):
    """Lower precision changes pictures by more than a default may."""
    monkeypatch.setattr(precision, "cpu_has", lambda _dtype: True)
    for preset in ("official", "fast", "balanced"):
        assert Fuser(preset=preset, device="cpu").prior.precision == "float32"
    assert load_prior("embedded", dtype="auto").precision == "float32"


def test_auto_leaves_what_is_given_as_it_is(monkeypatch):
    monkeypatch.setattr("ddfm_fast.priors.precision.default_precision", lambda _device: "bfloat16")
    assert Fuser(steps=1, device="cpu").prior.precision == "bfloat16"
    own = load_prior("embedded")
    assert Fuser(prior=own, steps=1, device="cpu").prior is own
    assert Fuser(prior=lambda x, _t: x, steps=1, device="cpu").prior.precision == "float32"
    assert Fuser(steps=1, device="cpu", dtype="float32").prior.precision == "float32"


def test_presets_that_repeat_the_script_stay_in_float32(monkeypatch):
    monkeypatch.setattr("ddfm_fast.priors.precision.default_precision", lambda _device: "float16")
    assert Fuser(preset="official-script", steps=1, device="cpu").prior.precision == "float32"
    assert Fuser(preset="official", steps=1, device="cpu").prior.precision == "float16"


def test_a_cpu_without_the_arithmetic_is_told(monkeypatch):
    """Emulated it is slower, hence the warning; oneDNN's operators refuse, so PyTorch's run."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.warns(UserWarning, match="this CPU has no bfloat16 arithmetic"):
        prior = load_prior("embedded", dtype="bfloat16")
    assert type(prior.engine.ops) is PlainOps
    step = prior.conditioning(torch.tensor([500]))[0]
    assert prior.eps(X, step).isfinite().all()


def test_rectification_stays_float32(ramp):
    seen = []
    late = FuseConfig(variant="gradient", steps=3, start=20, spacing=1.5, psi=5.0, eta=10.0)
    settings = {"preset": late, "device": "cpu", "stretch": "none"}
    fuser = Fuser(dtype="bfloat16", **settings)
    fused = fuser(ramp, ramp[::-1].copy(), callback=lambda info: seen.append(info))
    assert fuser.prior.dtype == torch.bfloat16
    assert {info.x_t.dtype for info in seen} == {info.x0.dtype for info in seen} == {torch.float32}
    exact = Fuser(dtype="float32", **settings)(ramp, ramp[::-1].copy())
    assert 0 < abs(fused - exact).max() < 0.5 / 255


def test_engine_is_one_graph_for_the_compiler(monkeypatch):
    """No graph breaks: what torch.compile would split at, and what a CUDA graph could not hold."""
    unet = channels_last(random_unet({**SMALL, "attention_resolutions": [2]}))
    step = unet.conditioning(torch.tensor([300]))[0]
    engine = Engine(unet, PlainOps())
    compiled = torch.compile(engine.__call__, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        wanted = engine(X, step, 3)
        monkeypatch.setattr(plain, "NAIVE_SUMS", 0)  # maps as large as those that NumPy would norm
        torch.testing.assert_close(compiled(X, step, 3), wanted)


def test_compile_is_handed_on(monkeypatch):
    asked = []

    def compile(function, **options):
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    prior = load_prior("embedded", compile=True)
    assert asked == [{"mode": None, "dynamic": False}] and prior.compiled
    assert type(prior.engine.ops) is PlainOps
    half = prior.to(None, "bfloat16")
    assert half.compiled and len(asked) == 2
    step = prior.conditioning(torch.tensor([500]))[0]
    torch.testing.assert_close(prior.eps(X, step), load_prior("embedded").eps(X, step))
    with pytest.raises(ValueError, match="call torch.compile on it and pass the result"):
        load_prior(lambda x, _t: x, compile=True)


NARROW = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "out_channels": 3}


def test_operations_of_a_device(monkeypatch):
    assert type(ops_for(torch.device("meta"), 1)) is PlainOps
    assert isinstance(ops_for(CPU, 1), NativeOps) == NativeOps.available()
    low = isinstance(ops_for(CPU, 1, torch.bfloat16), NativeOps)
    assert low == NativeOps.available(torch.bfloat16)
    assert not isinstance(ops_for(CPU, 1, torch.float16), NativeOps), "it has no float16"
    monkeypatch.setattr(native, "free_host_bytes", lambda: 2**34)
    assert isinstance(ops_for(CPU, 2**29), NativeOps) == NativeOps.available()
    assert type(ops_for(CPU, 2**29 + 1)) is PlainOps, "half of the memory is not enough"
    monkeypatch.setattr(native, "free_host_bytes", lambda: None)
    assert isinstance(ops_for(CPU, 2**26), NativeOps) == NativeOps.available()
    assert type(ops_for(CPU, 2**26 + 1)) is PlainOps, "nobody knows whether there is memory"
    monkeypatch.setattr(NativeOps, "available", lambda _dtype: False)
    assert isinstance(ops_for(CPU, 1), OneDnnOps) == OneDnnOps.available()
    monkeypatch.setattr(OneDnnOps, "available", lambda _dtype: False)
    assert type(ops_for(CPU, 1)) is PlainOps


def meta_diffusers():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).requires_grad_(False)  # fmt: skip


@pytest.mark.parametrize("kind", ["embedded", "unet", "diffusers", "callable"])
def test_eps_reads_nothing_back_from_the_device(kind):
    """On the meta device any look at a tensor's value raises; a captured graph could not follow."""
    spec = {
        "embedded": lambda: "embedded",
        "unet": lambda: random_unet({**SMALL, "attention_resolutions": [2]}),
        "diffusers": meta_diffusers,
        "callable": lambda: lambda x, t: x * t.view(-1, 1, 1, 1),
    }[kind]()
    prior = load_prior(spec, device="meta")
    steps = prior.conditioning(torch.empty(5, device="meta"))
    item = steps.at(torch.zeros(1, dtype=torch.int32, device="meta"))
    eps = prior.eps(torch.empty(2, 3, 32, 32, device="meta"), item)
    assert eps.shape == (2, 3, 32, 32)


def test_memory_of_the_official_network_at_4k():
    """Weights and activations of one image in bfloat16 fit 80 GB with room; float32 fits too."""
    from ddfm_fast.priors.cost import OFFICIAL, engine_cost, parameter_count

    weights = parameter_count(OFFICIAL)
    assert weights == 552_814_086
    for dtype, most in ((torch.bfloat16, 32), (torch.float32, 64)):
        peak = engine_cost(OFFICIAL, 1, 2176, 3840, dtype).peak_bytes
        assert 2**30 < peak + weights * dtype.itemsize < most * 2**30
    assert image_bytes(load_prior("embedded"), 2160, 3840) < 8 * 2**30


def test_operations_are_those_of_the_official_network():
    """11.44 TFLOP at 512x640, counted independently; our kernels take no more launches."""
    from ddfm_fast.priors.cost import OFFICIAL, engine_cost

    ours, plain = (engine_cost(OFFICIAL, 1, 512, 640, fused=fused) for fused in (True, False))
    assert ours.flops == pytest.approx(11.44e12, rel=0.002)
    assert plain.flops == pytest.approx(ours.flops, rel=0.002)
    assert ours.bytes < 0.8 * plain.bytes and len(ours.launches) < 0.7 * len(plain.launches)
    assert sum(c.flops for c in ours.by("layer").values()) == ours.flops
    assert ours.seconds(1e30, 1e12) == pytest.approx(ours.bytes / 1e12)


@pytest.mark.parametrize("config, ours", [({}, True), ({"model_channels": 64}, True),
    ({"model_channels": 96}, False), ({"pixel_unshuffle": 4}, False)])  # fmt: skip
def test_narrow_networks_are_those_of_one_launch_a_layer(config, ours):
    found = UNetConfig.from_dict({**NARROW, **config})
    assert OnePassOps.suit(found, torch.float16) == ours
    assert not OnePassOps.suit(found, torch.float32), "no tensor cores without rounding"


def test_launches_and_bytes_of_a_forward_on_paper():
    """What bench/results/prior-paper-2026-11-28.md says, for 512x640."""
    from ddfm_fast.priors.cost import OFFICIAL, engine_cost

    embedded = engine_cost(load_prior("embedded").unet.config, 1, 512, 640, torch.float16)
    assert len(embedded.launches) == 59 and embedded.bytes < 294e6
    official = engine_cost(OFFICIAL, 1, 512, 640, torch.bfloat16)
    assert len(official.launches) == 288 and official.bytes < 23.2e9


@pytest.mark.parametrize("make", [Fuser, lambda **options: load_prior("embedded", **options)])
def test_a_precision_that_this_cpu_lacks_is_said_at_the_callers_line(monkeypatch, make):
    monkeypatch.setattr("ddfm_fast.priors.network.cpu_has", lambda dtype: False)
    with pytest.warns(DDFMWarning, match="dtype: this CPU has no float16 arithmetic") as found:
        make(device="cpu", dtype="float16")
    assert {warning.filename for warning in found} == {__file__}
