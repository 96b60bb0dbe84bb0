"""Tests on a CUDA device that is not there: for `make test-cuda-host`, not for `make test`."""

from __future__ import annotations

import ctypes

import pytest
from analytic import tanh_prior

if not hasattr(ctypes.CDLL(None), "fake_launch_count"):
    collect_ignore_glob = ["test_*.py"]  # this process has no fake device


@pytest.fixture(autouse=True)
def allowed_violations():
    """No test breaks a rule of CUDA, except for the rules that it adds to this list."""
    import fakeplugin

    fakeplugin.fake.fake_clear()
    allowed: list[str] = []
    yield allowed
    found = {v for v in fakeplugin.violations() if not any(part in v for part in allowed)}
    assert not found


@pytest.fixture
def small_prior():
    """A function that makes a new analytic prior, which may do something with x first."""

    def make(first=lambda x: None):
        def prior(x, t):
            first(x)
            return tanh_prior(x, t)

        prior.multiple = 1
        return prior

    return make


@pytest.fixture(autouse=True)
def everything_released():
    """The memory of a test does not count against the next."""
    import gc

    import torch

    yield
    gc.collect()
    torch.cuda.empty_cache()
