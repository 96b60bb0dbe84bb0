"""A prior called as its network is: ``prior(x, t)``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import SMALL, random_unet

from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.prior import Prior

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def callable_eps(x, t):
    """Return two halves that depend on every image's own t."""
    scale = t.view(-1, 1, 1, 1).to(x) / 1000
    return torch.cat([x * scale, torch.tanh(x) * scale], dim=1)


SPECS = {
    "embedded": lambda: "embedded",
    "unet": lambda: random_unet({**SMALL, "use_scale_shift_norm": True}),
    "callable": lambda: callable_eps,
    "callable without variance": lambda: lambda x, t: x * t.view(-1, 1, 1, 1) / 1000,
}


@pytest.fixture(params=SPECS)
def prior(request) -> Prior:
    return load_prior(SPECS[request.param]())


def eps(prior: Prior, x: torch.Tensor, t: int) -> torch.Tensor:
    item = prior.conditioning(torch.tensor([t]))[0]
    return prior.eps(x, item, variance=prior.has_variance).float()


@pytest.mark.parametrize(
    "t",
    [431, torch.tensor(431), torch.tensor([431] * 3), torch.tensor(431, dtype=torch.int32),
     np.int64(431)],
    ids=["int", "0-d", "1-d", "int32", "numpy"],
)  # fmt: skip
def test_one_timestep_is_eps(prior, t):
    got = prior(X, t)
    assert got.dtype == torch.float32
    assert got.shape == (3, 6 if prior.has_variance else 3, 32, 32)
    assert torch.equal(got, eps(prior, X, 431))


def test_each_image_at_its_own_timestep(prior):
    got = prior(X, torch.tensor([900, 5, 900]))
    together = eps(prior, X[[0, 2]], 900)
    assert torch.equal(got[[0, 2]], together), "images of equal t go together"
    assert torch.equal(got[1:2], eps(prior, X[1:2], 5))


def test_it_is_what_the_network_gives():
    unet, t = SPECS["unet"](), torch.tensor([900, 5, 431])
    torch.testing.assert_close(load_prior(unet)(X, t), unet(X, t), rtol=1e-4, atol=2e-5)
    assert torch.equal(load_prior(callable_eps)(X, t), callable_eps(X, t))


@pytest.mark.parametrize("rescale", [False, True])
def test_the_network_gets_timesteps_as_it_was_trained_on_them(rescale):
    seen = []

    def function(x, t):
        seen.append(t.tolist())
        return x

    config = {"num_train_timesteps": 4000, "rescale_timesteps": rescale}
    load_prior(function, config)(X[:1], 3999)
    assert seen[-1] == [999.75 if rescale else 3999]


def test_low_precision_gives_float32():
    prior = load_prior("embedded", dtype="bfloat16")
    got = prior(X.double(), torch.tensor([3, 3, 500]))
    assert got.dtype == torch.float32 and prior.dtype == torch.bfloat16
    exact = load_prior("embedded")(X, torch.tensor([3, 3, 500]))
    assert 0 < (got - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()


def test_no_autograd_and_the_input_stays():
    x = X.clone().requires_grad_(True)
    assert not load_prior("embedded")(x, 20).requires_grad
    assert torch.equal(x.detach(), X)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (3.0, TypeError, "t: got float, expected an int or an integer tensor"),
        (True, TypeError, "t: got bool"),
        (None, TypeError, "t: got NoneType"),
        ([3, 3, 3], TypeError, "t: got list"),
        (torch.tensor(3.0), TypeError, "t: got a tensor of torch.float32"),
        (torch.tensor([True] * 3), TypeError, "t: got a tensor of torch.bool"),
        (torch.tensor([3]), ValueError, r"t: shape \(1,\), expected \[\] or \[3\]"),
        (torch.tensor([[3], [3], [3]]), ValueError, r"t: shape \(3, 1\)"),
        (-1, ValueError, "t: -1, expected training timesteps from 0 to 999"),
        (torch.tensor([3, 1000, 3]), ValueError, "t: 1000, expected .* from 0 to 999"),
    ],
)
def test_bad_timesteps_are_named(t, error, message):
    with pytest.raises(error, match=message):
        load_prior("embedded")(X, t)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X.numpy(), TypeError, "x: got ndarray, expected a floating-point tensor"),
        (X.long(), TypeError, "x: got a tensor of torch.int64"),
        (X[0], ValueError, r"x: shape \(3, 32, 32\)"),
        (X[:, :1], ValueError, "expected \\[N, 3, H, W\\]"),
        (X[..., :31], ValueError, "H and W multiples of"),
    ],
)
def test_bad_images_are_named(x, error, message):
    with pytest.raises(error, match=message):
        load_prior("embedded")(x, 3)
