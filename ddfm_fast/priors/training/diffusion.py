"""The noise process of the training and the weights of its loss."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...schedule import trained_alphas

T = 1000
"""timesteps"""
LEVELS = ("uniform", "low")
LOW_SIGMAS = 1.5, 60.0
"""gray levels of 255 between which the levels "low" mostly lie: the noise of real pictures"""
LOW_SHARE = 0.75
"""share of the levels "low" that lie there"""
WEIGHTINGS = ("eps", "p2-mild", "p2", "min-snr")


def alphas_cumprod() -> Tensor:
    """Return ``schedule.trained_alphas`` as a tensor: float64 [1000]."""
    return torch.from_numpy(trained_alphas())


def loss_weights(weighting: str) -> Tensor:
    """Weigh the squared eps error by timestep: float32 [1000] of mean 1.

    "eps": all 1 (Ho et al. 2020). "p2": (1 + SNR)^-1/2, Choi et al. 2022 with k = 1 and gamma 1/2;
    "p2-mild": the same with gamma 1/4.
    "min-snr": min(SNR, 5) / SNR, Hang et al. 2023. ValueError for other names.
    """
    alpha_bar = alphas_cumprod()
    snr = alpha_bar / (1 - alpha_bar)
    if weighting == "eps":
        weights = torch.ones_like(snr)
    elif weighting == "p2":
        weights = (1 + snr) ** -0.5
    elif weighting == "p2-mild":
        weights = (1 + snr) ** -0.25
    elif weighting == "min-snr":
        weights = snr.clamp(max=5) / snr
    else:
        raise ValueError(f"--weighting is {weighting!r}; expected one of {', '.join(WEIGHTINGS)}")
    return (weights / weights.mean()).float()


def draw_timesteps(levels: str, size: int, rng: np.random.Generator) -> Tensor:
    """Draw a timestep per image: int64 [size], one from each size-th of the distribution.

    "uniform": all of 0 to 999 alike. "low": three quarters at noise of ``LOW_SIGMAS``, with a
    uniform logarithm, the rest as "uniform", so that the network stays a prior of all timesteps.
    ValueError for other names.
    """
    share = (np.arange(size) + rng.random(size)) / size
    if levels == "uniform":
        return torch.from_numpy((share * T).astype(np.int64))
    if levels != "low":
        raise ValueError(f"--levels is {levels!r}; expected one of {', '.join(LEVELS)}")
    alpha_bar = alphas_cumprod().numpy()
    noise = np.sqrt(1 / alpha_bar - 1)
    low, high = (math.log(sigma / 127.5) for sigma in LOW_SIGMAS)
    wanted = np.exp(low + (high - low) * np.minimum(share / LOW_SHARE, 1))
    nearest = np.abs(noise[None] - wanted[:, None]).argmin(1)
    rest = (share - LOW_SHARE) / (1 - LOW_SHARE) * T
    return torch.from_numpy(np.where(share < LOW_SHARE, nearest, rest).astype(np.int64))


def diffuse(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Mix x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise; a float64 alpha_bar per image."""
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt().float() * x0 + (1 - alpha_bar).sqrt().float() * noise


def denoised_psnr(errors: list[tuple[int, float]], alpha_bar: Tensor) -> float:
    """Return the mean PSNR of x0 from squared eps errors, over levels of ``LOW_SIGMAS``; [dB].

    x0's error is that of eps times sigma, and pictures span 2.
    """
    found = []
    for t, error in errors:
        sigma = math.sqrt(1 / float(alpha_bar[t]) - 1)
        if LOW_SIGMAS[0] <= 127.5 * sigma <= LOW_SIGMAS[1]:
            found.append(10 * math.log10(4 / max(sigma**2 * error, 1e-12)))
    return float(np.mean(found)) if found else math.nan
