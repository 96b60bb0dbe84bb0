"""Colored noise, taken out of chroma."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import shared
from torch import Tensor

from ddfm_fast import Fuser
from ddfm_fast.datasets.demo import asset
from ddfm_fast.files.reading import read_image
from ddfm_fast.images.color import chroma_planes, luma
from ddfm_fast.restore.chroma import chroma_noise, smooth_chroma


def rgb(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()


def noisy(image: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    noise = sigma * np.random.default_rng(seed).standard_normal(image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def chroma_error(a: Tensor, b: Tensor) -> float:
    return float(((a - luma(a)) - (b - luma(b))).square().mean().sqrt() * 255)


@pytest.mark.parametrize("sigma, most", [(10, 1.5), (25, 3.0)])
def test_noise_of_chroma_goes(sigma, most):
    clean = rgb(asset("dune_visible.png"))
    spoiled = rgb(noisy(asset("dune_visible.png"), sigma))
    level = chroma_noise(chroma_planes(spoiled))
    assert level == pytest.approx(0.62 * sigma, rel=0.1)
    smooth = smooth_chroma(spoiled, luma(clean), level)
    assert chroma_error(spoiled, clean) > 0.8 * sigma and chroma_error(smooth, clean) < most
    assert float((luma(smooth) - luma(clean)).abs().mean()) < 0.02


def test_gray_noise_and_clean_pictures_have_none():
    image = asset("dune_visible.png")
    gray = 25 * np.random.default_rng(0).standard_normal((*image.shape[:2], 1))
    assert chroma_noise(chroma_planes(rgb(image))) == 0
    assert chroma_noise(chroma_planes(rgb(np.clip(image + gray, 20, 235)))) == 0


def test_shared_pictures_have_none():
    folder = shared("data/ivf/vi")
    images = [read_image(path) for path in sorted(folder.iterdir())]
    assert [chroma_noise(chroma_planes(rgb(i))) for i in images if i.ndim == 3] == [0] * len(
        [i for i in images if i.ndim == 3]
    )


def test_results_have_clean_color_and_reports_say_so():
    ir, vis = asset("dune_infrared.png")[:200, :240], asset("dune_visible.png")[:200, :240]
    spoiled, found = noisy(vis, 25), []
    fuser = Fuser(preset="fast", device="cpu")
    clean = fuser(ir, vis)
    result = fuser(ir, spoiled, report=found)
    assert found[0].vis.chroma == pytest.approx(15.5, rel=0.1) and found[0].ir.chroma == 0
    assert chroma_error(rgb(result), rgb(clean)) < 5
    left = fuser.with_options(denoise={"ir": "auto", "vis": "off"})(ir, spoiled, report=found)
    assert found[1].vis.chroma == 0 and chroma_error(rgb(left), rgb(clean)) > 20


def test_a_batch_is_as_alone():
    ir, vis = asset("dune_infrared.png")[:96, :120], asset("dune_visible.png")[:96, :120]
    images = [vis, noisy(vis, 25), noisy(vis, 12, 1)]
    fuser = Fuser(preset="fast", device="cpu", batch_size=3)
    together = fuser(np.stack([ir] * 3), np.stack(images))
    for n, image in enumerate(images):
        np.testing.assert_array_equal(together[n], fuser(ir, image))
