"""The authors' interface on our loop, against the authors' own tensors."""

import json

import numpy as np
import oracles
import pytest
import torch
from analytic import tanh_prior, tanh_prior_with_variance
from conftest import shared

from ddfm_fast import Fuser
from ddfm_fast.integrations.official import (
    EM_Initial,
    EM_onestep,
    create_model,
    create_sampler,
    rgb_to_ycbcr,
    ycbcr_to_rgb,
)
from ddfm_fast.priors.load import load_prior

AUTHORS = dict(
    sampler="ddim",
    steps=1000,
    noise_schedule="linear",
    model_mean_type="epsilon",
    model_var_type="learned_range",
    dynamic_threshold=False,
    clip_denoised=True,
    rescale_timesteps=False,
)


def load_case(case):
    golden = np.load(shared("golden/ddim_loop.npz"))
    tensors = {name: torch.tensor(golden[f"{case}/{name}"]) for name in ("I", "V", "x_T", "x_0")}
    weights = {name: float(golden[f"{case}/{name}"]) for name in ("lamb", "rho")}
    return tensors, weights, int(golden[f"{case}/steps"]), golden


@pytest.mark.parametrize("case", ["default", "strong_tv", "odd"])
def test_em_onestep_returns_the_authors_dictionary(case):
    golden = np.load(shared("golden/em_onestep.npz"))
    i, v = (torch.tensor(golden[f"{case}/{name}"]) for name in "IV")
    state = EM_Initial(i)
    for call in range(6):
        f = torch.tensor(golden[f"{case}/{call}/f_in"])
        fused, state = EM_onestep(
            f, i, v, state, lamb=float(golden[f"{case}/lamb"]), rho=float(golden[f"{case}/rho"])
        )
        got = {"f_out": fused} | {k: state[k] for k in ("C", "D", "F1", "F2", "H")}
        for name, tensor in got.items():
            wanted = golden[f"{case}/{call}/{name}"]
            assert tensor.shape == wanted.shape
            assert abs(tensor.numpy() - wanted).max() < 2e-5 * abs(wanted).max(), (call, name)
        for name in ("tau_a", "tau_b"):
            assert float(state[name]) == pytest.approx(
                float(golden[f"{case}/{call}/{name}"]), rel=2e-5
            )
    assert set(state) == set(EM_Initial(i))


def test_em_initial_holds_the_difference_spectra():
    state = EM_Initial(torch.zeros(1, 1, 9, 14))
    for got, wanted in zip((state["fft_k1"], state["fft_k2"]), oracles.otf(9, 14), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    np.testing.assert_allclose(state["fft_k1sq"], abs(oracles.otf(9, 14)[0]) ** 2, atol=1e-6)


def test_em_onestep_takes_the_mean_over_the_batch_as_the_authors_do():
    generator = torch.Generator().manual_seed(0)
    f, i, v = torch.rand(3, 2, 1, 16, 18, generator=generator) * 2 - 1
    _, both = EM_onestep(f, i, v, EM_Initial(i))
    each = [
        float(EM_onestep(f[n : n + 1], i[n : n + 1], v[n : n + 1], EM_Initial(i[:1]))[1]["tau_a"])
        for n in range(2)
    ]
    assert float(both["tau_a"]) == pytest.approx(sum(each) / 2, rel=1e-6)


@pytest.mark.parametrize("case", ["s10", "s25_strong_tv", "s100"])
@pytest.mark.parametrize("record", [True, False])
def test_p_sample_loop_matches_the_authors_loop(case, record, tmp_path):
    tensors, weights, steps, golden = load_case(case)
    sampler = create_sampler(**AUTHORS, timestep_respacing=steps)
    assert sampler.num_timesteps == steps
    result = sampler.p_sample_loop(
        tanh_prior_with_variance, tensors["x_T"], record, tensors["I"], tensors["V"],
        str(tmp_path), "pair", **weights,
    )  # fmt: skip
    np.testing.assert_allclose(result, tensors["x_0"], rtol=0, atol=1e-3)
    saved = sorted(tmp_path.rglob("*.png"))
    assert len(saved) == (steps if record else 0)
    if record:
        from PIL import Image

        assert saved[0].relative_to(tmp_path).as_posix() == "progress/pair/x_0000.png"
        x = tensors["x_0"][0].permute(1, 2, 0).double().numpy() @ [0.299, 0.587, 0.114]
        wanted = (x - x.min()) / (x.max() - x.min()) * 255
        assert abs(np.asarray(Image.open(saved[0])) - wanted).max() < 1.1


def test_p_sample_steps_match_the_authors_loop():
    tensors, weights, steps, golden = load_case("s10")
    sampler = create_sampler(**AUTHORS, timestep_respacing=[steps])
    x, state = tensors["x_T"], EM_Initial(tensors["I"])
    for index in reversed(range(steps)):
        out, state = sampler.p_sample(
            tanh_prior, x, torch.tensor([index]), state, tensors["I"], tensors["V"], **weights
        )
        x = out["sample"]
        np.testing.assert_allclose(x, golden[f"s10/x_after_step_{index:04d}"], rtol=0, atol=1e-3)
    torch.testing.assert_close(out["pred_xstart"], x, rtol=0, atol=1e-6)


def test_loop_equals_fuse_on_the_same_noise():
    tensors, _, steps, _ = load_case("s10")
    i, v = ((tensors[k] + 1) / 2 for k in "IV")
    sampler = create_sampler(**AUTHORS, timestep_respacing="10")
    x_T = torch.randn(1, 3, *i.shape[-2:], generator=torch.Generator().manual_seed(3407))
    x = sampler.p_sample_loop(
        tanh_prior, x_T, False, tensors["I"], tensors["V"], "", 0, lamb=0.5, rho=0.001
    )
    fuser = Fuser(prior=tanh_prior, steps=10, device="cpu")
    y = torch.einsum("c,nchw->nhw", torch.tensor([0.299, 0.587, 0.114]), x)[0]
    wanted = (y - y.min()) / (y.max() - y.min())
    torch.testing.assert_close(fuser(i[0, 0], v[0, 0]), wanted, rtol=0, atol=1e-5)


def test_color_conversions_are_studio_range_and_inverse():
    rgb = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    color = pytest.importorskip("skimage.color", reason="scikit-image is a test extra")
    ycbcr = rgb_to_ycbcr(rgb)
    wanted = color.rgb2ycbcr(rgb.numpy(), channel_axis=1)
    np.testing.assert_allclose(ycbcr, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(ycbcr_to_rgb(ycbcr), rgb, rtol=0, atol=1e-5)
    torch.testing.assert_close(rgb_to_ycbcr(rgb[0]), ycbcr[0], rtol=0, atol=0)
    white = rgb_to_ycbcr(torch.ones(1, 3, 1, 1)).flatten().tolist()
    assert white == pytest.approx([235, 128, 128], abs=1e-4)
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
        rgb_to_ycbcr(torch.zeros(1, 4, 5, 5))


def test_create_model_loads_the_published_layout(tmp_path):
    from safetensors.torch import load_file

    io = np.load(shared("golden/adm_small_io.npz"))
    config = json.loads(str(io["config_json"]))
    path = tmp_path / "weights.pt"
    state = load_file(shared("golden/adm_small.safetensors"))
    torch.save({k: t.float() for k, t in state.items()}, path)
    ours = dict(
        image_size=64,
        num_channels=config["model_channels"],
        num_res_blocks=config["num_res_blocks"],
        channel_mult=",".join(map(str, config["channel_mult"])),
        learn_sigma=True,
        attention_resolutions=",".join(str(64 // d) for d in config["attention_resolutions"]),
        num_head_channels=config["num_head_channels"],
        use_scale_shift_norm=True,
        resblock_updown=True,
        model_path=str(path),
    )
    model = create_model(**ours).to("cpu").eval()
    with torch.no_grad():
        out = model(torch.tensor(io["b1/x"]), torch.tensor(io["b1/t"]))
    np.testing.assert_allclose(out, io["b1/out"], rtol=0, atol=1e-4)
    sampler = create_sampler(**AUTHORS, timestep_respacing=2)
    sources = torch.zeros(2, 1, 1, 64, 64)
    x = sampler.p_sample_loop(
        model, torch.randn(1, 3, 64, 64), False, sources[0], sources[1], "", 0, 0.5, 0.001
    )
    assert torch.isfinite(x).all()
    for change, match in [
        ({"model_path": ""}, "model_path|path"),
        ({"model_path": str(tmp_path / "none.pt")}, "none.pt"),
        ({"num_channels": 64}, "model_channels"),
        ({"class_cond": True}, "class"),
        ({"channel_mult": "", "image_size": 100}, "image_size"),
    ]:
        with pytest.raises(ValueError, match=match):
            create_model(**{**ours, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": "ddpm"},
        {"model_mean_type": "start_x"},
        {"dynamic_threshold": True},
        {"clip_denoised": False},
    ],
)
def test_settings_outside_the_authors_configuration_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        create_sampler(**{**AUTHORS, **change}, timestep_respacing=10)


def loop_of(model, schedule="linear", steps=1000):
    sampler = create_sampler(
        "ddim", steps, schedule, "epsilon", "learned_range", False, True, False, 5
    )
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 3, 32, 48, generator=generator)
    i, v = torch.tanh(torch.randn(2, 1, 1, 32, 48, generator=generator))
    return sampler.p_sample_loop(model, x, False, i, v, "", 0, 0.5, 0.001)


def test_a_prior_is_a_model_of_the_loop():
    """A Prior of the sampler's own process runs as it is; its function alone gives the same."""
    prior = load_prior("embedded", dtype="float32")
    # embeddings of five timesteps at once are rounded differently from those of one
    torch.testing.assert_close(loop_of(prior), loop_of(lambda x, t: prior(x, t)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("schedule, steps", [("cosine", 1000), ("linear", 500)])
def test_a_prior_of_another_process_is_taken_as_any_callable(schedule, steps):
    prior = load_prior(tanh_prior, {"multiple": 1})
    with pytest.warns(UserWarning, match="pass the same to create_sampler"):
        found = loop_of(prior, schedule, steps)
    assert torch.equal(found, loop_of(tanh_prior, schedule, steps))
    assert not torch.equal(found, loop_of(prior))
