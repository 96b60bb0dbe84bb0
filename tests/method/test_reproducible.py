"""One result: the same bytes for any number of threads, any batch and any place in it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddfm_fast import FuseConfig, Fuser
from ddfm_fast.priors.ops.native import NativeOps

ROWS, COLUMNS = np.mgrid[:40, :50] / 50
PATHS = {
    "official": {"preset": "official", "steps": 3},
    "official-script": {"preset": "official-script", "steps": 3},
    "paper": {"preset": "paper", "steps": 3},
    "gradient": {"preset": "official", "variant": "gradient", "steps": 3},
    "balanced": {"preset": "balanced"},
    "instant": {"preset": "instant"},
}


def images(noise: float, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    planes = [
        0.5 + 0.3 * np.sin((9 + seed + n) * ROWS) * np.cos(7 * COLUMNS)
        + noise / 255 * rng.standard_normal(ROWS.shape)
        for n in range(3)
    ]  # fmt: skip
    return [np.clip(255 * plane, 0, 255).astype(np.uint8) for plane in planes]


IR, VIS = images(20, 1), images(2, 5)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results(threads: int, **options) -> list[np.ndarray]:
    """Return the results in order, then with each image in another place."""
    torch.set_num_threads(threads)
    fuser = Fuser(device="cpu", **options)
    turned = fuser([IR[2], *IR[:2]], [VIS[2], *VIS[:2]])
    return [*fuser(IR, VIS), *turned[1:], turned[0]]


def same(found: list[list[np.ndarray]]) -> bool:
    return all(np.array_equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


needs_kernels = pytest.mark.skipif(
    not NativeOps.available(torch.float32), reason="our CPU kernels cannot be used here"
)


@needs_kernels
@pytest.mark.parametrize("path", PATHS)
def test_threads_and_batches_do_not_count(path):
    options = PATHS[path]
    assert Fuser(device="cpu", **options).reproducible
    runs = itertools.product((1, 2, 3), (1, 3))
    assert same([results(threads, batch_size=batch, **options) for threads, batch in runs])


@pytest.mark.parametrize("path", ["official", "balanced", "instant"])
@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_without_our_kernels_batches_do_not_count(path, low, monkeypatch):
    """The number of threads does count, and ``reproducible`` says so."""
    options = {**PATHS[path], "dtype": "bfloat16" if low else "auto"}
    monkeypatch.setattr(NativeOps, "available", lambda _dtype: False)
    from ddfm_fast.priors import load

    monkeypatch.setattr(load, "_embedded", load._embedded.__wrapped__)
    assert Fuser(device="cpu", **options).reproducible == (path == "instant")
    assert same([results(2, batch_size=batch, **options) for batch in (1, 3)])


def test_streams_are_as_reproducible(monkeypatch):
    def stream(threads: int) -> list[np.ndarray]:
        torch.set_num_threads(threads)
        return list(Fuser(device="cpu").stream(zip(IR, VIS, strict=True)))

    if Fuser(device="cpu").reproducible:
        assert same([stream(threads) for threads in (1, 2, 3)])


def test_what_is_not_known_to_be_is_not_called_so():
    def prior(x, _t):
        return x * 0.1

    prior.multiple = 1
    assert not Fuser(prior=prior, preset="official", device="cpu").reproducible
    clean = replace(FuseConfig.from_preset("balanced"), denoise="off")
    assert Fuser(prior=prior, preset=clean, device="cpu").reproducible
