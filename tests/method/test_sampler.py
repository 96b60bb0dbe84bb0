"""The reverse loop: noise, variance, callbacks, determinism."""

import numpy as np
import oracles
import pytest
import torch
from analytic import tanh_prior, tanh_prior_with_variance

from ddfm_fast.config import FuseConfig
from ddfm_fast.noise import normals
from ddfm_fast.priors.load import load_prior
from ddfm_fast.sampler import sample
from ddfm_fast.schedule import make_schedule


def pair(n=1, height=20, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, n, 1, height, width, generator=generator) * 2 - 1


def ddpm_oracle(prior, i, v, steps, seed, learned):
    """Run Algorithm 1 in NumPy float64 on one image, with the noise that ``seed`` gives."""
    generator = torch.Generator().manual_seed(seed)
    schedule = make_schedule(steps)
    alpha, beta = schedule.alphas_cumprod, schedule.betas
    x = torch.randn(1, 3, *i.shape, generator=generator).numpy()[0].astype(np.float64)
    state = oracles.official_state(i.shape)
    for s in reversed(range(steps)):
        out = prior(torch.tensor(x)[None], torch.tensor([schedule.timesteps[s]]))[0].numpy()
        previous = alpha[s - 1] if s else 1.0
        x0 = np.clip(x / np.sqrt(alpha[s]) - np.sqrt(1 / alpha[s] - 1) * out[:3], -1, 1)
        f = oracles.replace_luma(x0, None, official=False)
        fused, state = oracles.paper_em(f, i, v, state, 0.5, 0.1)
        x0 = oracles.replace_luma(x0, fused, official=False)
        mean = (
            np.sqrt(previous) * beta[s] / (1 - alpha[s]) * x0
            + np.sqrt(1 - beta[s]) * (1 - previous) / (1 - alpha[s]) * x
        )
        if s == 0:
            return mean
        small = beta[s] * (1 - previous) / (1 - alpha[s])
        fraction = (out[3:] + 1) / 2 if learned else 0.0
        variance = np.exp(fraction * np.log(beta[s]) + (1 - fraction) * np.log(small))
        z = normals(torch.tensor([seed]), steps - 1 - s, *i.shape, torch.float64)[0].numpy()
        x = mean + np.sqrt(variance) * z


@pytest.mark.parametrize("learned", [False, True])
def test_ddpm_equals_algorithm_1(learned):
    function = tanh_prior_with_variance if learned else tanh_prior
    i, v = pair()
    config = FuseConfig(variant="paper", sampler="ddpm", steps=6, eta=0.1)
    got = sample(load_prior(function), i, v, config, seed=11).x0
    wanted = ddpm_oracle(
        function, i[0, 0].double().numpy(), v[0, 0].double().numpy(), 6, 11, learned
    )
    np.testing.assert_allclose(got[0], wanted, rtol=0, atol=2e-4)


def test_fixed_small_variance_ignores_the_variance_half():
    i, v = pair()
    config = FuseConfig(sampler="ddpm", steps=4, variance="fixed_small")
    with_half = sample(load_prior(tanh_prior_with_variance), i, v, config).x0
    without = sample(load_prior(tanh_prior), i, v, config.with_overrides(variance="auto")).x0
    assert torch.equal(with_half, without)


def test_learned_range_needs_a_variance_output():
    i, v = pair()
    config = FuseConfig(sampler="ddpm", steps=2, variance="learned_range")
    with pytest.raises(ValueError, match="no variance output"):
        sample(load_prior(tanh_prior), i, v, config)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_same_call_gives_the_same_bytes(sampler):
    i, v = pair(n=2)
    config = FuseConfig(sampler=sampler, steps=5)
    prior = load_prior(tanh_prior)
    first = sample(prior, i, v, config, seed=1)
    assert torch.equal(first.x0, sample(prior, i, v, config, seed=1).x0)
    assert not torch.equal(first.x0, sample(prior, i, v, config, seed=2).x0)


@pytest.mark.parametrize("config", [
    FuseConfig(steps=4), FuseConfig(steps=4, sampler="ddpm"), FuseConfig(steps=4, ddim_eta=0.5),
])  # fmt: skip
def test_batch_of_three_equals_three_batches_of_one(config):
    i, v = pair(n=3)
    prior = load_prior(tanh_prior_with_variance)
    together = sample(prior, i, v, config).x0
    for n in range(3):
        assert torch.equal(together[n], sample(prior, i[n : n + 1], v[n : n + 1], config).x0[0])


def test_x_T_is_the_cpu_noise_of_the_seed():
    """torch.manual_seed(3407); torch.randn(1, 3, H, W), as the authors' script draws it."""
    i, v = pair()
    seen = []

    def spy(x, t):
        seen.append(x.clone())
        return tanh_prior(x, t)

    sample(load_prior(spy, {"multiple": 1}), i, v, FuseConfig(steps=1))
    torch.manual_seed(3407)
    assert torch.equal(seen[0], torch.randn(1, 3, 20, 24))


def test_callback_sees_every_step_and_may_stop():
    i, v = pair()
    seen = []

    def callback(info):
        seen.append((info.step, info.steps, info.timestep, info.x_t.shape, info.x0.shape))

    sample(load_prior(tanh_prior), i, v, FuseConfig(steps=3), callback=callback)
    shape = torch.Size([1, 3, 20, 24])
    assert seen == [(1, 3, 999, shape, shape), (2, 3, 500, shape, shape), (3, 3, 0, shape, shape)]

    class Stop(Exception):
        pass

    def stop(_info):
        raise Stop

    with pytest.raises(Stop):
        sample(load_prior(tanh_prior), i, v, FuseConfig(steps=3), callback=stop)


def test_a_prior_that_yields_nan_is_named():
    i, v = pair()
    broken = load_prior(lambda x, _t: x * float("nan"), {"multiple": 1})
    with pytest.raises(ValueError, match="NaN or inf"):
        sample(broken, i, v, FuseConfig(steps=2))


def test_rescaled_timesteps_reach_the_prior():
    seen = []

    def spy(x, t):
        seen.extend(t.tolist())
        return tanh_prior(x, t)

    i, v = pair()
    config = {"num_train_timesteps": 4000, "rescale_timesteps": True, "multiple": 1}
    sample(load_prior(spy, config), i, v, FuseConfig(steps=3))
    assert seen == [3999 / 4, 500.0, 0.0]


def test_luma_is_in_the_scale_of_the_sources():
    """With an analytic prior, the mean is at most .25 beyond the values of the two sources."""
    i = torch.full((1, 1, 16, 16), 0.5)
    v = torch.full((1, 1, 16, 16), -0.5)
    luma = sample(load_prior(tanh_prior), i, v, FuseConfig(steps=20)).luma
    assert -0.75 < float(luma.mean()) < 0.75


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_start_begins_at_the_noised_mean_of_the_sources(variant):
    i, v = pair()
    seen = []

    def spy(x, t):
        seen.append((x.clone(), int(t[0])))
        return tanh_prior(x, t)

    config = FuseConfig(variant=variant, steps=4, start=200)
    sample(load_prior(spy, {"multiple": 1}), i, v, config, seed=5)
    x, t = seen[0]
    assert (t, len(seen)) == (200, 4)
    alpha = make_schedule(1000).alphas_cumprod[200]
    z = torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(5))
    x0 = (x - np.sqrt(1 - alpha) * z) / np.sqrt(alpha)
    got = oracles.replace_luma(x0[0].double().numpy(), None, official=variant == "official")
    np.testing.assert_allclose(got, (i + v)[0, 0] / 2, atol=1e-5)
    np.testing.assert_allclose(x0[0, 0], x0[0, 2], atol=1e-5)
