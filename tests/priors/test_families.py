"""Every family of priors in a ``Fuser`` on one small pair, beside its own network called plainly.

Each prior fuses as a callable ε does that calls the original network and uses the family's formula,
written out here: `wrap(…, "eps")` under the prior's own noise levels. At most one pixel in fifty
may round to the gray level beside.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from adm import Adm
from networks import SMALL, random_unet
from test_wrapped import KINDS, truth

from ddfm_fast import Fuser
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.wrapped import denoiser, wrap

PAIR = [np.random.default_rng(n).integers(0, 256, (32, 48), np.uint8) for n in (1, 2)]
ATTENTIVE = {**SMALL, "attention_resolutions": [2], "num_head_channels": 32}
GUIDED = {"three_first": False, "updown": True}
IMPROVED = {"three_first": False, "updown": False}
OPTIONS = {"preset": "official", "steps": 3, "stretch": "none"}


def assert_fuses_as(prior, eps):
    """Check that a prior fuses as ``eps(x, σ, t)`` does, by the original network at x₀ + σ ε."""
    levels = prior.noise_levels

    def plain(x, t):
        return eps(x, float(levels[int(t[0])]), int(t[0])).float()

    schedule = prior.noise_schedule if prior.alphas is None else 1 / (1 + levels**2)
    twin = wrap(plain, "eps", schedule=schedule, num_train_timesteps=prior.num_train_timesteps,
                channels=prior.channels, multiple=prior.multiple)  # fmt: skip
    found, wanted = (Fuser(prior=p, **OPTIONS)(*PAIR).astype(int) for p in (prior, twin))
    assert found.shape == (32, 48) and found.std() > 1
    assert np.abs(found - wanted).max() <= 1 and (found != wanted).mean() < 0.02


def exploded(x, sigma):
    """Return x₀ + σ ε of x_t."""
    return x * math.hypot(1, sigma)


def of_file(tmp_path, config, said, **adm):
    state = random_unet(config).state_dict()
    torch.save(state, tmp_path / "net.pt")
    return load_prior(tmp_path / "net.pt", said), Adm(state, head=32, **adm)


def test_guided_diffusion(tmp_path):
    config = {**ATTENTIVE, "use_scale_shift_norm": True, "resblock_updown": True}
    prior, network = of_file(tmp_path, config, {"num_head_channels": 32}, **GUIDED)
    assert_fuses_as(prior, lambda x, _s, t: network(x.double(), t)[:, :3])


def test_improved_diffusion(tmp_path):
    said = {"num_head_channels": 32, "noise_schedule": "cosine", "num_train_timesteps": 4000,
            "rescale_timesteps": True}  # fmt: skip
    prior, network = of_file(
        tmp_path, {**ATTENTIVE, "use_scale_shift_norm": True}, said, **IMPROVED
    )
    assert_fuses_as(prior, lambda x, _s, t: network(x.double(), t / 4)[:, :3])


@pytest.mark.parametrize("prediction", ["consistency", "edm"])
def test_consistency_models(tmp_path, prediction):
    config = {**ATTENTIVE, "out_channels": 3, "resblock_updown": True,
              "use_new_attention_order": True}  # fmt: skip
    said = {"num_head_channels": 32, "prediction": prediction}
    prior, network = of_file(tmp_path, config, said, three_first=True, updown=True)

    def eps(x, sigma, _t):
        noisy, least = exploded(x.double(), sigma), 0.002 if prediction == "consistency" else 0.0
        power = math.sqrt(sigma**2 + 0.25)
        answer = network(noisy / power, 250 * math.log(sigma))
        skip = 0.25 / ((sigma - least) ** 2 + 0.25)
        return (noisy - skip * noisy - (sigma - least) / 2 / power * answer) / sigma

    assert_fuses_as(prior, eps)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_and_denoisers(kind):
    assert_fuses_as(KINDS[kind](), lambda x, sigma, _t: embedded(x, sigma))


def embedded(x, sigma):
    levels = np.sqrt(1 / np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)) - 1)
    return truth(x, np.abs(levels - sigma).argmin())


def test_a_denoiser_that_is_no_network():
    """A mean over 3x3 pixels, which ignores σ: ε is what it removes."""

    def blurred(x, _sigma):
        return torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def eps(x, sigma, _t):
        noisy = exploded(x, sigma)
        return (noisy - blurred(noisy, sigma)) / sigma

    assert_fuses_as(denoiser(blurred), eps)


@pytest.mark.parametrize("name", ["embedded", "embedded-gray"])
def test_the_embedded_networks(name):
    prior = load_prior(name)
    assert_fuses_as(prior, lambda x, _s, t: prior.unet(x, torch.tensor([t])))


def test_a_module_of_the_user():
    module = random_unet({**SMALL, "out_channels": 3})

    class Own(torch.nn.Module):
        def forward(self, x, t):
            return module(x, t)

    assert_fuses_as(load_prior(Own()), lambda x, _s, t: module(x, torch.tensor([t])))


@pytest.mark.extras
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_diffusers(tmp_path, prediction, channels):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"), in_channels=channels,
        up_block_types=("UpBlock2D", "UpBlock2D"), out_channels=channels,
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path / "unet")
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, beta_end=0.015)
    scheduler.save_pretrained(tmp_path / "scheduler")

    def eps(x, sigma, t):
        with torch.no_grad():
            out = model(x, t).sample
        alpha = 1 / math.hypot(1, sigma)
        beta = sigma * alpha
        return {
            "epsilon": out,
            "sample": (x - alpha * out) / beta,
            "v_prediction": alpha * out + beta * x,
        }[prediction]

    assert_fuses_as(load_prior(tmp_path), eps)


def of_zero_snr(model, x, sigma, t):
    alpha = 1 / math.hypot(1, sigma)
    return alpha * model(x, t).sample + sigma * alpha * x


def of_score(model, x, sigma, _t):
    """Return ε by the score of pictures in [0, 1]; a time that is no tensor would be rounded."""
    return -sigma / 2 * model((exploded(x, sigma) + 1) / 2, torch.tensor(sigma / 2)).sample


def of_consistency(model, x, sigma, _t):
    noisy, power = exploded(x, sigma), math.sqrt(sigma**2 + 0.25)
    answer = model(noisy / power, torch.tensor(250 * math.log(sigma))).sample
    skip, size = 0.25 / ((sigma - 0.002) ** 2 + 0.25), (sigma - 0.002) / 2 / power
    return (noisy - skip * noisy - size * answer) / sigma


def of_flow(model, x, sigma, _t):
    tau = sigma / (1 + sigma)
    z = exploded(x, sigma) * (1 - tau)
    return z + (1 - tau) * model(z, torch.tensor(1000 * tau)).sample


PROCESSES = {
    "zero SNR": ("DDIMScheduler", of_zero_snr,
                 {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    "VE": ("ScoreSdeVeScheduler", of_score, {"sigma_max": 50.0}),
    "consistency": ("CMStochasticIterativeScheduler", of_consistency, {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", of_flow, {}),
}  # fmt: skip


@pytest.mark.extras
@pytest.mark.parametrize("name", PROCESSES)
def test_diffusers_of_other_processes(tmp_path, name):
    diffusers = pytest.importorskip("diffusers")
    scheduler, eps, options = PROCESSES[name]
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        time_embedding_type="fourier" if name == "VE" else "positional",
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path / "unet")
    getattr(diffusers, scheduler)(**options).save_pretrained(tmp_path / "scheduler")
    with torch.no_grad():
        assert_fuses_as(load_prior(tmp_path), lambda x, sigma, t: eps(model, x, sigma, t))
