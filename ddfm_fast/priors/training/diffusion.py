"""The noise process of the training and the weights of its loss."""

from __future__ import annotations

import torch
from torch import Tensor

from ...schedule import trained_alphas

T = 1000
"""timesteps"""
WEIGHTINGS = ("eps", "p2-mild", "p2", "min-snr")


def alphas_cumprod() -> Tensor:
    """Give ``schedule.trained_alphas`` as a tensor: float64 [1000]."""
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
        raise ValueError(f"--weighting {weighting!r}, expected one of {', '.join(WEIGHTINGS)}")
    return (weights / weights.mean()).float()


def diffuse(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Mix x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise; a float64 alpha_bar per image."""
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt().float() * x0 + (1 - alpha_bar).sqrt().float() * noise
