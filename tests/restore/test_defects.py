"""Stripes and stuck pixels: found where they were added, and nothing in clean pictures."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import shared

from ddfm_fast.restore.defects import Defects, remove_defects

NOTHING = Defects(0.0, 0.0, 0)
INFRARED = ("FLIR_03952.jpg", "FLIR_04424.jpg", "FLIR_06570.jpg", "TNO_21.png")
"""a typical picture, the two with the most vertical structure, and a large one"""


def tensor(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(levels, np.float32) / np.float32(255))[None, None]


def levels_of(luma: torch.Tensor) -> np.ndarray:
    return luma[0, 0].numpy() * np.float32(255)


def picture(path: Path) -> np.ndarray:
    levels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert levels is not None, path
    return np.asarray(levels)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def striped(clean: np.ndarray, sigma: float, kind: str, noise: float, seed: int):
    """Return bytes with column and row offsets and noise on top, and the offsets."""
    random = np.random.default_rng(seed)
    height, width = clean.shape
    columns = random.normal(0, sigma if "c" in kind else 0, width)
    rows = random.normal(0, sigma if "r" in kind else 0, height)
    noisy = clean + columns + rows[:, None] + random.normal(0, noise, clean.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.float32), columns, rows


def remaining(offsets: np.ndarray, removed: np.ndarray) -> float:
    """Return the share of the deviation that is left; what is slower than 8 columns is shading."""

    def fast(values: np.ndarray) -> float:
        line = values[None].astype(np.float32)
        slow = cv2.GaussianBlur(line, (0, 0), 8, borderType=cv2.BORDER_REFLECT)
        return float((line - slow).std())

    return fast(offsets - removed) / fast(offsets)


def scene(height: int = 240, width: int = 320) -> np.ndarray:
    """Draw smooth shading and a little noise, as a thermal camera gives."""
    random = np.random.default_rng(5)
    coarse = random.uniform(60, 190, (4, 5)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.round(smooth + random.normal(0, 1.5, (height, width))), 1, 254)


def bars(height: int, width: int) -> dict[str, np.ndarray]:
    """Draw vertical structures over the whole height, which only their regularity betrays."""
    x = np.arange(width)
    random = np.random.default_rng(1)
    slats = np.repeat(random.uniform(-20, 20, width), random.integers(4, 9, width))[:width]
    chirp = 15 * np.sin(2 * np.pi * np.cumsum(1 / np.linspace(4, 12, width)))
    profiles = {
        "fence": np.where(x % 12 < 3, 25.0, 0.0),
        "fine fence": np.where(x % 5 < 2, 12.0, 0.0),
        "blinds": 10 * np.sin(2 * np.pi * x / 7),
        "perspective": chirp,
        "slats": slats,
        "masts": 20.0 * (random.random(width) < 0.06),
    }
    return {name: np.broadcast_to(line, (height, width)) for name, line in profiles.items()}


FOLDERS = ("data/ivf/ir", "data/ivf/vi", "data/mif", "data/video/0111_1753", "demo", "photos")


@pytest.mark.parametrize("folder", FOLDERS)
def test_clean_pictures_come_back_as_they_are(folder):
    files = sorted(f for f in shared(folder).rglob("*") if f.suffix in (".png", ".jpg"))
    files = files[:: max(len(files) // 12, 1)]
    assert files
    for file in files:
        levels = picture(file)
        if levels.size > 500_000:
            levels = cv2.resize(levels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        luma = tensor(levels)
        before = luma.clone()
        result, found = remove_defects(luma)
        assert found == [NOTHING], file.name
        assert result is luma and torch.equal(luma, before)


def test_photographs_of_scikit_image_come_back_as_they_are():
    folder = Path(pytest.importorskip("skimage").__file__).parent / "data"
    for name in ("camera", "coins", "page", "text", "moon", "brick", "grass", "chessboard_GRAY"):
        file = folder / f"{name}.png"
        if file.exists():
            luma = tensor(picture(file))
            result, found = remove_defects(luma)
            assert result is luma and found == [NOTHING], name


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", list(bars(1, 64)))
def test_fences_and_blinds_are_no_stripes(name, turned):
    levels = np.clip(scene() + bars(240, 320)[name], 1, 254)
    luma = tensor(levels.T if turned else levels)
    result, found = remove_defects(luma)
    assert result is luma and found == [NOTHING]


def test_stripes_that_one_cannot_see_are_left():
    levels, _, _ = striped(scene(), 0.6, "cr", 0, 8)
    luma = tensor(levels)
    result, found = remove_defects(luma)
    assert result is luma and found == [NOTHING]


def test_stars_hot_targets_and_lamps_are_no_stuck_pixels():
    random = np.random.default_rng(2)
    levels = np.round(random.normal(20, 2, (240, 320)))
    for y, x in random.integers(4, 230, (60, 2)):  # a lens blurs a star to about a pixel
        dy, dx = np.mgrid[-3:4, -3:4] + random.uniform(-0.5, 0.5, (2, 1, 1))
        levels[y - 3 : y + 4, x - 3 : x + 4] += 600 * np.exp(-(dy**2 + dx**2) / 1.3)
    for y, x in random.integers(10, 220, (12, 2)):
        levels[y : y + 3, x : x + 3] = 255
    luma = tensor(np.clip(levels, 0, 255))
    result, found = remove_defects(luma)
    assert result is luma and found == [NOTHING]


CASES = [
    # sigma, noise, most that remains on average and in any picture, least gain of PSNR
    (3, 0, 0.42, 0.56, 5.0),
    (5, 0, 0.28, 0.42, 7.0),
    (10, 0, 0.19, 0.33, 9.0),
    (5, 10, 0.32, 0.47, 0.6),
    (10, 10, 0.24, 0.46, 2.0),
]


@pytest.mark.parametrize("sigma, noise, mean, worst, gain", CASES)
def test_stripes_of_infrared_pictures_are_removed(sigma, noise, mean, worst, gain):
    left = []
    for seed, name in enumerate(INFRARED):
        clean = picture(shared("data/ivf/ir") / name)
        kind = ("c", "r", "cr")[(seed + sigma) % 3]
        levels, columns, rows = striped(clean, sigma, kind, noise, seed)
        result, (found,) = remove_defects(tensor(levels))
        assert ((found.columns > 0), (found.rows > 0)) == ("c" in kind, "r" in kind), name
        restored = levels_of(result)
        removed = levels - restored
        if "c" in kind:
            assert found.columns == pytest.approx(sigma, rel=0.35)
            left.append(remaining(columns, np.median(removed, axis=0)))
        if "r" in kind:
            assert found.rows == pytest.approx(sigma, rel=0.35)
            left.append(remaining(rows, np.median(removed, axis=1)))
        assert psnr(restored, clean) > psnr(levels, clean) + gain, name
    assert max(left) < worst
    assert np.mean(left) < mean


@pytest.mark.parametrize("kind", ["c", "r", "cr"])
def test_stripes_of_a_smooth_scene_are_removed(kind):
    """This one needs no test data."""
    clean = scene()
    levels, columns, rows = striped(clean, 5, kind, 0, 3)
    result, (found,) = remove_defects(tensor(levels))
    removed = levels - levels_of(result)
    assert ((found.columns > 0), (found.rows > 0)) == ("c" in kind, "r" in kind)
    for offsets, axis, letter in ((columns, 0, "c"), (rows, 1, "r")):
        if letter in kind:
            assert remaining(offsets, np.median(removed, axis=axis)) < 0.25
    assert psnr(levels_of(result), clean) > psnr(levels, clean) + 7


def test_black_ground_stays_black():
    clean = scene()
    clean[:80] = 0
    levels, _, _ = striped(clean, 5, "c", 0, 4)
    result, (found,) = remove_defects(tensor(levels))
    assert found.columns > 0
    assert float(levels_of(result)[:78].mean()) < 0.5 * float(levels[:78].mean())


@pytest.mark.parametrize("density", [0.0005, 0.005, 0.02])
def test_stuck_pixels_are_found_and_filled(density):
    """Those that one can see: at least 25 gray levels from what was there."""
    clean = scene()
    random = np.random.default_rng(6)
    stuck = random.random(clean.shape) < density
    levels = np.where(stuck, np.where(random.random(clean.shape) < 0.5, 0, 255), clean)
    result, (found,) = remove_defects(tensor(levels))
    restored = levels_of(result)
    changed = restored != levels_of(tensor(levels))
    visible = stuck & (np.abs(levels - clean) > 25)
    assert np.count_nonzero(changed & visible) >= 0.97 * np.count_nonzero(visible)
    assert not np.any(changed & ~stuck)
    assert found.dead == np.count_nonzero(changed)
    assert float(np.abs(restored - clean)[changed].mean()) < 3


def test_stuck_pixels_of_infrared_pictures_are_found():
    hit = count = 0
    for seed, name in enumerate((*INFRARED, "TNO_03.png", "TNO_11.png")):
        clean = picture(shared("data/ivf/ir") / name).astype(np.float32)
        random = np.random.default_rng(seed)
        stuck = random.random(clean.shape) < 0.005
        levels = np.where(stuck, np.where(random.random(clean.shape) < 0.5, 0, 255), clean)
        restored = levels_of(remove_defects(tensor(levels))[0])
        changed = np.abs(restored - levels) > 0.01
        visible = stuck & (np.abs(levels - clean) > 25)
        hit += np.count_nonzero(changed & visible)
        count += np.count_nonzero(visible)
        assert np.count_nonzero(changed & ~stuck) <= 3, name
    assert hit >= 0.94 * count


def test_stripes_and_stuck_pixels_together():
    clean = scene()
    levels, _, _ = striped(clean, 5, "c", 0, 7)
    random = np.random.default_rng(7)
    stuck = random.random(clean.shape) < 0.003
    levels[stuck] = 255
    result, (found,) = remove_defects(tensor(levels))
    assert found.columns > 3 and found.rows == 0
    assert found.dead >= 0.9 * np.count_nonzero(stuck & (clean < 225))
    assert psnr(levels_of(result), clean) > psnr(levels, clean) + 12


def test_an_image_is_judged_on_its_own():
    clean = scene()
    levels, _, _ = striped(clean, 8, "cr", 2, 1)
    batch = torch.cat([tensor(clean), tensor(levels), tensor(np.fliplr(levels).copy())])
    result, found = remove_defects(batch)
    assert found[0] == NOTHING and found[1].columns > 0
    assert torch.equal(result[:1], batch[:1])
    for n in range(3):
        alone, (defects,) = remove_defects(batch[n : n + 1])
        assert torch.equal(alone, result[n : n + 1]) and defects == found[n]


@pytest.mark.parametrize("size", [(16, 16), (16, 400), (33, 35), (240, 320)])
@pytest.mark.parametrize("kind", ["black", "white", "gray", "noise", "salt", "halves"])
def test_pictures_without_content_stay_finite(size, kind):
    random = np.random.default_rng(0)
    levels = {
        "black": np.zeros(size),
        "white": np.full(size, 255.0),
        "gray": np.full(size, 90.0),
        "noise": np.clip(random.normal(128, 25, size), 0, 255),
        "salt": 255.0 * (random.random(size) < 0.5),
        "halves": 255.0 * (np.indices(size)[1] >= size[1] // 2),
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        luma = tensor(levels)
        result, found = remove_defects(luma)
    assert result is luma and found == [NOTHING]


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 15, 32), (32, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[N, 1, H, W\]"):
        remove_defects(torch.zeros(shape))


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="float32"):
        remove_defects(torch.zeros(1, 1, 32, 32, dtype=torch.float64))


def test_points_in_groups_are_seen():
    """Spots of 2 x 2 and lamps that were reduced have an extent: no stuck pixels."""
    rng = np.random.default_rng(0)
    levels = np.full((240, 320), 90, np.float32) + 2 * rng.standard_normal((240, 320))
    for y, x in zip(rng.integers(5, 235, 30), rng.integers(5, 315, 30), strict=True):
        levels[y : y + 2, x : x + 2] = 255
    luma = torch.from_numpy(levels.round().clip(0, 255).astype(np.float32) / 255)[None, None]
    assert remove_defects(luma)[1][0].dead == 0
