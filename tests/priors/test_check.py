"""The self-test of priors: what denoises passes, and each usual mistake is named."""

from __future__ import annotations

import pytest
import torch
from test_wrapped import (
    KINDS,
    bare_edm,
    exploded,
    picture,
    straight,
    truth,
    unit_denoiser,
    velocity,
)

from ddfm_fast.priors.check import check
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.wrapped import denoiser, wrap

MISTAKES = {
    "v": (velocity, "wrap(function, 'v')"),
    "x0": (picture, "wrap(function, 'x0')"),
    "sigma": (lambda x, s: exploded(x, s[0]), "wrap(function, 'denoised')"),
    "range": (unit_denoiser, "wrap(function, 'denoised', value_range=(0, 1))"),
    "flow": (straight, "wrap(function, 'flow')"),
    "bare network": (bare_edm, "wrap(function, 'edm')"),
    "sign": (lambda x, t: -truth(x, t[0]), "the negative of what it gives now"),
    "time from 0 to 1": (
        lambda x, t: truth(x, round(float(t[0]) * 1000)),
        "wrap(function, 'eps', time=lambda level: level.timestep / T (times from 0 to 1))",
    ),
    "time backward": (
        lambda x, t: truth(x, 999 - t[0]),
        "wrap(function, 'eps', time=lambda level: T - 1 - level.timestep (noise at time 0))",
    ),
}


@pytest.mark.parametrize("name", ["embedded", "embedded-gray"])
def test_our_networks_denoise(name):
    found = check(load_prior(name))
    assert found.good and found.gain > 8 and not found.hints and not found.error


@pytest.mark.parametrize("kind", KINDS)
def test_wrapped_networks_denoise(kind):
    assert check(KINDS[kind]()).good


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_usual_mistakes_are_named(mistake):
    function, hint = MISTAKES[mistake]
    found = check(load_prior(function))
    assert not found.good and found.hints[0] == hint


def test_what_denoises_in_no_reading_has_no_hint():
    found = check(load_prior(lambda x, _t: x * 0))
    assert not found.good and found.hints == []


def test_what_raises_is_told():
    def broken(_x, _t):
        raise RuntimeError("no such layer")

    found = check(load_prior(broken))
    assert not found.good and "no such layer" in found.error


class Counting:
    """Gives a different answer at each call."""

    calls = 0

    def __call__(self, x, t):
        self.calls += 1
        return truth(x, t[0]) * (1 + 0.01 * self.calls)


def test_what_keeps_state_or_draws_numbers_is_told():
    dropping = torch.nn.Sequential(torch.nn.Dropout(0.1))
    module = load_prior(lambda x, t: truth(dropping(x), t[0]))
    for prior in (load_prior(Counting()), module):
        found = check(prior)
        assert not found.good and "two answers to one question" in found.error
    dropping.eval()
    assert check(module).good


def denoiser_of_unit(units):
    """Make a denoiser of pictures from 0 to 1 that takes σ in units of its own."""
    return lambda x, s: unit_denoiser(x, s / units)


SUBTLE = {
    "eps taken for v": (lambda: wrap(lambda x, t: truth(x, t[0]), "v"), "wrap(function, 'eps')"),
    "another schedule": (
        lambda: wrap(lambda x, t: truth(x, t[0]), "eps", schedule="cosine"),
        "wrap(function, 'eps')",
    ),
    "sigma in gray levels": (
        lambda: denoiser(denoiser_of_unit(255)),
        "wrap(function, 'denoised', value_range=(0, 1), time=lambda level: 255 * level.sigma "
        "(sigma in gray levels))",
    ),
    "sigma of twice the range": (
        lambda: denoiser(denoiser_of_unit(2)),
        "wrap(function, 'denoised', value_range=(0, 1), time=lambda level: 2 * level.sigma "
        "(sigma of pictures from -1 to 1))",
    ),
}


@pytest.mark.parametrize("mistake", SUBTLE)
def test_what_denoises_a_little_and_wrongly_is_named(mistake):
    make, hint = SUBTLE[mistake]
    found = check(make())
    assert not found.good and found.hints[0] == hint


def test_pictures_from_0_to_1_given_to_a_network_of_others_do_not_pass():
    assert not check(load_prior(lambda x, t: truth(2 * x - 1, t[0]))).good


def test_nan_is_not_called_state():
    found = check(load_prior(lambda x, t: truth(x, t[0]) * float("nan")))
    assert not found.good and "gives NaN or inf" in found.error
