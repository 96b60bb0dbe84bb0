"""Volumes fused: one range, one noise level, one scale; what is outside of a field; refusals."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from phantoms import CENTER, affine, ellipsoid, inside

from ddfm_fast import DDFMWarning, Fuser
from ddfm_fast.images.stretch import own_limits
from ddfm_fast.medical.colormap import color_map
from ddfm_fast.medical.fuse import fuse_volumes
from ddfm_fast.medical.volume import Origin, Volume

pytest.importorskip("scipy", reason="needs ddfm_fast[medical]")

AT = affine((2.0, 2.0, 4.0), (-58.0, -66.0, -29.0))
SHAPE = (14, 64, 60)


@pytest.fixture(scope="module")
def instant() -> Fuser:
    return Fuser(preset="instant", device="cpu")


def textured(seed: int, noise: float = 0.0, at: np.ndarray = AT) -> np.ndarray:
    """Return the phantom with structure that differs from slice to slice, 0 to 1000."""
    z, y, x = np.indices(SHAPE)
    wave = np.sin(x / (4 + seed)) * np.cos(y / (3 + seed)) * 150 * (1 + np.sin(z))
    values = ellipsoid(SHAPE, at, 60, 600 + 100 * seed) + wave
    values += noise * np.random.default_rng(seed).standard_normal(SHAPE)
    return np.clip(values, 0, 1000).astype(np.float32)


def pair(noise: float = 0.0) -> tuple[Volume, Volume]:
    window = (0.0, 1000.0)
    return (
        Volume(textured(1, noise), AT, window=window, name="a"),
        Volume(textured(2, noise), AT, window=window, name="b"),
    )


@pytest.mark.parametrize("stretch", ["none", "minmax", "percentile", "sources"])
def test_one_scale_for_all_slices(stretch):
    """Slices are those of a plain call without stretch, mapped by one line for all of them."""
    ir, vis = pair()
    fuser = Fuser(preset="instant", stretch=stretch, images="photographic", device="cpu")
    found = fuse_volumes(ir, vis, fuser)
    plain = fuser.with_options(stretch="none")
    slices = zip(ir.array / 1000, vis.array / 1000, strict=True)
    y = np.stack([plain(a, b, value_range=(0, 1)) for a, b in slices])
    low, high = found.limits
    expected = np.clip((y - low) / (high - low), 0, 1)
    np.testing.assert_allclose(found.volume.array / 65535, expected, atol=2e-5)
    flat = torch.from_numpy(y).reshape(1, 1, -1, y.shape[2])
    if stretch in ("minmax", "percentile"):
        np.testing.assert_allclose((low, high), own_limits(flat, stretch).flatten(), atol=5e-5)
    if stretch == "none":
        assert (low, high) == (0, 1)
    if stretch == "sources":  # percentiles of y become the sources' ends, and a tenth more
        a, b = own_limits(flat, "percentile").flatten().tolist()
        both = np.stack([ir.array, vis.array]) / 1000
        margin = 0.1 * np.ptp(both)
        ends = max(both.min() - margin, 0), min(both.max() + margin, 1)
        np.testing.assert_allclose([(v - low) / (high - low) for v in (a, b)], ends, atol=2e-4)


def test_slices_do_not_flicker(instant):
    """A slice that is repeated among different ones has the same bytes at each place."""
    ir, vis = pair()
    for volume in (ir, vis):
        volume.array[[3, 7, 12]] = volume.array[5]
    found = fuse_volumes(ir, vis, instant).volume.array
    for z in (3, 7, 12):
        np.testing.assert_array_equal(found[z], found[5])


def test_one_range_of_all_slices(instant):
    """Without a window the range is that of all slices, is reported once, and holds for each."""
    ir, vis = (Volume(v.array - 1000, AT, units="HU") for v in pair())
    ir.array[2] *= 0.1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fuse_volumes(ir, vis, instant)
    texts = [str(w.message) for w in caught if issubclass(w.category, DDFMWarning)]
    assert len(texts) == 2 and "black and white are set at" in texts[0] and " HU" in texts[0]
    assert found.ranges["ir"] == pytest.approx((ir.array.min(), ir.array.max()), abs=1)
    given = fuse_volumes(ir, vis, instant, value_range=found.ranges)
    np.testing.assert_array_equal(given.volume.array, found.volume.array)
    other = fuse_volumes(ir, vis, instant, value_range={"ir": (-900, 0), "vis": (-900, 0)})
    assert (other.volume.array != found.volume.array).any()


def test_air_is_the_least_black_of_ct(instant):
    ir, vis = pair()
    ir.array[:, :10] = -3000
    ct = Volume(ir.array, AT, units="HU", modality="CT")
    with pytest.warns(DDFMWarning, match="-1000 and"):
        assert fuse_volumes(ct, vis, instant).ranges["ir"][0] == -1000


def test_one_noise_level():
    """The noise that was added is found once, and taken out with that σ in every slice."""
    sigma = 12.0
    ir, vis = pair(noise=sigma * 1000 / 255)
    clean, _ = pair()
    fuser = Fuser(preset="fast", device="cpu")
    some = slice(4, 8)
    found = fuse_volumes(ir, vis, fuser, slices=some)
    assert found.sigma["ir"] == pytest.approx(sigma, rel=0.15)
    fixed = fuser.with_options(denoise=found.sigma)
    np.testing.assert_array_equal(
        fuse_volumes(ir, vis, fixed, slices=some).volume.array, found.volume.array
    )
    off = fuse_volumes(ir, vis, fuser.with_options(denoise="off"), slices=some)
    assert off.sigma == {"ir": 0.0, "vis": 0.0}
    rough = [np.abs(np.diff(v.volume.array / 65535, axis=2)).mean() for v in (found, off)]
    assert rough[0] < 0.6 * rough[1]
    assert fuse_volumes(clean, clean, fuser, slices=slice(4, 6)).sigma["ir"] == 0.0


def test_outside_of_a_field_the_other_source_shows(instant):
    """A source that covers half: beyond it, and in its holes, the result is the other one."""
    ir, _ = pair()
    half = affine((2.0, 2.0, 4.0), (-58.0, 10.0, 3.0))
    vis = Volume(textured(2, at=half), half, window=(0.0, 1000.0))
    vis.array[8, 5, 5] = np.nan
    found = fuse_volumes(ir, vis, instant)
    shown, own = found.volume.array / 65535, ir.array / 1000
    np.testing.assert_allclose(shown[:7], own[:7], atol=2e-5)  # slices below its first
    np.testing.assert_allclose(shown[:, :37], own[:, :37], atol=2e-5)  # rows before its first
    assert np.abs(shown - own)[9:, 39:].max() > 0.1


def test_what_nodata_names_is_not_interpolated_into_others(instant):
    ir, vis = pair()
    coarse = affine((4.0, 4.0, 4.0), (-58.0, -66.0, -29.0))
    holed = Volume(ellipsoid((14, 32, 30), coarse), coarse, window=(0.0, 1000.0))
    holed.array[:, 10:14, 10:14] = -9999
    found = fuse_volumes(ir, holed, instant, nodata={"vis": -9999}).volume.array / 65535
    np.testing.assert_allclose(found[:, 20:26, 20:26], ir.array[:, 20:26, 20:26] / 1000, atol=2e-5)


def test_what_is_fused_sets_the_scale():
    """What one source shows alone, however bright, does not darken the rest."""
    ir, vis = pair()
    vis = Volume(vis.array * np.float32(0.6), AT, window=(0.0, 1000.0))
    vis.array[:, :30] = np.nan
    dark, bright = ir.array * np.float32(0.6), ir.array * np.float32(0.6)
    dark[:, :16], bright[:, :16] = 0, 1000
    fuser = Fuser(preset="instant", stretch="minmax", images="photographic", device="cpu")
    found = [
        fuse_volumes(Volume(array, AT, window=(0.0, 1000.0)), vis, fuser)
        for array in (dark, bright)
    ]
    assert found[1].limits[1] < found[0].limits[1] + 0.05 < 0.8
    np.testing.assert_allclose(found[1].volume.array[:, :16], 65535)


def test_nowhere_is_black(instant):
    ir, vis = pair()
    ir.array[:, :8] = vis.array[:, :8] = np.nan
    assert not fuse_volumes(ir, vis, instant).volume.array[:, :8].any()


@pytest.mark.parametrize("name", ["hot", "JET"])
def test_color_maps(name):
    """They have OpenCV's colors at whole levels, and are linear in between."""
    import cv2

    colors = color_map(name)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    bgr = cv2.applyColorMap(levels, getattr(cv2, f"COLORMAP_{name.upper()}"))
    exact = colors((levels / np.float32(255)).astype(np.float32))
    np.testing.assert_allclose(exact * 255, bgr[..., ::-1], atol=1e-2)
    with pytest.raises(ValueError, match="colormap is 'warm'; expected one of autumn"):
        color_map("warm")


def test_a_map_in_color(instant):
    ir, vis = pair()
    pet = Volume(vis.array, AT, window=(0.0, 1000.0), modality="PT")
    found = fuse_volumes(ir, pet, instant, colormap="hot")
    assert found.functional and found.volume.array.shape == (*SHAPE, 3)
    rgb = found.volume.array.astype(int)
    bright = pet.array > 600
    assert (rgb[..., 0] >= rgb[..., 1] - 1).all() and (rgb[..., 1] >= rgb[..., 2] - 1).all()
    assert np.ptp(rgb[bright], axis=1).mean() > 20, "in hot red is above green above blue"
    gray = fuse_volumes(ir, pet, instant.with_options(color=False), colormap="hot")
    assert gray.volume.array.dtype == np.uint16
    with pytest.raises(ValueError, match="colormap is given for vis, which has color"):
        fuse_volumes(ir, Volume(found.volume.array / np.float32(255), AT), instant, colormap="hot")


def test_what_is_said_of_strangers(instant):
    ir, vis = pair()
    for a, b, words in (
        ({"PatientID": "1"}, {"PatientID": "2"}, "different patients"),
        ({"FrameOfReferenceUID": "1"}, {"FrameOfReferenceUID": "2"}, "frames of reference"),
    ):
        with pytest.warns(DDFMWarning, match=words):
            fuse_volumes(
                Volume(ir.array, AT, window=(0, 1000), origin=Origin(a, ())),
                Volume(vis.array, AT, window=(0, 1000), origin=Origin(b, ())),
                instant,
                slices=slice(1),
            )


@pytest.mark.parametrize(
    "options, words",
    [
        ({"grid": "both"}, "grid is 'both'"),
        ({"plane": "frontal"}, "plane is 'frontal'; expected one of axial, coronal, sagittal"),
        ({"plane": "coronal"}, "have 14×60 pixels; expected at least 16×16"),
        ({"value_range": (3, 3)}, r"value_range of ir is \(3, 3\)"),
        ({"value_range": "dtype"}, "value_range of ir is 'dtype'"),
        ({"value_range": {"mr": (0, 1)}}, "'mr'"),
        ({"nodata": "x"}, "nodata"),
        ({"slices": slice(50, 60)}, "leaves none"),
        ({"colormap": "warm"}, "colormap is 'warm'"),
    ],
)
def test_refusals(instant, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        fuse_volumes(*pair(), instant, **options)


def test_other_refusals(instant):
    ir, vis = pair()
    with pytest.raises(TypeError, match="ir is a ndarray; expected a Volume"):
        fuse_volumes(ir.array, vis, instant)
    with pytest.raises(ValueError, match="crops slices to multiples of 32"):
        fuse_volumes(ir, vis, SimpleNamespace(config=SimpleNamespace(crop_multiple=32)))
    empty = Volume(np.full(SHAPE, np.nan, np.float32), AT, name="empty")
    with pytest.raises(ValueError, match="ir: empty has no data"):
        fuse_volumes(empty, vis, instant)


def test_the_fuser_stays_as_it_was(instant):
    before = instant.config
    fuse_volumes(*pair(0.1), instant, slices=slice(2))
    assert instant.config is before
    assert inside(CENTER) > 0.99


def test_steps_of_the_prior_are_run(tmp_path):
    """The authors' loop runs on slices with the embedded prior: finite, with one seed for all."""
    ir, vis = pair()
    fuser = Fuser(prior="embedded", preset="official", steps=2, device="cpu")
    found = fuse_volumes(ir, vis, fuser, slices=slice(5, 7))
    assert found.volume.array.dtype == np.uint16 and np.ptp(found.volume.array) == 65535


def test_the_same_volume_twice_and_one_that_shows_nothing_are_told(instant):
    ir, vis = pair()
    again = Volume(ir.array.copy(), AT, window=(0.0, 1000.0), name="c")
    with pytest.warns(DDFMWarning, match="ir and vis are the same volume"):
        fuse_volumes(ir, again, instant, slices=slice(0, 2))
    flat = Volume(np.full(SHAPE, 5, np.float32), AT, name="flat")
    with pytest.warns(DDFMWarning) as said:
        fuse_volumes(ir, flat, instant, slices=slice(0, 2))
    assert [str(one.message) for one in said] == [
        "vis: flat is 5 everywhere and shows nothing; check the file"
    ]
