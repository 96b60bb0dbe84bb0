"""``fuse`` and ``Fuser``: presets, color, containers, batches, sizes, errors."""

import numpy as np
import oracles
import pytest
import torch
from analytic import tanh_prior
from hypothesis import given, settings
from hypothesis import strategies as st

import ddfm_fast
from ddfm_fast import FuseConfig, Fuser, fuse
from ddfm_fast.config import VARIANT_NAMES
from ddfm_fast.schedule import make_schedule

FAST = {"prior": tanh_prior, "steps": 3, "device": "cpu"}


def picture(*shape, seed=0, dtype=np.uint8):
    """Make a random image whose structure survives fusion: blobs, not white noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(size=(5, 5, *shape[2:]))
    image = np.kron(coarse, np.ones((-(-shape[0] // 5), -(-shape[1] // 5), *[1] * len(shape[2:]))))
    image = image[: shape[0], : shape[1]] * 0.9 + 0.1 * rng.uniform(size=shape)
    if np.issubdtype(dtype, np.integer):
        return np.round(image * np.iinfo(dtype).max).astype(dtype)
    return image.astype(dtype)


def luma_of(rgb):
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


IR, VIS = picture(40, 33), picture(40, 33, 3, seed=1)


def test_official_preset_is_the_authors_loop_with_chroma_kept():
    fused = fuse(IR / 255, VIS / 255, **FAST)
    i, v = IR / 255 * 2 - 1, luma_of(VIS / 255) * 2 - 1
    schedule = make_schedule(3)
    x_T = torch.randn(1, 3, 40, 33, generator=torch.Generator().manual_seed(3407))[0].numpy()
    x = oracles.ddim_loop(
        lambda x, t: np.tanh(x * (0.3 + t / 1500)), x_T.astype(np.float64), i, v,
        (schedule.timesteps, schedule.alphas_cumprod), variant="official", psi=0.5, eta=0.001,
    )  # fmt: skip
    y = luma_of(x.transpose(1, 2, 0))
    y = (y - y.min()) / (y.max() - y.min())
    np.testing.assert_allclose(luma_of(fused), y, atol=2e-5)
    chroma = VIS / 255 - luma_of(VIS / 255)[..., None]
    room = ((y[..., None] + chroma >= 0) & (y[..., None] + chroma <= 1)).all(-1)
    assert room.mean() > 0.3
    np.testing.assert_allclose(fused[room], (y[..., None] + chroma)[room], atol=5e-5)


def test_official_script_preset_is_their_script_to_the_pixel():
    """Visible as i, infrared as v, crop to 32, rounded luma, gray result, stretched."""
    ir, vis = picture(70, 45), picture(70, 45, 3, seed=1)
    fused = fuse(ir, vis, preset="official-script", prior=tanh_prior, steps=4)
    gray = np.round(luma_of(vis))[:64, :32] / 255 * 2 - 1
    thermal = ir[:64, :32] / 255 * 2 - 1
    torch.manual_seed(3407)
    x_T = torch.randn(1, 3, 64, 32)[0].numpy().astype(np.float64)
    schedule = make_schedule(4)
    x = oracles.ddim_loop(
        lambda x, t: np.tanh(x * (0.3 + t / 1500)), x_T, gray, thermal,
        (schedule.timesteps, schedule.alphas_cumprod), variant="official", psi=0.5, eta=0.001,
    )  # fmt: skip
    y = luma_of(x.transpose(1, 2, 0))
    wanted = np.floor((y - y.min()) / (y.max() - y.min()) * 255 + 0.5)
    assert fused.shape == (64, 32, 1)
    assert fused.dtype == np.uint8
    off = abs(fused[..., 0] - wanted)
    assert off.max() <= 1  # float32 against float64 where a value sits on a rounding edge
    assert (off > 0).mean() < 0.01


def test_official_script_needs_room_to_crop():
    with pytest.raises(ValueError, match="at least 32x32"):
        fuse(picture(20, 40), picture(20, 40, seed=1), preset="official-script", prior=tanh_prior)


def test_paper_preset_is_algorithm_1():
    config = ddfm_fast.PRESETS["paper"]
    assert (config.variant, config.sampler, config.psi, config.eta) == ("paper", "ddpm", 0.5, 0.1)
    assert fuse(IR, VIS, preset="paper", prior=tanh_prior, steps=3).shape == VIS.shape


def test_roles_differ_so_the_order_matters():
    a, b = picture(32, 32), picture(32, 32, seed=1)
    assert not np.array_equal(fuse(a, b, **FAST), fuse(b, a, **FAST))
    swapped = FuseConfig(swap_sources=True)
    assert np.array_equal(fuse(a, b, preset=swapped, **FAST), fuse(b, a, **FAST))


@settings(max_examples=12, deadline=None)
@given(height=st.integers(16, 50), width=st.integers(16, 50), multiple=st.sampled_from([1, 8, 32]))
def test_any_size_from_16_comes_back(height, width, multiple):
    def prior(x, t):
        assert x.shape[2] % multiple == 0
        assert x.shape[3] % multiple == 0
        return tanh_prior(x, t)

    prior.multiple = multiple
    fused = fuse(picture(height, width), picture(height, width, 3), prior=prior, steps=2)
    assert fused.shape == (height, width, 3)
    assert fused.dtype == np.uint8


def test_padding_reflects_before_the_loop_and_is_cut_after_it():
    def padded_prior(x, t):
        return tanh_prior(x, t)

    padded_prior.multiple = 16
    ir, vis = picture(20, 30), picture(20, 30, seed=1)
    padded = [np.pad(p, ((0, 12), (0, 2)), mode="reflect") for p in (ir, vis)]
    whole = fuse(*padded, prior=tanh_prior, steps=3, stretch="none")
    cut = fuse(ir, vis, prior=padded_prior, steps=3, stretch="none")
    assert np.array_equal(cut, whole[:20, :30])


def test_lists_of_mixed_sizes_equal_single_calls():
    sizes = [(32, 40), (20, 20), (32, 40), (17, 50)]
    irs = [picture(*s, seed=n) for n, s in enumerate(sizes)]
    viss = [picture(*s, 3, seed=n + 9) for n, s in enumerate(sizes)]
    fuser = Fuser(**FAST, batch_size=4)
    for got, ir, vis in zip(fuser(irs, viss), irs, viss, strict=True):
        assert np.array_equal(got, fuser(ir, vis))
    assert fuser([], []) == []


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_equal_single_calls(batch_size):
    irs = np.stack([picture(24, 24, seed=n) for n in range(5)])
    viss = np.stack([picture(24, 24, 3, seed=n + 9) for n in range(5)])
    fuser = Fuser(**FAST, batch_size=batch_size)
    together = fuser(irs, viss)
    assert together.shape == viss.shape
    for n in range(5):
        assert np.array_equal(together[n], fuser(irs[n], viss[n]))


def test_result_has_the_container_dtype_and_layout_of_the_visible_image():
    vis = torch.from_numpy(VIS).permute(2, 0, 1).to(torch.float16) / 255
    fused = fuse(torch.from_numpy(IR), vis, **FAST)
    assert isinstance(fused, torch.Tensor)
    assert (fused.dtype, fused.shape) == (torch.float16, vis.shape)
    deep = fuse(IR, VIS.astype(np.uint16) * 257, **FAST)
    assert deep.dtype == np.uint16
    assert deep.max() == 65535


def test_results_can_be_used_by_autograd():
    fused = fuse(torch.rand(20, 20), torch.rand(20, 20), **FAST)
    weight = torch.ones(20, 20, requires_grad=True)
    (fused * weight).sum().backward()
    assert torch.equal(weight.grad, fused)


@pytest.mark.parametrize(
    ("ir_colored", "vis_colored", "color", "chroma_of"),
    [
        (False, True, True, "vis"),
        (True, False, True, "ir"),
        (True, True, True, "vis"),
        (True, True, "ir", "ir"),
        (True, True, "vis", "vis"),
        (True, True, False, None),
        (False, False, True, None),
        (True, False, "vis", None),
    ],
)
def test_chroma_comes_from_the_color_source(ir_colored, vis_colored, color, chroma_of):
    gray = [np.repeat(picture(24, 24, 1, seed=s, dtype=np.float64), 3, 2) for s in (0, 1)]
    tint = [np.array([0.08, 0.0, -0.04]), np.array([-0.05, 0.02, 0.07])]
    sources = {
        "ir": np.clip(gray[0] * 0.6 + 0.2 + ir_colored * tint[0], 0, 1),
        "vis": np.clip(gray[1] * 0.6 + 0.2 + vis_colored * tint[1], 0, 1),
    }
    fused = fuse(sources["ir"], sources["vis"], color=color, **FAST)
    assert fused.shape == (24, 24, 1 if color is False else 3)
    if color is False:
        return
    chroma = fused - luma_of(fused)[..., None]
    middle = (luma_of(fused) > 0.2) & (luma_of(fused) < 0.8)
    wanted = 0 * chroma
    if chroma_of:
        wanted = sources[chroma_of] - luma_of(sources[chroma_of])[..., None]
    np.testing.assert_allclose(chroma[middle], wanted[middle], atol=1e-5)


def test_gray_image_in_a_colored_batch_is_what_it_is_alone():
    colored = picture(20, 20, 3, seed=4)
    gray = np.repeat(picture(20, 20, 1, seed=5), 3, axis=2)
    irs = np.stack([picture(20, 20, 3, seed=6)] * 2)
    batch = fuse(irs, np.stack([colored, gray]), **FAST)
    assert np.array_equal(batch[1], fuse(irs[1], gray, **FAST))


def test_color_follows_the_only_colored_layout():
    fused = fuse(picture(20, 20, 3), picture(20, 20, seed=1), **FAST)
    assert fused.shape == (20, 20, 3)
    assert fuse(picture(20, 20), picture(20, 20, seed=1), **FAST).shape == (20, 20)


def test_stretch_fills_the_range_and_none_does_not():
    stretched = fuse(IR, VIS, color=False, **FAST)
    assert (stretched.min(), stretched.max()) == (0, 255)
    low, high = picture(32, 32) // 4 + 90, picture(32, 32, seed=1) // 4 + 90
    kept = fuse(low, high, stretch="none", prior=tanh_prior, steps=40)
    assert abs(float(kept.mean()) - float(np.mean([low.mean(), high.mean()]))) < 25
    assert kept.max() - kept.min() < 200


def test_overrides_change_the_preset():
    fuser = Fuser(**FAST, variant="paper", sampler="ddpm", psi=0.1, eta=0.2, stretch="none")
    wanted = FuseConfig(variant="paper", sampler="ddpm", steps=3, psi=0.1, eta=0.2, stretch="none")
    assert fuser.config == wanted
    assert Fuser(prior=tanh_prior, preset=wanted).config == wanted


def test_seed_of_the_call_beats_that_of_the_fuser():
    fuser = Fuser(**FAST, seed=1)
    assert np.array_equal(fuser(IR, VIS), fuser(IR, VIS, seed=1))
    assert not np.array_equal(fuser(IR, VIS), fuser(IR, VIS, seed=2))


def test_value_range_and_layout_reach_the_images():
    twelve_bit = picture(20, 24, dtype=np.uint16) // 16
    fused = fuse(twelve_bit, twelve_bit[:, ::-1].copy(), value_range=(0, 4095), **FAST)
    assert fused.max() == 4095
    nhw = np.stack([IR, IR[::-1], IR])
    assert fuse(nhw, nhw, layout="NHW", **FAST).shape == nhw.shape


def test_warmup_times_each_shape():
    seconds = Fuser(**FAST).warmup([(20, 30), (64, 64)])
    assert set(seconds) == {(20, 30), (64, 64)}
    assert all(s > 0 for s in seconds.values())
    with pytest.raises(ValueError, match="at least one image of 16x16"):
        Fuser(**FAST).warmup([(8, 64)])
    with pytest.raises(ValueError, match="height, width"):
        Fuser(**FAST).warmup([64])


def test_progress_goes_to_stderr(capfd):
    fuse(IR, VIS, progress=True, **FAST)
    captured = capfd.readouterr()
    assert "fusing" in captured.err
    assert captured.out == ""


NAN = np.full((20, 20), np.nan, dtype=np.float32)
OK = picture(20, 20)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "match"),
    [
        ((OK, picture(20, 21)), {}, ValueError, r"ir is 20x20 and vis is 20x21 \(height x width\)"),
        ((OK, np.stack([OK, OK])), {}, ValueError, "2 images"),
        ((np.zeros((0, 0), np.uint8), OK), {}, ValueError, "ir"),
        ((OK, picture(20, 12)), {}, ValueError, "vis"),
        ((NAN, OK), {}, ValueError, "ir"),
        ((OK, NAN), {}, ValueError, "vis"),
        ((OK - 300.0, OK), {"value_range": (0, 1)}, ValueError, "ir"),
        ((OK.astype(bool), OK), {}, TypeError, "ir"),
        (("a.png", OK), {}, TypeError, "ir"),
        ((None, OK), {}, TypeError, "ir"),
        (([OK], OK), {}, TypeError, "two lists"),
        (([OK], [OK, OK]), {}, ValueError, "equally many"),
        (([OK, NAN], [OK, OK]), {}, ValueError, r"ir\[1\]"),
        (
            (OK, OK),
            {"preset": "oficial"},
            ValueError,
            "official, official-script, balanced, fast, robust, instant, paper",
        ),
        ((OK, OK), {"variant": "best"}, ValueError, "official, paper, printed, gradient"),
        ((OK, OK), {"sampler": "euler"}, ValueError, "ddim, ddpm"),
        ((OK, OK), {"steps": 0}, ValueError, "steps"),
        ((OK, OK), {"steps": 1001}, ValueError, "at most 1000"),
        ((OK, OK), {"steps": 2.5}, TypeError, "steps"),
        ((OK, OK), {"psi": -1}, ValueError, "psi"),
        ((OK, OK), {"psi": "x"}, TypeError, "psi"),
        ((OK, OK), {"eta": float("nan")}, ValueError, "eta"),
        ((OK, OK), {"psi": 0, "eta": 0}, ValueError, "both 0"),
        ((OK, OK), {"stretch": "max"}, ValueError, "none, minmax, percentile"),
        ((OK, OK), {"seed": -1}, ValueError, "seed"),
        ((OK, OK), {"seed": "x"}, TypeError, "seed"),
        ((OK, OK), {"color": "rgb"}, ValueError, "color"),
        ((OK, OK), {"device": "gpu"}, ValueError, "device"),
        ((OK, OK), {"value_range": (1, 0)}, ValueError, "value_range"),
        ((OK, OK), {"layout": "WH"}, ValueError, "layout"),
        ((OK, OK), {"prior": "no-such-prior"}, ValueError, "prior"),
        ((OK, OK), {"prior": 3}, TypeError, "prior"),
    ],
)
def test_bad_input_is_refused_by_name(args, kwargs, error, match):
    with pytest.raises(error, match=match):
        fuse(*args, **{**FAST, **kwargs})


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_bad_batch_size_is_refused(batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        Fuser(**FAST, batch_size=batch_size)


def test_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="'etta' is not a setting"):
        FuseConfig().with_overrides(etta=1)


def test_cuda_without_a_device_says_so():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match="no CUDA device"):
        fuse(OK, OK, **{**FAST, "device": "cuda"})


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_cuda_equals_cpu(variant):
    settings = {"prior": tanh_prior, "steps": 10, "variant": variant, "stretch": "none"}
    wanted = fuse(IR / 255, VIS / 255, **settings, device="cpu")
    np.testing.assert_allclose(
        fuse(IR / 255, VIS / 255, **settings, device="cuda"), wanted, rtol=0, atol=2e-3
    )
