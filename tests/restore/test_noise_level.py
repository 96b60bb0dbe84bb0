"""The noise of a plane: none in clean pictures, the right amount in noisy ones, stabilized."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import shared
from torch import Tensor

from ddfm_fast.restore.noise_level import (
    THRESHOLD,
    NoiseLevel,
    destabilize,
    noise_level,
    stabilize,
)

SOURCES = ("data/ivf/ir", "data/ivf/vi", "data/mif", "data/video/0111_1753", "demo")
TEXTURES = ("brick", "grass", "gravel", "china", "coins")
NOISY = ("brain_mri_pd.png", "brain_mri_t1.png")
"""simulated scans with noise of their own"""


def read(path: Path) -> np.ndarray:
    """Read a picture's luma in gray levels."""
    bgr = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR), np.float32)
    return bgr @ np.array([0.114, 0.587, 0.299], np.float32)


def pictures(*folders: str) -> dict[str, np.ndarray]:
    """Read the luma of the shared pictures below these folders; of a sequence, four frames."""
    found: dict[str, np.ndarray] = {}
    for folder in folders:
        root = shared(folder)
        paths = sorted(p for p in root.rglob("*") if p.suffix in (".png", ".jpg"))
        paths = paths[::10] if "video" in folder else paths
        found |= {str(p.relative_to(root.parent)): read(p) for p in paths if p.name not in NOISY}
    return found


def plane(levels: np.ndarray) -> Tensor:
    """Return gray levels, clipped and rounded to bytes, as a luma plane [1, 1, H, W]."""
    return torch.from_numpy(np.clip(np.round(levels), 0, 255).astype(np.float32) / 255)[None, None]


def estimate(levels: np.ndarray) -> NoiseLevel:
    return noise_level(plane(levels))[0]


def gaussian(levels: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    return levels + sigma * np.random.default_rng(seed).standard_normal(levels.shape)


def low_light(levels: np.ndarray, mean: float, photons: float, seed: int = 0) -> np.ndarray:
    """Return the picture at a mean, as a sensor sees it that counts so many photons at white."""
    dark = np.clip(levels * (mean / levels.mean()), 0, 255)
    return np.random.default_rng(seed).poisson(dark / 255 * photons) / photons * 255


def ramp(height: int = 240, width: int = 320) -> np.ndarray:
    return np.broadcast_to(np.linspace(40, 215, width), (height, width))


def test_clean_pictures_have_no_noise():
    wrong = {}
    for name, levels in pictures(*SOURCES).items():
        found = estimate(levels)
        assert found.plain < 5
        if (found.sigma, found.gain, found.offset) != (0, 0, 0):
            wrong[name] = found
    assert not wrong


@pytest.mark.parametrize("name", NOISY)
def test_scans_with_noise_of_their_own(name):
    assert 3.5 < estimate(read(shared(f"demo/{name}"))).sigma < 7


@pytest.mark.parametrize("name", TEXTURES)
def test_texture_is_not_noise(name):
    found = estimate(read(shared(f"photos/{name}.jpg")))
    assert found.sigma == found.gain == 0
    if name in ("grass", "gravel"):
        assert found.plain > THRESHOLD, "what makes this case hard"


def test_dither_is_not_noise():
    dither = np.where(np.indices((240, 320)).sum(0) % 2, 110.0, 140.0)
    found = estimate(dither)
    assert found.plain > THRESHOLD
    assert found.sigma == 0


@pytest.mark.parametrize(
    "sigma, least, most", [(10, 0.96, 1.12), (25, 0.96, 1.04), (50, 0.93, 1.03)]
)
def test_level_of_uniform_noise(sigma, least, most):
    found = [
        estimate(gaussian(levels, sigma, seed))
        for seed, levels in enumerate(pictures("data/ivf/ir", "data/ivf/vi", "data/mif").values())
    ]
    levels = np.array([one.sigma for one in found]) / sigma
    low, median, high = np.quantile(levels, [0.1, 0.5, 0.9])
    assert abs(median - 1) < 0.04
    assert least < low and high < most
    assert sum(one.gain > 0 for one in found) <= 1
    assert all(one.offset == one.sigma**2 for one in found if one.gain == 0)


def test_weak_noise_is_noticed_on_black_ground():
    assert all(estimate(gaussian(one, 5)).sigma > 4.5 for one in pictures("data/mif").values())


@pytest.mark.parametrize("sigma", [5, 10, 25, 50])
def test_pure_noise(sigma):
    found = estimate(gaussian(np.full((240, 320), 128.0), sigma))
    assert found.sigma == pytest.approx(sigma, rel=0.035)
    assert found.plain == pytest.approx(sigma, rel=0.035)
    assert found.gain == 0


@pytest.mark.parametrize(
    "mean, photons, least",
    [
        (20, 30, 1),  # hardly a block is bright enough to be judged
        (30, 30, 7),
        (40, 30, 8),
        (30, 200, 7),
    ],
)
def test_low_light_is_noisy_and_grows_with_brightness(mean, photons, least):
    found = [
        estimate(low_light(levels, mean, photons, seed))
        for seed, levels in enumerate(pictures("data/ivf/vi").values())
    ]
    assert all(one.sigma > THRESHOLD for one in found)
    gains = [one.gain for one in found if one.gain > 0]
    assert len(gains) >= least
    assert np.median(gains) == pytest.approx(255 / photons, rel=0.08)


def test_low_light_with_a_black_half():
    levels = np.where(np.arange(320) < 200, 0.0, ramp() / 6)
    found = noise_level(plane(low_light(levels, levels.mean(), 30)))[0]
    assert found.plain < THRESHOLD < found.sigma


def test_gain_and_offset_of_photons_with_read_noise():
    rng = np.random.default_rng(5)
    levels = rng.poisson(ramp(480, 640) / 2) * 2.0 + 8 * rng.standard_normal((480, 640))
    found = estimate(levels)
    assert found.gain == pytest.approx(2, rel=0.1)
    assert found.gain * 128 + found.offset == pytest.approx(2 * 128 + 64, rel=0.05)


def test_an_image_is_judged_alone():
    clean = ramp()
    levels = [clean, gaussian(clean, 12), low_light(clean, 40, 40), np.zeros_like(clean)]
    planes = [plane(one) for one in levels]
    batch = noise_level(torch.cat(planes))
    assert batch == [noise_level(one)[0] for one in planes]
    turned = torch.cat(planes).transpose(-1, -2).contiguous().transpose(-1, -2)
    assert noise_level(turned) == batch


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (31, 16), (65, 130)])
@pytest.mark.parametrize(
    "make",
    [
        np.zeros_like,
        lambda x: np.full_like(x, 255),
        lambda x: np.full_like(x, 7),
        lambda x: gaussian(x, 60),
        lambda x: gaussian(np.zeros_like(x), 20),
        lambda x: gaussian(np.full_like(x, 255), 20),
        lambda x: low_light(x + 1, 1, 5),
        lambda x: np.indices(x.shape).sum(0) % 2 * 255.0,
        lambda x: (np.indices(x.shape).sum(0) % 17 == 0) * 255.0,
    ],
)  # fmt: skip
def test_any_plane_gives_finite_numbers(size: tuple[int, int], make: Callable):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate(make(np.array(ramp(*size))))
    assert all(type(value) is float and np.isfinite(value) and value >= 0 for value in found)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 32, 32), (1, 1, 15, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="luma must be"):
        noise_level(torch.zeros(shape))


@pytest.mark.parametrize("gain, offset", [(0.5, 0.0), (2.0, 100.0), (3.5, 10.0)])
def test_clean_plane_round_trip(gain, offset):
    levels = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    stabilized = stabilize(levels, gain, offset)
    assert stabilized.plane.min() >= 0 and stabilized.plane.max() <= 1
    bright = levels > 10 / 255
    back = destabilize(stabilized)
    assert ((back - levels)[bright].abs() * 255).max() < 1
    exact = destabilize(stabilized, unbiased=False)
    assert ((exact - levels).abs() * 255).max() < 0.01


def test_stabilized_noise_is_uniform_and_its_mean_comes_back():
    rng = np.random.default_rng(0)
    gain, offset = 4.0, 25.0
    for mean in (30.0, 80.0, 150.0):
        counts = rng.poisson(mean / gain, (256, 256)) * gain + 5 * rng.standard_normal((256, 256))
        noisy = torch.from_numpy(counts / 255)[None, None]
        stabilized = stabilize(noisy, gain, offset)
        assert stabilized.plane.std().item() * 255 == pytest.approx(stabilized.sigma, rel=0.04)
        flat = stabilized._replace(plane=stabilized.plane.mean().view(1, 1, 1, 1))
        assert destabilize(flat).item() * 255 == pytest.approx(mean, abs=0.25)
        # The other inverse is biased by a quarter of the gain: what the closed form is for.
        assert mean - destabilize(flat, unbiased=False).item() * 255 > 0.6


def test_uniform_noise_needs_no_stabilizing():
    levels = torch.rand(1, 1, 16, 16)
    stabilized = stabilize(levels, 0.0, 49.0)
    assert stabilized.sigma == 7
    assert torch.equal(destabilize(stabilized), levels)


@pytest.mark.parametrize("width", [48, 84, 160])
def test_a_blank_panel_hides_no_noise(width):
    levels = gaussian(ramp(), 20)
    levels[:, :width] = 30
    assert estimate(levels).sigma == pytest.approx(20, rel=0.06)


def test_too_few_pixels_show_no_noise():
    assert estimate(gaussian(ramp(40, 47), 20)).sigma == 0
