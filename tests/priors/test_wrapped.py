"""Networks of other predictions, against the embedded network's ε and formulas written out here."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import SMALL, random_unet

from ddfm_fast import FuseConfig, Fuser, fuse
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.wrapped import denoiser, wrap
from ddfm_fast.sampler import sample
from ddfm_fast.schedule import LEAST_ALPHA, check_alphas, make_betas

ALPHAS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
LEVELS = np.sqrt(1 / ALPHAS - 1)
CONTRARY = {**SMALL, "out_channels": 3}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def truth(x, t):
    prior = load_prior("embedded")
    return prior.eps(x, prior.conditioning(torch.tensor([int(t)]))[0]).float()


def exploded(x, sigma):
    """Return D(x₀ + σ ε; σ), by the timestep whose noise is nearest."""
    sigma = float(sigma)
    t = int(np.abs(LEVELS - sigma).argmin())
    return x - sigma * truth(x / math.sqrt(1 + sigma**2), t)


def picture(x, t):
    a = ALPHAS[int(t[0])]
    return (x - math.sqrt(1 - a) * truth(x, t[0])) / math.sqrt(a)


def velocity(x, t):
    a = ALPHAS[int(t[0])]
    return math.sqrt(a) * truth(x, t[0]) - math.sqrt(1 - a) * picture(x, t)


def score(x, sigma):
    return (exploded(x, sigma[0]) - x) / float(sigma[0]) ** 2


def unit_score(x, sigma):
    """Return the score of pictures in [0, 1], whose σ is half of that in [−1, 1]."""
    return score(2 * x - 1, 2 * sigma) * 2


def unit_denoiser(x, sigma):
    return (exploded(2 * x - 1, 2 * sigma[0]) + 1) / 2


def bare_edm(x, c_noise):
    sigma, data = math.exp(4 * float(c_noise[0])), 0.5
    power = sigma**2 + data**2
    x = x * math.sqrt(power)
    return (exploded(x, sigma) - data**2 / power * x) / (sigma * data / math.sqrt(power))


def bare_consistency(x, time):
    sigma, data = math.exp(float(time[0]) / 250), 0.5
    power, above = sigma**2 + data**2, sigma - 0.002
    x = x * math.sqrt(power)
    skip, out = data**2 / (above**2 + data**2), above * data / math.sqrt(power)
    return (exploded(x, sigma) - skip * x) / out


def straight(z, tau):
    tau = float(tau[0])
    x = z / (1 - tau)
    x0 = exploded(x, tau / (1 - tau))
    return (x - x0) / (tau / (1 - tau)) - x0


KINDS = {
    "x0": lambda: wrap(picture, "x0"),
    "v": lambda: wrap(velocity, "v"),
    "score": lambda: wrap(score, "score"),
    "score of [0, 1]": lambda: wrap(unit_score, "score", value_range=(0, 1), sigmas=(1e-3, 40)),
    "denoised": lambda: wrap(lambda x, s: exploded(x, s[0]), "denoised"),
    "denoiser": lambda: denoiser(unit_denoiser),
    "edm": lambda: wrap(bare_edm, "edm"),
    "consistency": lambda: wrap(bare_consistency, "consistency"),
    "flow": lambda: wrap(straight, "flow"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [5, 20, 300, 900])
def test_every_prediction_says_the_same_noise(kind, t):
    prior = KINDS[kind]()
    assert prior.noise_levels[t].item() == pytest.approx(LEVELS[t], rel=1e-6)
    found = prior.eps(X, prior.conditioning(torch.tensor([t]))[0])
    # x₀ is known to float32's 6e-8 of |x| / s
    assert (found - truth(X, t)).abs().max() < 1e-6 + 4 * 6e-8 * 10 / math.sqrt(1 - ALPHAS[t])


@pytest.mark.parametrize("kind", ["v", "denoiser", "flow"])
def test_the_whole_loop_draws_the_same_picture(kind):
    ir, vis = (np.random.default_rng(n).integers(0, 256, (32, 48), np.uint8) for n in (1, 2))
    pick = {"preset": "official", "steps": "5", "stretch": "none"}
    expected = fuse(ir, vis, prior=_of_these_levels(KINDS[kind]()), **pick)
    found = fuse(ir, vis, prior=KINDS[kind](), **pick)
    assert np.abs(found.astype(int) - expected).max() <= 1


def _of_these_levels(prior):
    """Return the embedded network under the table of another prior."""
    return wrap(lambda x, t: truth(x, t[0]), "eps", schedule=1 / (1 + prior.noise_levels**2))


def test_a_network_beyond_its_noise_is_not_asked():
    prior = wrap(lambda x, _s: x, "denoised", sigmas=(0.1, 10))
    assert prior.noise_levels[0] >= 0.1 and prior.noise_levels[-1] <= 10
    assert prior.num_train_timesteps == int(((LEVELS >= 0.1) & (LEVELS <= 10)).sum())


def test_zero_signal_at_the_end_is_left_out():
    roots = np.sqrt(ALPHAS)
    zero = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    table = check_alphas(zero)
    assert table[-1] == LEAST_ALPHA and (np.diff(table) < 0).all()
    np.testing.assert_array_equal(table[:-1], zero[: len(table) - 1])
    prior = wrap(velocity, "v", schedule=zero)
    assert prior.num_train_timesteps == len(table) < 1000


def test_a_table_of_a_named_schedule_is_that_schedule():
    ir, vis = (np.random.default_rng(n).integers(0, 256, (32, 32), np.uint8) for n in (1, 2))
    pick = {"preset": "official", "steps": 3}
    named = load_prior(lambda x, t: truth(x, t[0]), {"multiple": 32})
    table = load_prior(
        lambda x, t: truth(x, t[0]), {"multiple": 32, "alphas": np.cumprod(1 - make_betas())}
    )
    np.testing.assert_array_equal(fuse(ir, vis, prior=named, **pick),
                                  fuse(ir, vis, prior=table, **pick))  # fmt: skip


def test_noise_in_a_source_goes_by_a_wrapped_prior():
    clean = np.full((64, 64), 100.0)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 12, clean.shape), 0, 255)
    vis = np.tile(np.linspace(0, 255, 64), (64, 1)).astype(np.uint8)
    report = []
    Fuser(prior=KINDS["v"](), preset="fast", denoise={"ir": 12.0})(
        noisy.round().astype(np.uint8), vis, report=report
    )
    assert report[0].ir.sigma == pytest.approx(12)


class TestGray:
    """A prior of one channel in the loop."""

    @pytest.fixture(scope="class")
    @staticmethod
    def pair():
        return [np.random.default_rng(n).integers(0, 256, (40, 56), np.uint8) for n in (1, 2)]

    @pytest.mark.parametrize("preset", ["official", "paper", "official-script"])
    def test_it_draws_what_three_equal_channels_draw(self, preset, pair):
        """x_T and noise of one channel, tripled by hand in the callable of three channels."""
        gray = wrap(lambda x, _t: x * 0.3, "eps", channels=1, multiple=32)
        color = wrap(lambda x, _t: x * 0.3, "eps", multiple=32)
        seen = {}

        def keep(name):
            def watch(info):
                seen.setdefault(name, []).append((info.x_t.clone(), info.x0.clone()))

            return watch

        start = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(3))
        config = replace(FuseConfig.from_preset(preset), steps=4, sampler="ddim", ddim_eta=0.0)
        i, v = (torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(n)) * 2 - 1
                for n in (1, 2))  # fmt: skip
        one = sample(gray, i, v, config, x_start=start, callback=keep("gray"))
        three = sample(color, i, v, config, x_start=start.expand(-1, 3, -1, -1),
                       callback=keep("color"))  # fmt: skip
        torch.testing.assert_close(one.luma, three.luma, atol=3e-5, rtol=0)
        for (x_1, x0_1), (x_3, x0_3) in zip(seen["gray"], seen["color"], strict=True):
            assert x_1.shape[1] == 1
            torch.testing.assert_close(x_1.expand_as(x_3), x_3, atol=1e-4, rtol=0)
            torch.testing.assert_close(x0_1.expand_as(x0_3), x0_3, atol=1e-4, rtol=0)

    def test_the_embedded_gray_network_stands_in_the_loop(self, pair):
        found = fuse(*pair, prior="embedded-gray", preset="official", steps=4)
        other = fuse(*pair, prior="embedded", preset="official", steps=4)
        assert found.shape == (40, 56) and np.abs(found.astype(int) - other).mean() < 8

    @pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
    def test_noise_and_batches(self, sampler, pair):
        options = {"prior": "embedded-gray", "preset": "official", "steps": 3, "sampler": sampler}
        alone = fuse(*pair, **options)
        batch = fuse(np.stack([pair[0]] * 2), np.stack([pair[1]] * 2), **options)
        np.testing.assert_array_equal(batch[0], alone)
        np.testing.assert_array_equal(batch[1], alone)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: wrap(3, "v"), TypeError, "function: got 3"),
        (lambda: wrap(velocity, "noise"), ValueError, "prediction: got 'noise'"),
        (lambda: wrap(velocity, "v", schedule="ve"), ValueError, "schedule: got 've'"),
        (lambda: wrap(velocity, "v", schedule=[0.5, 0.9]), ValueError, "alphas: got"),
        (lambda: wrap(velocity, "v", schedule=[1.5, 0.9]), ValueError, "alphas: got"),
        (lambda: wrap(velocity, "v", schedule=[0.9, float("nan")]), ValueError, "alphas: got"),
        (lambda: wrap(velocity, "v", sigmas=(1, 2)), ValueError, "sigmas: 'v' has a schedule"),
        (lambda: wrap(straight, "flow", schedule="linear"), ValueError, "schedule: got 'linear'"),
        (lambda: wrap(straight, "flow", rescale_timesteps=True), ValueError, "rescale_timesteps"),
        (lambda: wrap(velocity, "v", channels=2), ValueError, "channels: got 2"),
        (lambda: wrap(velocity, "v", value_range=(0, 1)), ValueError, "value_range: got"),
        (lambda: denoiser(velocity, value_range=(1, 0)), ValueError, "value_range: got"),
        (lambda: wrap(bare_edm, "edm", sigma_data=-1), ValueError, "sigma_data: got -1"),
        (lambda: wrap(score, "score", sigmas=(80, 1)), ValueError, "sigmas: got"),
        (lambda: wrap(score, "score", sigmas=(1e5, 1e6)), ValueError, "sigmas: got"),
        (lambda: load_prior(velocity, {"sigmas": (1, 2)}), ValueError, "'sigmas' has no effect"),
        (lambda: load_prior(straight, {"prediction": "flow", "noise_schedule": "cosine"}),
         ValueError, "schedule: got 'cosine' with prediction 'flow'"),
        (lambda: load_prior(random_unet(CONTRARY), {"prediction": "edm", "alphas": ALPHAS}),
         ValueError, "schedule: got .* with prediction 'edm'"),
        (lambda: wrap(velocity, "v", schedule=np.cumprod(1 - np.array([0.1, 1.5]))), ValueError,
         "alphas: got"),
        (lambda: wrap(velocity, "v", num_train_timesteps=20), ValueError,
         "at least 21 for linear betas, which reach 1"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_another_shape_is_refused_by_name():
    prior = wrap(lambda x, _t: x.mean(1, keepdim=True), "v")
    with pytest.raises(ValueError, match="returned shape"):
        prior.eps(X, prior.conditioning(torch.tensor([1]))[0])


def test_what_it_does_to_x_in_place_stays_its_own():
    prior = wrap(lambda x, _t: x.mul_(0), "v")
    kept = X.clone()
    prior.eps(kept, prior.conditioning(torch.tensor([1]))[0])
    torch.testing.assert_close(kept, X, atol=0, rtol=0)
