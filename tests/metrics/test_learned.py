"""LPIPS and DISTS: what is missing is reported; with weights in place, the packages' own numbers.

The backbones' real weights are not at hand, so the numbers are of random ones: they show that the
pictures reach the networks as these want them, not what the published metrics would say.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module

import numpy as np
import pytest
import torch

from ddfm_fast import metrics
from ddfm_fast.metrics.conventions import WEIGHTED
from ddfm_fast.metrics.evaluation import check_scoring

PACKAGES = {"LPIPS": "lpips", "DISTS": "DISTS_pytorch"}
BACKBONES = {"LPIPS": "alexnet-owt-7be5be79.pth", "DISTS": "vgg16-397923af.pth"}


def package_of(name: str):
    """Return the package; skip if it is missing, or torchvision was built for another PyTorch."""
    try:
        return import_module(PACKAGES[name])
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs ddfm_fast[metrics]: {error}")


def pictures(seed: int = 0, count: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (count, 40, 48)).astype(np.float64) for _ in range(3)]


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_missing_package_is_named_before_any_work(name, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    for ask in (
        lambda: check_scoring(names=[name]),
        lambda: metrics.compute(*pictures(), names=[name]),
    ):
        with pytest.raises(ImportError, match=rf"{name} needs {PACKAGES[name]}.*\[metrics\]"):
            ask()


@pytest.mark.extras
@pytest.mark.parametrize("name", WEIGHTED)
def test_missing_weights_are_named_and_not_fetched(name, monkeypatch, tmp_path):
    package_of(name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=f"{BACKBONES[name]}, which are missing; download https"):
        check_scoring(names=[name])
    assert not list(tmp_path.rglob("*"))


@pytest.fixture
def random_weights(monkeypatch, tmp_path):
    """A hub with random features of both backbones; the classifiers, unused, are zeros."""
    package_of("LPIPS")
    models = import_module("torchvision.models")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    for name, make in (("LPIPS", models.alexnet), ("DISTS", models.vgg16)):
        with torch.device("meta"):
            shapes = make(weights=None).state_dict()
        state = {
            key: torch.randn(p.shape) * 0.05
            if "features" in key
            else torch.zeros(1).expand(p.shape)
            for key, p in shapes.items()
        }
        torch.save(state, tmp_path / "hub" / "checkpoints" / BACKBONES[name])


@pytest.mark.extras
@pytest.mark.parametrize("name", WEIGHTED)
def test_the_numbers_are_the_packages_own(name, random_weights):
    package = package_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = package.LPIPS(net="alex", verbose=False) if name == "LPIPS" else package.DISTS()
    f, *sources = pictures(count=3)
    found = metrics.compute(f, *sources, names=[name])
    scale = (lambda p: p / 127.5 - 1) if name == "LPIPS" else (lambda p: p / 255)
    for n in range(3):
        a, i, v = (
            torch.from_numpy(scale(p[n])).float().expand(1, 3, 40, 48) for p in (f, *sources)
        )
        expected = [theirs(a, p).item() for p in (i, v)]
        assert [float(found[f"{name}_{s}"][n]) for s in ("ir", "vis")] == pytest.approx(
            expected, rel=1e-4
        )
        assert float(found[name][n]) == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert float(metrics.compute(f[0], f[0], f[0], names=[name])[name]) == pytest.approx(
        0, abs=1e-5
    )
