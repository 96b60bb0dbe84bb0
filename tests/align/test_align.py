"""Shifts and maps between pictures whose contrast differs, as that of two sensors does."""

from __future__ import annotations

import zlib

import cv2
import numpy as np
import pytest
from conftest import ROOT, shared

from ddfm_fast.align import Alignment, apply, check, estimate
from ddfm_fast.align.correlation import directions, median_of, peak

ASSETS = ROOT / "ddfm_fast" / "assets"
FLIR = [f"FLIR_{n}.jpg" for n in ("04424", "04598", "06570")]


def read(path) -> np.ndarray:
    found = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert found is not None, path
    return found


def satellite() -> tuple[np.ndarray, np.ndarray]:
    return read(ASSETS / "sentinel2_nir.png"), read(ASSETS / "sentinel2_visible.png")


def moved(image: np.ndarray, matrix) -> np.ndarray:
    size = image.shape[::-1]
    return cv2.warpPerspective(image, np.float64(matrix), size, borderMode=cv2.BORDER_REFLECT)


def shifted(image, x, y):
    return moved(image, [[1, 0, x], [0, 1, y], [0, 0, 1]])


def places(height, width) -> np.ndarray:
    y, x = np.mgrid[0.1 * height : 0.9 * height : 9j, 0.1 * width : 0.9 * width : 9j]
    return np.stack([x.ravel(), y.ravel(), np.ones(81)])


def error(got, wanted, size) -> float:
    """Return the median distance in pixels between where two maps send a picture's points."""
    a, b = (m @ places(*size) for m in (got, wanted))
    return float(np.median(np.hypot(*(a[:2] / a[2] - b[:2] / b[2]))))


@pytest.mark.parametrize("x, y", [(0, 0), (6, -4), (-13.5, 9.25), (20, 20)])
def test_a_shift_is_found(x, y):
    ir, vis = satellite()
    found = check(shifted(ir, x, y), vis)
    assert found.sure and abs(found.x - x) < 1 and abs(found.y - y) < 1, found


def test_degrees_and_signed_counts_are_read_as_fuse_reads_them():
    ir, vis = satellite()
    ir = shifted(ir, 7, 3)
    for source in (ir / np.float32(3) - 20, ir.astype(np.int16) * 10 - 500, ir * np.uint16(8)):
        for found in (check(source, vis), check(source, vis, value_range={"ir": "data"})):
            assert found.sure and abs(found.x - 7) < 1 and abs(found.y - 3) < 1
    known = estimate(ir / np.float32(3) - 20, vis, "shift")
    assert error(known.matrix, [[1, 0, 7], [0, 1, 3], [0, 0, 1]], vis.shape) < 1
    with pytest.raises(TypeError, match="alignment is a NoneType; expected what"):
        apply(ir, None, vis.shape)


def test_inverted_contrast_is_no_matter():
    ir, vis = satellite()
    found = check(shifted(255 - ir, 7, 3), vis)
    assert found.sure and abs(found.x - 7) < 1 and abs(found.y - 3) < 1


@pytest.mark.parametrize("name", FLIR)
def test_real_pairs_against_where_they_were(name):
    """The pairs themselves are off by a pixel or two: only the difference counts."""
    ir, vis = (read(shared("data") / "ivf" / folder / name) for folder in ("ir", "vi"))
    rest = check(ir, vis)
    for x, y in ((5.5, -9.25), (-18, -15.5), (12.5, 16.5)):
        found = check(shifted(ir, x, y), vis)
        assert found.sure
        assert np.hypot(found.x - x - rest.x, found.y - y - rest.y) < 0.5


@pytest.mark.parametrize("seed", range(8))
def test_pictures_of_different_places_are_not_sure(seed):
    ir, vis = satellite()
    other = read(ASSETS / "brain_mri_t1.png")
    rng = np.random.default_rng(seed)
    crop = cv2.resize(other, vis.shape[::-1])
    noise = rng.integers(0, 256, vis.shape, np.uint8)
    assert not check(np.rot90(crop, seed % 4).copy(), vis).sure
    assert not check(noise, vis).sure


def test_flat_pictures_have_no_shift():
    flat = np.full((64, 80), 90, np.uint8)
    found = check(flat, flat)
    assert not found.sure and np.isfinite(found).all()
    assert np.isfinite(check(flat, satellite()[1][:64, :80].copy())).all()


@pytest.mark.parametrize("size", [(16, 16), (17, 400), (301, 23)])
def test_any_size(size):
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.random(size).astype(np.float32), (0, 0), 2)
    found = check(image, image)
    assert np.hypot(found.x, found.y) < 0.5
    assert np.isfinite(estimate(image, image, "affine").matrix).all()


@pytest.mark.parametrize("model", ["affine", "homography"])
@pytest.mark.parametrize("name", FLIR)
def test_maps_of_real_pairs(name, model):
    """Corners moved by up to 5 % of the sides, against what the pair as it comes is given."""
    ir, vis = (read(shared("data") / "ivf" / folder / name) for folder in ("ir", "vi"))
    height, width = vis.shape
    rest = estimate(ir, vis, model)
    corners = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
    by = np.random.default_rng(2).uniform(-0.05, 0.05, (4, 2)) * [width, height]
    there = (corners + by).astype(np.float32)
    if model == "affine":
        true = np.vstack([cv2.getAffineTransform(corners[:3], there[:3]), [0, 0, 1]])
    else:
        true = cv2.getPerspectiveTransform(corners, there)
    found = estimate(moved(ir, true), vis, model)
    assert rest.sure and found.sure
    assert error(found.matrix, true @ rest.matrix, vis.shape) < 1.5
    assert np.array_equal(estimate(moved(ir, true), vis, model).matrix, found.matrix)


def test_another_resolution_and_back_again():
    ir, vis = satellite()
    small = cv2.resize(shifted(ir, 8, -6), (150, 150), interpolation=cv2.INTER_AREA)
    found = estimate(small, vis, "shift")
    there = apply(small, found, vis.shape)
    assert found.sure and there.shape == vis.shape and there.dtype == np.uint8
    rest = check(there, vis)
    assert np.hypot(rest.x, rest.y) < 1


def test_what_does_not_stand_out_is_not_sure():
    noise = np.random.default_rng(0).integers(0, 256, (2, 120, 160), np.uint8)
    for model in ("shift", "affine", "homography"):
        found = estimate(*noise, model)
        assert isinstance(found, Alignment) and not found.sure


def test_bad_input():
    ir, vis = satellite()
    with pytest.raises(ValueError, match="ir is 300x200 and vis 300x300; expected equal sizes"):
        check(ir[:, :200].copy(), vis)
    with pytest.raises(ValueError, match="model is 'rigid'; expected one of shift, affine"):
        estimate(ir, vis, "rigid")
    with pytest.raises(ValueError, match="ir holds 2 pictures, expected one"):
        check(np.stack([ir, ir]), np.stack([vis, vis]))
    with pytest.raises(TypeError, match="vis"):
        check(ir, "visible.png")


def test_a_shift_that_a_second_correlation_does_not_confirm_is_not_sure():
    """At dusk few large edges are alike: the first correlation took some of these for shifts."""
    folder = shared("data") / "ivf"
    ir, vis = (read(folder / name / "FLIR_07786.jpg") for name in ("ir", "vi"))
    rng = np.random.default_rng(zlib.crc32(b"FLIR_07786 shift"))
    alone = []
    for _ in range(6):
        a, b = shifted(ir, *rng.uniform(-20, 20, 2)), vis
        assert not check(a, b).sure
        k = 320 / b.shape[1]
        small = (cv2.resize(np.float32(p) / 255, None, fx=k, fy=k, interpolation=cv2.INTER_AREA)
                 for p in (a, b))  # fmt: skip
        alone.append(peak(*map(directions, small), 40 * k + 2).confidence)
    assert max(alone) > 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (2,), (5, 7), (6, 8), (61, 80)])
def test_the_median_is_the_one_of_numpy(shape, dtype):
    values = np.random.default_rng(len(shape)).normal(size=shape).astype(dtype)
    for given in (values, values.T, np.ones_like(values), np.where(values > 0, np.inf, values)):
        assert median_of(given) == np.median(given)
        assert type(median_of(given)) is type(np.median(given))
    values.flat[0] = np.nan
    assert np.isnan(median_of(values))
