"""Callables that do what nobody expects of them, and files that are something else."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from analytic import tanh_prior

from ddfm_fast import fuse
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.schedulers import keywords_of
from ddfm_fast.priors.wrapped import denoiser, wrap

PAIR = [np.random.default_rng(n).integers(0, 256, (32, 48), np.uint8) for n in (1, 2)]
HOW = {"preset": "official", "steps": 2, "device": "cpu"}


def plain(x, t):
    del t
    return 0.1 * x


class Energy(torch.nn.Module):
    """ε as the gradient of an energy, 0.05 |x|², which autograd finds."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((), 0.05))

    def forward(self, x, t):
        del t
        with torch.enable_grad():
            x = x.requires_grad_(True)
            (gradient,) = torch.autograd.grad((self.weight * x.square()).sum(), x)
        return gradient


def in_place(x, t):
    t.zero_()
    return x.mul_(0.1)


def attached(x, t):
    del t
    return x * torch.full((), 0.1, requires_grad=True)


@pytest.mark.parametrize("function", [Energy(), in_place, attached])
def test_what_takes_gradients_or_changes_x_is_answered_as_plain_code(function):
    wanted = fuse(*PAIR, prior=plain, **HOW)
    np.testing.assert_array_equal(fuse(*PAIR, prior=function, **HOW), wanted)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def raises(x, t):
    del x, t
    raise KeyError("boom")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes of errors came with 3.11")
@pytest.mark.parametrize(
    ("make", "error", "name"),
    [
        (lambda: load_prior(raises), KeyError, "raises"),
        (lambda: load_prior(lambda x: x), TypeError, "<lambda>"),
        (lambda: denoiser(raises), KeyError, "raises"),
    ],
)
def test_what_a_callable_raises_says_how_it_was_called(make, error, name):
    with pytest.raises(error) as caught:
        fuse(*PAIR, prior=make(), **HOW)
    (note,) = caught.value.__notes__
    assert f"raised by prior '{name}', called as eps(x, t) with x (1, 3, 32, 64)" in note
    assert "torch.enable_grad" in note


@pytest.mark.parametrize("answer", ["x", None, float("nan"), float("inf"), torch.zeros(2), [1]])
def test_a_time_that_is_no_number_is_named(answer):
    prior = wrap(tanh_prior, "edm", time=lambda level: answer)
    with pytest.raises(ValueError, match="time: the function gave .* expected a finite number"):
        fuse(*PAIR, prior=prior, **HOW)


def test_a_time_of_a_tensor_is_a_number():
    found, wanted = (
        fuse(*PAIR, prior=wrap(tanh_prior, "edm", time=time, multiple=16), **HOW)
        for time in (lambda level: torch.tensor(level.sigma), lambda level: level.sigma)
    )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("value_range", [None, 1, (0,), (0, 1, 2), (1, 0), ("a", "b"), (0, np.inf)])
def test_ranges_of_denoisers(value_range):
    with pytest.raises(ValueError, match="value_range: got .*, expected .black, white."):
        denoiser(tanh_prior, value_range=value_range)


@pytest.mark.parametrize("device", ["gpu", "", 1.5])
def test_devices_that_are_none(device):
    with pytest.raises(ValueError, match="device: got .*, expected one of PyTorch"):
        load_prior(tanh_prior, device=device)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7\n", "git lfs pull"),
        ("\n<!DOCTYPE html><html>Log in</html>", "needs a login"),
        ("GGUF\x03\x00\x00\x00", "quantized weights"),
        ('{"error": "Repository not found"}', "it is JSON; give the file of weights"),
    ],
    ids=["lfs", "page", "gguf", "json"],
)
def test_downloads_of_something_else_are_named(tmp_path, content, words, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_text(content * 10)
    with pytest.raises(
        ValueError, match=r"is not a whole .*get the file again.*; it is "
    ) as caught:
        load_prior(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ({"trained_betas": [0.1, 1.0]}, r"with trained_betas '?\[0.1, 1.0\].*between 0 and 1"),
        ({"trained_betas": "x"}, "with trained_betas 'x'"),
        ({"beta_end": 1.0}, "with betas from 0.0001 to 1.0 over 1000 timesteps"),
        ({"num_train_timesteps": 1}, "over 1 timesteps, expected two or more"),
        ({"rescale_betas_zero_snr": "yes"}, "rescale_betas_zero_snr 'yes', expected true or false"),
        ({"_class_name": "CMStochasticIterativeScheduler", "sigma_min": 100},
         "sigma_min 100 and sigma_max 80"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0}, "sigma_min 0 and sigma_max 1348"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_schedulers_that_cannot_be_name_what_they_say(tmp_path, scheduler, words):
    with pytest.raises(ValueError, match=words):
        keywords_of({"_class_name": "DDPMScheduler", **scheduler}, tmp_path)
