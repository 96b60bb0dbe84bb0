"""Priors with a closed form, for tests: cheap, deterministic, independent of any network."""

import torch


def tanh_prior(x, t):
    """Return ε = tanh(x · (0.3 + t/1500)), the prior of the published loops."""
    return torch.tanh(x * (0.3 + t.to(x.dtype) / 1500).view(-1, 1, 1, 1))


def tanh_prior_with_variance(x, t):
    """Return the same with a variance half of 0.1 x."""
    return torch.cat([tanh_prior(x, t), 0.1 * x], dim=1)


tanh_prior.multiple = tanh_prior_with_variance.multiple = 1
