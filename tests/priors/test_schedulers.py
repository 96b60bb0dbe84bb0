"""Folders of diffusers of every process, against diffusers' own schedulers."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ddfm_fast import fuse
from ddfm_fast.priors.callable import CallablePrior
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.wrapped import WrappedPrior

diffusers = pytest.importorskip("diffusers")

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def network(**keywords):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **keywords,
    ).eval()


def saved(folder, model, scheduler):
    model.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return load_prior(folder)


def eps_at(prior, x, sigma):
    """Return (ε, α, s) at the level of the prior's table that is nearest to a noise."""
    t = int((prior.noise_levels - sigma).abs().argmin())
    sigma = float(prior.noise_levels[t])
    alpha = 1 / math.hypot(1, sigma)
    return prior.eps(x * alpha, prior.conditioning(torch.tensor([t]))[0]), sigma


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2", "trained"])
@pytest.mark.parametrize("zero", [False, True])
def test_variance_preserving(tmp_path, prediction, betas, zero):
    trained = torch.linspace(0.001, 0.03, 400).tolist() if betas == "trained" else None
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="linear" if trained else betas,
        trained_betas=trained,
        num_train_timesteps=len(trained or range(1000)),
        prediction_type=prediction,
        rescale_betas_zero_snr=zero,
        clip_sample=False,
    )
    prior, model = saved(tmp_path, network(), scheduler), network()
    assert isinstance(prior, WrappedPrior) == (prediction != "epsilon")
    assert isinstance(prior, CallablePrior)
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    for t in (0, 200, 350):
        a = 1 / (1 + float(prior.noise_levels[t]) ** 2)
        assert a == pytest.approx(float(scheduler.alphas_cumprod[t]), abs=2e-6)  # float32 sums
        with torch.no_grad():
            out = model(X, torch.tensor([t, t])).sample
        expected = scheduler.step(out, t, X).pred_original_sample
        eps = prior.eps(X, prior.conditioning(torch.tensor([t]))[0])
        found = (X - math.sqrt(1 - a) * eps) / math.sqrt(a)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_other_numbers_of_linear_timesteps_keep_their_ends(tmp_path):
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=500)
    prior = saved(tmp_path, network(), scheduler)
    found = 1 / (1 + prior.noise_levels**2)
    torch.testing.assert_close(found.float(), scheduler.alphas_cumprod, rtol=1e-5, atol=1e-7)


def test_variance_exploding(tmp_path):
    """diffusers asks ncsnpp for pictures in [0, 1] and calls its answer the score."""
    model = network(time_embedding_type="fourier")
    prior = saved(tmp_path, model, diffusers.ScoreSdeVeScheduler(sigma_max=50.0))
    x = X * 3
    eps, sigma = eps_at(prior, x, 3.0)
    with torch.no_grad():
        score = model((x + 1) / 2, torch.full((2,), sigma / 2)).sample
    torch.testing.assert_close(eps, -sigma / 2 * score, rtol=1e-4, atol=1e-5)


def test_consistency(tmp_path):
    scheduler = diffusers.CMStochasticIterativeScheduler(clip_denoised=False)
    model = network()
    prior = saved(tmp_path, model, scheduler)
    x = X * 4
    eps, sigma = eps_at(prior, x, 4.0)
    scheduler.set_timesteps(timesteps=[39, 0])
    scheduler.sigmas[0] = sigma
    time = torch.tensor(250 * math.log(sigma), dtype=torch.float64)
    scheduler.timesteps[0] = time
    with torch.no_grad():
        out = model(scheduler.scale_model_input(x, time), time).sample
    seeded = torch.Generator().manual_seed(0)
    after = scheduler.step(out, time, x, generator=seeded).prev_sample
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    least = scheduler.config.sigma_min
    then = float(scheduler.sigmas[1].clamp(least, scheduler.config.sigma_max))
    expected = after - noise * math.sqrt(then**2 - least**2)
    torch.testing.assert_close(x - sigma * eps, expected, rtol=1e-4, atol=1e-4)


def test_flow(tmp_path):
    model = network()
    prior = saved(tmp_path, model, diffusers.FlowMatchEulerDiscreteScheduler())
    eps, sigma = eps_at(prior, X, 1.5)
    tau = sigma / (1 + sigma)
    z = X * (1 - tau)
    with torch.no_grad():
        velocity = model(z, torch.full((2,), tau * 1000)).sample
    torch.testing.assert_close(eps, z + (1 - tau) * velocity, rtol=1e-4, atol=1e-5)


def test_gray(tmp_path):
    model = network(in_channels=1, out_channels=1)
    prior = saved(tmp_path, model, diffusers.DDPMScheduler())
    assert prior.channels == 1
    x = X[:, :1]
    with torch.no_grad():
        expected = model(x, torch.tensor([300, 300])).sample
    found = prior.eps(x, prior.conditioning(torch.tensor([300]))[0])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    ir, vis = (torch.randint(0, 256, (32, 32), dtype=torch.uint8) for _ in range(2))
    assert fuse(ir, vis, prior=prior, preset="official", steps=2).shape == (32, 32)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"_class_name": "IPNDMScheduler", "num_train_timesteps": 1000, "trained_betas": None},
        {"_class_name": "ScoreSdeVpScheduler", "num_train_timesteps": 2000, "beta_min": 0.1},
        {"_class_name": "VQDiffusionScheduler", "num_train_timesteps": 100},
        {"_class_name": "DDPMWuerstchenScheduler", "s": 0.008, "scaler": 1.0},
    ],
    ids=lambda scheduler: scheduler["_class_name"],
)
def test_processes_that_no_betas_tell_are_refused(tmp_path, scheduler):
    network().save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(ValueError, match=f"does not tell by betas .{scheduler['_class_name']}"):
        load_prior(tmp_path)


def test_consistency_of_another_least_noise(tmp_path):
    """c_skip = data² / ((σ − σ_min)² + data²), c_out = data (σ − σ_min) / √(σ² + data²)."""
    scheduler = diffusers.CMStochasticIterativeScheduler(sigma_min=0.1)
    model = network()
    eps, sigma = eps_at(saved(tmp_path, model, scheduler), X, 0.2)
    with torch.no_grad():
        time = torch.tensor(250 * math.log(sigma))
        out = model(X / math.sqrt(sigma**2 + 0.25), time).sample
    skip, size = scheduler.get_scalings_for_boundary_condition(sigma)
    torch.testing.assert_close(X - sigma * eps, skip * X + size * out, rtol=1e-4, atol=1e-4)


def test_config_corrects_what_a_folder_says(tmp_path):
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", beta_end=0.01)
    found = saved(tmp_path, network(), scheduler)
    assert (found.prediction, len(found.alphas)) == ("v", 1000)
    cosine = load_prior(tmp_path, {"noise_schedule": "cosine"})
    assert cosine.alphas is None and cosine.noise_schedule == "cosine"
    assert load_prior(tmp_path, {"prediction": "flow"}).prediction == "flow"
    with pytest.raises(ValueError, match="num_train_timesteps=500 with alphas of 1000"):
        load_prior(tmp_path, {"num_train_timesteps": 500})


def test_networks_that_are_handed_over_themselves():
    model = network(in_channels=1, out_channels=1)
    prior = load_prior(model)
    assert prior.channels == 1
    with torch.no_grad():
        expected = model(X[:, :1], torch.tensor([300, 300])).sample
    torch.testing.assert_close(prior(X[:, :1], 300), expected, atol=1e-6, rtol=0)
    own = {"prediction": "score", "value_range": (0, 1), "sigmas": (0.01, 1348)}
    assert load_prior(network(time_embedding_type="fourier"), own).prediction == "score"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: network(time_embedding_type="fourier"), "fourier.*prediction.*score"),
        (lambda: network(num_class_embeds=10), "class-conditional"),
        (lambda: network(in_channels=4, out_channels=4), "4 to 4 channels.*latent"),
        (lambda: diffusers.DDPMPipeline(network(), diffusers.DDPMScheduler()), "save_pretrained"),
    ],
)
def test_networks_of_other_kinds_that_are_handed_over(make, words):
    with pytest.raises(ValueError, match=words):
        load_prior(make())
